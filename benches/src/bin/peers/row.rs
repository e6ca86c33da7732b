//! What comes out: one row for each job and number of threads.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use taper_benches::kernel::Limits;

use crate::{
    Failed,
    clock::{self, Effort},
    job::{Race, Spec},
};

/// A timed job. Times are medians per call, in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) job: String,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) batch: usize,
    pub(crate) threads: usize,
    pub(crate) taper_ms: f64,
    /// The fastest peer.
    pub(crate) candle_ms: Option<f64>,
    /// What the machine's limits allow.
    pub(crate) limit_ms: Option<f64>,
    /// What is asked.
    pub(crate) target_ms: Option<f64>,
    /// Which peer `candle_ms` is of.
    pub(crate) peer: Option<String>,
    /// candle's time over ours.
    pub(crate) ratio: Option<f64>,
    /// The limit over our time.
    pub(crate) of_limit: Option<f64>,
    /// Bytes over our time: of the packed weight, or of f32 values where they are encoded or decoded.
    pub(crate) gbps: Option<f64>,
    /// Operations over our time.
    pub(crate) gflops: Option<f64>,
    /// Σ (a − b)² / Σ a² of our result against the plain one.
    pub(crate) error: f64,
    /// The same of the peer's.
    pub(crate) candle_error: Option<f64>,
    /// Times of all peers and figures of the job alone.
    #[serde(flatten)]
    pub(crate) more: Map<String, Value>,
}

impl Row {
    /// Times a job.
    pub(crate) fn of(spec: &Spec, mut race: Race, limits: &Limits, effort: Effort) -> Result<Self, Failed> {
        let mut works = vec![&mut race.ours.work];
        works.extend(race.peers.iter_mut().map(|peer| &mut peer.work));
        works.extend(&mut race.reading);
        let mut times = clock::race(&mut works, effort)?;
        times.iter_mut().for_each(|ms| *ms /= race.steps as f64);
        let ours = times[0];
        let theirs = race.peers.iter().zip(&times[1..]);
        let best = theirs.clone().min_by(|a, b| a.1.total_cmp(b.1));
        let candle_ms = best.map(|(_, ms)| *ms);
        let reading = race.reading.is_some().then(|| times[times.len() - 1]);
        let limit_ms = reading.or_else(|| race.cost.limit_ms(limits));
        let mut more: Map<String, Value> =
            theirs.map(|(peer, ms)| (format!("{}_ms", peer.name.replace(' ', "_")), (*ms).into())).collect();
        more.extend(race.extra.iter().map(|(key, figure)| ((*key).to_owned(), (*figure).into())));
        let per_second = |amount: f64| (amount > 0.0).then_some(amount / ours / 1e6);
        Ok(Self {
            job: spec.job.clone(),
            rows: spec.shape[0],
            cols: spec.shape[1],
            batch: spec.batch,
            threads: limits.threads,
            taper_ms: ours,
            candle_ms,
            limit_ms,
            target_ms: race.target.ms(limits.threads, race.cost.stated, candle_ms, limit_ms),
            peer: best.map(|(peer, _)| peer.name.clone()),
            ratio: candle_ms.map(|ms| ms / ours),
            of_limit: limit_ms.map(|ms| ms / ours),
            gbps: per_second(race.cost.stated),
            gflops: per_second(race.cost.ops),
            error: race.ours.error,
            candle_error: best.map(|(peer, _)| peer.error),
            more,
        })
    }
}
