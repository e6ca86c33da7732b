//! A number of threads for hosts that have no rayon pool of their own.
//!
//! Neighbours: [`super::sheet`] is what runs in them.

use std::num::NonZero;

use crate::{Error, Result};

/// A set of threads. Whatever is computed in [`Threads::run`] uses these and no others.
///
/// They sleep while there is nothing to do and end when this is dropped. Results do not depend on their number.
///
/// ```
/// use std::num::NonZero;
/// use taper_core::kernel::Threads;
///
/// let two = Threads::new(NonZero::new(2).unwrap())?;
/// assert_eq!(two.run(Threads::current), two.count());
/// # Ok::<(), taper_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Threads(rayon::ThreadPool);

impl Threads {
    /// So many threads. Errors where the system does not give them.
    pub fn new(count: NonZero<usize>) -> Result<Self> {
        let name = |index| format!("taper-{index}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count.get()).thread_name(name).build();
        pool.map(Self).map_err(Error::other)
    }

    /// How many these are.
    #[must_use]
    pub fn count(&self) -> NonZero<usize> {
        NonZero::new(self.0.current_num_threads()).unwrap_or(NonZero::<usize>::MIN)
    }

    /// How many threads a computation that begins here would use: those of rayon's current pool.
    #[must_use]
    pub fn current() -> NonZero<usize> {
        NonZero::new(rayon::current_num_threads()).unwrap_or(NonZero::<usize>::MIN)
    }

    /// Runs a computation in these threads and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.install(work)
    }
}
