//! How long work tells about itself and is asked to stop.
//!
//! One trait, one method: the driver reports an [`Event`] and obeys the answer. Nothing is printed by the library.

/// What happened.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run begins: this many weights, of this many bytes in all.
    Started {
        /// Weights to visit.
        weights: usize,
        /// Their stored bytes.
        bytes: u64,
    },
    /// A pass that looks at the whole checkpoint begins.
    PassStarted {
        /// Its name.
        pass: &'a str,
    },
    /// A weight is finished (or was found finished when resuming).
    Weight {
        /// Its name.
        name: &'a str,
        /// Its bytes in the input.
        bytes: u64,
        /// Whether it was already finished in the run that is being resumed.
        resumed: bool,
    },
    /// Steps of a kind that only the pass knows, such as windows of calibration text.
    Step {
        /// What is being counted.
        what: &'a str,
        /// How many are done.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// Everything is written.
    Finished,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Stop as soon as it is safe; the run ends with [`crate::Error::Cancelled`].
    Cancel,
}

/// Receives events; its answer can cancel the work. Closures `Fn(&Event) -> Flow` are observers too.
pub trait Progress: Send + Sync {
    /// Called after each step of work, from the thread that did it.
    fn on(&self, event: &Event<'_>) -> Flow;
}

impl<F: Fn(&Event<'_>) -> Flow + Send + Sync> Progress for F {
    fn on(&self, event: &Event<'_>) -> Flow {
        self(event)
    }
}

/// Neither reports nor cancels.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn on(&self, _: &Event<'_>) -> Flow {
        Flow::Continue
    }
}
