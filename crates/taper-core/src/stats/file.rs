//! Statistics in a file, so that one calibration serves many recipes.
//!
//! A safetensors file with one metadata key, `taper-stats`: sorted JSON that says which group of arrays each layer has.
//! Layers with one input have one group. What is read is what was written, to the bit.
//!
//! ```text
//! {"layers": {"model.layers.0.self_attn.q_proj.weight": 0, …}, "version": 1}
//!
//! 0.count        U64 [1]       0.sum_squares  F64 [d]
//! 0.mean, 0.mean_abs, 0.min, 0.max            F32 [d]      (absent where only squares are known)
//! 0.gram.counts  U64 [2]       0.gram.0, 0.gram.1   F64 [d (d + 1) / 2]      lower triangles, row by row
//! 0.cross        F64 [d, d]
//! ```
//!
//! Neighbours: [`super::importance`] for the importance matrices of other programs.

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Gram, InputStats, Stats};
use crate::{
    Error, Result,
    linalg::{Symmetric, symmetric::triangle},
    store::mmap::Mapped,
};

/// The metadata key.
const KEY: &str = "taper-stats";

/// The version of the file.
const VERSION: u64 = 1;

/// Writes statistics to a new file, which appears whole or not at all. Errors where it exists already.
pub fn save(stats: &Stats, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    if path.exists() {
        return Err(Error::OutputExists { path: path.to_owned() });
    }
    let (layers, groups) = grouped(stats);
    let mut arrays: Vec<(String, Array<'_>)> = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        arrays.extend(arrays_of(group).into_iter().map(|(name, array)| (format!("{index}.{name}"), array)));
    }
    let mut views = Vec::new();
    for (name, (dtype, shape, bytes)) in &arrays {
        views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(Error::other)?));
    }
    let facts = json!({ "version": VERSION, "layers": layers }).to_string();
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    safetensors::serialize_to_file(views, Some(HashMap::from([(KEY.to_owned(), facts)])), &partial)
        .map_err(Error::other)
        .and_then(|()| std::fs::rename(&partial, path).map_err(Error::io(path)))
        .inspect_err(|_| drop(std::fs::remove_file(&partial)))
}

/// Reads statistics. Errors say what is wrong with the file.
pub fn open(path: impl AsRef<Path>) -> Result<Stats> {
    let path = path.as_ref();
    let mapped = Mapped::open(path)?;
    read(mapped.bytes()).map_err(|message| Error::Stats { site: path.display().to_string(), message })
}

/// Type, shape and bytes.
type Array<'a> = (Dtype, Vec<usize>, &'a [u8]);

/// The group of each layer, and the groups in the order of the first layer of each.
fn grouped(stats: &Stats) -> (BTreeMap<&str, usize>, Vec<&Arc<InputStats>>) {
    let mut groups: Vec<&Arc<InputStats>> = Vec::new();
    let layers = stats.iter().map(|(name, seen)| {
        let known = groups.iter().position(|g| Arc::ptr_eq(g, seen));
        let group = known.unwrap_or_else(|| {
            groups.push(seen);
            groups.len() - 1
        });
        (name, group)
    });
    (layers.collect(), groups)
}

fn arrays_of(stats: &InputStats) -> Vec<(&'static str, Array<'_>)> {
    fn array<T: bytemuck::NoUninit>(dtype: Dtype, values: &[T]) -> Array<'_> {
        (dtype, vec![values.len()], bytemuck::cast_slice(values))
    }
    let mut arrays = vec![
        ("count", array(Dtype::U64, std::slice::from_ref(&stats.count))),
        ("sum_squares", array(Dtype::F64, &stats.sum_squares)),
    ];
    let ranges =
        [("mean", &stats.mean), ("mean_abs", &stats.mean_abs), ("min", &stats.min), ("max", &stats.max)];
    arrays.extend(ranges.into_iter().filter(|(_, v)| !v.is_empty()).map(|(n, v)| (n, array(Dtype::F32, v))));
    if let Some(gram) = &stats.gram {
        arrays.push(("gram.counts", array(Dtype::U64, &gram.counts)));
        arrays.push(("gram.0", array(Dtype::F64, gram.halves[0].lower())));
        arrays.push(("gram.1", array(Dtype::F64, gram.halves[1].lower())));
    }
    if let Some(cross) = &stats.cross {
        let d = stats.inputs();
        arrays.push(("cross", (Dtype::F64, vec![d, d], bytemuck::cast_slice(cross))));
    }
    arrays
}

