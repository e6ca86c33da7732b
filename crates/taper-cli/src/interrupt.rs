//! Ctrl-C: the first asks the work to stop where it can be resumed, the second ends the process at once.

use std::sync::atomic::{AtomicBool, Ordering};
use taper::{Event, Flow, Progress};

use crate::failure::Failure;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Begins to listen (also for a request to terminate).
pub(crate) fn listen() -> Result<(), Failure> {
    let heard = || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(heard).map_err(|e| Failure::Core(taper::Error::other(e)))
}

/// What the work should do now.
pub(crate) fn flow() -> Flow {
    if ASKED.load(Ordering::SeqCst) { Flow::Cancel } else { Flow::Continue }
}

/// An error where somebody asked to stop.
pub(crate) fn check() -> Result<(), Failure> {
    match flow() {
        Flow::Continue => Ok(()),
        Flow::Cancel => Err(Failure::Cancelled(String::new())),
    }
}

/// An observer that shows nothing and stops when asked to.
pub(crate) struct Quiet;

impl Progress for Quiet {
    fn on(&self, _: &Event<'_>) -> Flow {
        flow()
    }
}
