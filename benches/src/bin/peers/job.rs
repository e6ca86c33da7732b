//! What is compared: a job, who does it, what it costs at least, and what is asked of us.
//!
//! ```text
//! limit = max(bytes / bandwidth of their source, operations / peak of the unit)
//! ```
//!
//! Neighbours: `clock.rs` times a [`Race`], `row.rs` is what comes out, the other files make jobs.

use taper_benches::kernel::{Limits, Unit};

use crate::{Failed, clock::Work, shelf::Shelf};

/// A job by name and size; making it (weights, checks) is put off until it is wanted.
pub(crate) struct Spec {
    /// What, such as `int4-g128-int8`.
    pub(crate) job: String,
    /// Rows and columns of the weight.
    pub(crate) shape: [usize; 2],
    /// Tokens.
    pub(crate) batch: usize,
    /// Makes and checks it.
    pub(crate) make: Make,
}

/// Makes and checks a job.
pub(crate) type Make = Box<dyn Fn(&Shelf) -> Result<Race, Failed>>;

impl Spec {
    pub(crate) fn new(
        job: impl Into<String>,
        shape: [usize; 2],
        batch: usize,
        make: impl Fn(&Shelf) -> Result<Race, Failed> + 'static,
    ) -> Self {
        Self { job: job.into(), shape, batch, make: Box::new(make) }
    }

    /// What `--jobs` selects by: `int4-g128-int8 4096x4096 x512`.
    pub(crate) fn id(&self) -> String {
        format!("{} {}x{} x{}", self.job, self.shape[0], self.shape[1], self.batch)
    }
}

/// One who does the job.
pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) work: Work,
    /// How far its result is from the plain one: Σ (a − b)² / Σ a².
    pub(crate) error: f64,
}

/// A job that is ready to be timed.
pub(crate) struct Race {
    pub(crate) ours: Contender,
    /// The fastest of them is compared with us.
    pub(crate) peers: Vec<Contender>,
    pub(crate) cost: Cost,
    /// Reads as many bytes and does no more, in turn with the others: the limit of that moment, instead of that of `cost`.
    pub(crate) reading: Option<Work>,
    pub(crate) target: Target,
    /// Keys and figures of this job alone.
    pub(crate) extra: Vec<(&'static str, f64)>,
    /// What a call does so many times over; times are stated for one.
    pub(crate) steps: usize,
}

/// Where bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// From memory.
    Memory,
    /// From the last level of cache.
    Cache,
    /// Read from memory and written back to it.
    Copy,
}

/// What a job costs at least.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// All that must be read and written.
    pub(crate) bytes: f64,
    pub(crate) source: Source,
    pub(crate) ops: f64,
    /// What computes; `None` where only bytes count.
    pub(crate) unit: Option<Unit>,
    /// The bytes that speeds are stated in.
    pub(crate) stated: f64,
}

impl Cost {
    /// Not known.
    pub(crate) const NONE: Self =
        Self { bytes: 0.0, source: Source::Memory, ops: 0.0, unit: None, stated: 0.0 };

    /// Values of f32 read and `packed` bytes written, or the other way; speeds are stated in bytes of f32.
    pub(crate) fn coding(values: usize, packed: usize) -> Self {
        let stated = 4.0 * values as f64;
        Self { bytes: stated + packed as f64, source: Source::Copy, ops: 0.0, unit: None, stated }
    }

    /// A product of `batch` tokens with a weight that takes `bytes`; the weight is in cache if it fits well.
    pub(crate) fn product(shape: [usize; 2], batch: usize, bytes: usize, unit: Unit) -> Self {
        const FITS: usize = 20 << 20;
        let source = if bytes <= FITS { Source::Cache } else { Source::Memory };
        let ops = 2.0 * (shape[0] * shape[1] * batch) as f64;
        Self { bytes: bytes as f64, source, ops, unit: Some(unit), stated: bytes as f64 }
    }

    /// The least milliseconds; `None` where the machine's limit is not known.
    pub(crate) fn limit_ms(&self, limits: &Limits) -> Option<f64> {
        let bandwidth = match self.source {
            Source::Memory => limits.memory,
            Source::Cache => limits.cache,
            Source::Copy => limits.copy,
        };
        let moving = self.bytes / bandwidth;
        match self.unit {
            None => (self.bytes > 0.0).then_some(moving * 1e3),
            Some(unit) => limits.of(unit).map(|peak| moving.max(self.ops / peak) * 1e3),
        }
    }
}

/// What is asked, with two threads unless said otherwise. The factors are those of the best library known over candle,
/// measured together elsewhere, and what we ask above it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// Nothing.
    None,
    /// At most this many times candle's time.
    Candle(f64),
    /// At least this part of the limit.
    Limit(f64),
    /// This part of the limit; on one thread this many times candle's time.
    LimitOrCandle(f64, f64),
    /// At least this many stated bytes per second.
    Rate(f64),
    /// At most this many milliseconds.
    Milliseconds(f64),
}

impl Target {
    /// Milliseconds to reach.
    pub(crate) fn ms(
        self,
        threads: usize,
        stated: f64,
        candle: Option<f64>,
        limit: Option<f64>,
    ) -> Option<f64> {
        match (self, threads) {
            (Self::Milliseconds(ms), _) => Some(ms),
            (Self::LimitOrCandle(_, factor), 1) => candle.map(|ms| ms * factor),
            (Self::None, _) | (_, ..2) => None,
            (Self::Candle(factor), _) => candle.map(|ms| ms * factor),
            (Self::Limit(part) | Self::LimitOrCandle(part, _), _) => limit.map(|ms| ms / part),
            (Self::Rate(rate), _) => Some(stated / rate * 1e3),
        }
    }
}