/// Reads the bytes of a file.
pub fn read(bytes: &[u8]) -> Result<Stats, String> {
    let (_, header) =
        SafeTensors::read_metadata(bytes).map_err(|e| format!("is no safetensors file: {e}"))?;
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let facts = header.metadata().as_ref().and_then(|m| m.get(KEY));
    let facts = facts.ok_or_else(|| format!("has no `{KEY}`; it was not written as statistics"))?;
    let facts: Value = serde_json::from_str(facts).map_err(|e| format!("its `{KEY}` is no JSON: {e}"))?;
    match facts.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        found => return Err(format!("is of version {found:?}; this reads version {VERSION}")),
    }
    let layers = facts.get("layers").and_then(Value::as_object).ok_or("has no `layers`")?;
    let mut groups: BTreeMap<u64, Arc<InputStats>> = BTreeMap::new();
    let mut stats = Vec::new();
    for (layer, group) in layers {
        let group = group.as_u64().ok_or_else(|| format!("the group of `{layer}` is no number"))?;
        let seen = match groups.get(&group) {
            Some(seen) => Arc::clone(seen),
            None => {
                let seen = read_group(&Arrays { tensors: &tensors, group })
                    .map_err(|message| format!("group {group}: {message}"))?;
                Arc::clone(groups.entry(group).or_insert(Arc::new(seen)))
            }
        };
        stats.push((layer.clone(), seen));
    }
    if stats.is_empty() {
        return Err("holds no layers".to_owned());
    }
    Ok(stats.into_iter().collect())
}

/// The arrays of one group.
struct Arrays<'a> {
    tensors: &'a SafeTensors<'a>,
    group: u64,
}

impl Arrays<'_> {
    /// An array that may be absent; `len` values of the type `dtype`.
    fn optional<T: bytemuck::AnyBitPattern>(
        &self,
        name: &str,
        dtype: Dtype,
        len: Option<usize>,
    ) -> Result<Option<Vec<T>>, String> {
        let Ok(view) = self.tensors.tensor(&format!("{}.{name}", self.group)) else { return Ok(None) };
        let found = view.data().len() / size_of::<T>();
        if view.dtype() != dtype || len.is_some_and(|len| len != found) {
            return Err(format!(
                "`{name}` is {:?} of {found} values; expected {dtype:?}{}",
                view.dtype(),
                len.map_or_else(String::new, |len| format!(" of {len}"))
            ));
        }
        Ok(Some(view.data().chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()))
    }

    fn needed<T: bytemuck::AnyBitPattern>(
        &self,
        name: &str,
        dtype: Dtype,
        len: Option<usize>,
    ) -> Result<Vec<T>, String> {
        self.optional(name, dtype, len)?.ok_or_else(|| format!("has no `{name}`"))
    }
}

fn read_group(arrays: &Arrays<'_>) -> Result<InputStats, String> {
    let count = arrays.needed::<u64>("count", Dtype::U64, Some(1))?[0];
    let sum_squares = arrays.needed::<f64>("sum_squares", Dtype::F64, None)?;
    let d = sum_squares.len();
    if count == 0 || d == 0 {
        return Err(format!("saw {count} vectors of {d} inputs; expected at least one of each"));
    }
    if !sum_squares.iter().all(|s| s.is_finite() && *s >= 0.0) {
        return Err("`sum_squares` has values that are no sums of squares".to_owned());
    }
    let range = |name: &str| -> Result<Vec<f32>, String> {
        let values = arrays.optional::<f32>(name, Dtype::F32, Some(d))?.unwrap_or_default();
        if values.iter().all(|v| v.is_finite()) { Ok(values) } else { Err(format!("`{name}` is not finite")) }
    };
    let (mean, mean_abs, min, max) = (range("mean")?, range("mean_abs")?, range("min")?, range("max")?);
    let known = [&mean, &mean_abs, &min, &max].map(Vec::len);
    if known.iter().any(|n| *n != known[0]) {
        return Err("some of `mean`, `mean_abs`, `min` and `max` are there and some are not".to_owned());
    }
    let gram = read_gram(arrays, d, count)?;
    let square = d.checked_mul(d).ok_or("has more inputs than can be")?;
    let cross = finite("cross", arrays.optional::<f64>("cross", Dtype::F64, Some(square))?)?;
    Ok(InputStats { count, mean, min, max, mean_abs, sum_squares, gram, cross })
}

