//! Adding up what was seen, by groups of layers that share an input.
//!
//! candle gives a tensor one id however often it is cloned: layers that are shown one tensor share its sums.

use candle_core::{CpuStorage, DType, Storage, Tensor, TensorId};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::tap::Seen;
use crate::{Error, Needs, Result, Stats, stats::Accumulator};

/// Sums in progress.
#[derive(Debug)]
pub(crate) struct Sums {
    needs: Needs,
    groups: Vec<Group>,
    /// Which group a layer belongs to.
    members: BTreeMap<String, usize>,
    batches: usize,
}

#[derive(Debug)]
struct Group {
    leader: String,
    sums: Accumulator,
    /// The batch in which it was first seen; only then others can join.
    since: usize,
}

impl Sums {
    pub(crate) fn new(needs: Needs) -> Self {
        Self { needs, groups: Vec::new(), members: BTreeMap::new(), batches: 0 }
    }

    /// Adds the inputs of one batch, with what the original model has in their place where that is asked for.
    ///
    /// Rows that `mask` (u32 `[batch, len]`) calls padding are left out. Errors where an input is not finite, and where
    /// layers that shared an input no longer do.
    pub(crate) fn add(&mut self, seen: &Seen, original: Option<&Seen>, mask: Option<&Tensor>) -> Result<()> {
        let mask = mask.map(tokens).transpose()?;
        let mut here: HashMap<TensorId, usize> = HashMap::new();
        let mut times: HashMap<&str, usize> = HashMap::new();
        for (site, x) in seen {
            let time = times.entry(site).or_default();
            *time += 1;
            let group = self.group(site, x, &mut here)?;
            if self.groups[group].leader != *site {
                continue;
            }
            let (sums, mask) = (&mut self.groups[group].sums, mask.as_deref());
            match original {
                None => with_rows(x, mask, |rows| sums.add(site, rows))?,
                Some(original) => {
                    let beside = original.iter().filter(|(s, _)| s == site).nth(*time - 1);
                    let (_, beside) = beside.ok_or_else(|| Error::Stats {
                        site: site.clone(),
                        message: "the original model did not reach it where the changed one did".into(),
                    })?;
                    with_rows(x, mask, |rows| {
                        with_rows(beside, mask, |beside| sums.add_beside(site, rows, beside))
                    })?;
                }
            }
        }
        self.batches += 1;
        Ok(())
    }

    /// The group of a layer that was shown `x`.
    fn group(&mut self, site: &str, x: &Tensor, here: &mut HashMap<TensorId, usize>) -> Result<usize> {
        let shown = here.get(&x.id()).copied();
        if let Some(&group) = self.members.get(site) {
            let leader = &self.groups[group].leader;
            if leader == site {
                here.insert(x.id(), group);
            } else if shown != Some(group) {
                let message = format!("it shared its input with `{leader}` at first and does not now");
                return Err(Error::Stats { site: site.to_owned(), message });
            }
            return Ok(group);
        }
        let group = match shown.filter(|&g| self.groups[g].since == self.batches) {
            Some(group) => group,
            None => {
                let sums = Accumulator::new(x.dims().last().copied().unwrap_or(0), self.needs);
                self.groups.push(Group { leader: site.to_owned(), sums, since: self.batches });
                self.groups.len() - 1
            }
        };
        here.entry(x.id()).or_insert(group);
        self.members.insert(site.to_owned(), group);
        Ok(group)
    }

    /// The groups so far, in the order in which they were seen; the leader of each first.
    pub(crate) fn groups(&self) -> Vec<Vec<String>> {
        let mut groups: Vec<Vec<String>> = self.groups.iter().map(|g| vec![g.leader.clone()]).collect();
        for (site, &group) in self.members.iter().filter(|(s, g)| self.groups[**g].leader != **s) {
            groups[group].push(site.clone());
        }
        groups
    }

    /// The statistics; layers of a group share one value. Errors where a layer saw fewer tokens than `least`.
    pub(crate) fn finish(self, least: u64) -> Result<Stats> {
        let mut finished = Vec::new();
        for group in self.groups {
            let stats = group.sums.into_stats(&group.leader)?;
            if stats.count < least {
                let message = format!(
                    "it saw {} tokens, fewer than the {least} asked for; calibrate on more",
                    stats.count
                );
                return Err(Error::Stats { site: group.leader, message });
            }
            finished.push(Arc::new(stats));
        }
        Ok(self.members.into_iter().map(|(site, group)| (site, Arc::clone(&finished[group]))).collect())
    }
}

/// Which of a mask's places are tokens.
fn tokens(mask: &Tensor) -> Result<Vec<bool>> {
    let values = mask.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>()?;
    Ok(values.into_iter().map(|v| v != 0).collect())
}

/// The inputs as rows of f32, padding left out where `x` has one row per place of the mask, handed to `work`.
fn with_rows<T>(x: &Tensor, mask: Option<&[bool]>, work: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let inputs = x.dims().last().copied().unwrap_or(0);
    let tokens = mask.filter(|mask| mask.len() * inputs == x.elem_count() && mask.contains(&false));
    let (storage, layout) = x.storage_and_layout();
    if let (None, Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) =
        (tokens, &*storage, layout.contiguous_offsets())
    {
        return work(&values[start..end]);
    }
    drop(storage);
    let values = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let Some(tokens) = tokens else { return work(&values) };
    let rows = values.chunks_exact(inputs).zip(tokens).filter(|(_, token)| **token);
    work(&rows.flat_map(|(row, _)| row.iter().copied()).collect::<Vec<_>>())
}