fn read_gram(arrays: &Arrays<'_>, d: usize, count: u64) -> Result<Option<Gram>, String> {
    let Some(counts) = arrays.optional::<u64>("gram.counts", Dtype::U64, Some(2))? else { return Ok(None) };
    if counts[0].checked_add(counts[1]) != Some(count) {
        return Err(format!("the halves of its Gram matrix saw {counts:?} vectors of {count}"));
    }
    let long = d.checked_mul(d).map(|_| triangle(d)).ok_or("has more inputs than can be")?;
    let half = |name: &str| {
        let lower = finite(name, Some(arrays.needed::<f64>(name, Dtype::F64, Some(long))?))?;
        lower
            .and_then(|lower| Symmetric::from_lower(d, lower))
            .ok_or_else(|| format!("`{name}` is no triangle"))
    };
    Ok(Some(Gram { counts: [counts[0], counts[1]], halves: [half("gram.0")?, half("gram.1")?] }))
}

fn finite(name: &str, values: Option<Vec<f64>>) -> Result<Option<Vec<f64>>, String> {
    match &values {
        Some(v) if v.iter().any(|x| !x.is_finite()) => Err(format!("`{name}` is not finite")),
        _ => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Needs, stats::Accumulator};

    fn stats() -> Stats {
        let rows: Vec<f32> = (0..5 * 700).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 300.0).collect();
        let mut sums = Accumulator::new(5, Needs::CrossGram);
        sums.add_beside("q", &rows, &rows.iter().map(|x| x * 1.5).collect::<Vec<_>>()).unwrap();
        let shared = Arc::new(sums.finish("q").unwrap());
        let mut light = Accumulator::new(3, Needs::InputNorms);
        light.add("o", &rows[..9]).unwrap();
        let light = Arc::new(light.finish("o").unwrap());
        [("q", &shared), ("k", &shared), ("o", &light)]
            .map(|(n, s)| (n.to_owned(), Arc::clone(s)))
            .into_iter()
            .collect()
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.safetensors");
        save(&stats(), &path).unwrap();
        let again = open(&path).unwrap();
        for (name, seen) in stats().iter() {
            assert_eq!(again.get(name).unwrap(), seen.as_ref());
        }
        assert!(std::ptr::eq(again.get("q").unwrap(), again.get("k").unwrap()), "one value for both");
        assert!(matches!(save(&stats(), &path), Err(Error::OutputExists { .. })));
        let twice = dir.path().join("twice.safetensors");
        save(&stats(), &twice).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&twice).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing partial stays");
    }

    #[test]
    fn wrong_files_say_what_is_wrong() {
        let file = |facts: &str, arrays: Vec<(&str, Array<'_>)>| {
            let views: Vec<_> = arrays
                .iter()
                .map(|(n, (d, s, b))| (*n, TensorView::new(*d, s.clone(), b).unwrap()))
                .collect();
            let metadata = HashMap::from([(KEY.to_owned(), facts.to_owned())]);
            read(&safetensors::serialize(views, Some(metadata)).unwrap()).unwrap_err()
        };
        let one = 1u64.to_le_bytes();
        let nan = f64::NAN.to_le_bytes();
        let facts = r#"{"version":1,"layers":{"q":0}}"#;
        assert!(read(b"").unwrap_err().contains("no safetensors"));
        assert!(file("{}", vec![]).contains("version"));
        assert!(file(r#"{"version":2}"#, vec![]).contains("this reads version 1"));
        assert!(file(r#"{"version":1,"layers":{}}"#, vec![]).contains("no layers"));
        assert!(file(facts, vec![]).contains("group 0: has no `count`"));
        let count = ("0.count", (Dtype::U64, vec![1], one.as_slice()));
        assert!(file(facts, vec![count.clone()]).contains("no `sum_squares`"));
        let squares = ("0.sum_squares", (Dtype::F64, vec![1], nan.as_slice()));
        assert!(file(facts, vec![count, squares]).contains("no sums of squares"));
    }
}
