//! The progress bar, on standard error; absent where that is no terminal or JSON is asked for.

use indicatif::{ProgressBar, ProgressStyle};
use taper::{Event, Flow, Progress};

use crate::{interrupt, terminal::Terminal};

const BYTES: &str = "{msg:14} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left";
const STEPS: &str = "{msg:14} {wide_bar} {pos}/{len} {per_sec} {eta} left";

/// Shows progress, and stops the work when Ctrl-C asked for it.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar that appears with the first event.
    pub(crate) fn new(terminal: Terminal) -> Self {
        // On standard error, and hidden by itself where that is no terminal.
        Self(if terminal == Terminal::Json { ProgressBar::hidden() } else { ProgressBar::no_length() })
    }

    /// Takes the bar off the screen.
    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
    }

    fn begin(&self, template: &str, length: u64) {
        // The templates are constants of this file; a wrong one would only cost the looks.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        self.0.reset();
        self.0.set_length(length);
    }
}

impl Progress for Bar {
    fn on(&self, event: &Event<'_>) -> Flow {
        match event {
            Event::Started { bytes, .. } => {
                self.begin(BYTES, *bytes);
                self.0.set_message("compressing");
            }
            Event::PassStarted { pass } => self.0.set_message((*pass).to_owned()),
            Event::Weight { bytes, resumed, .. } => {
                self.0.inc(*bytes);
                if *resumed {
                    // What an earlier run did says nothing about the speed of this one.
                    self.0.reset_eta();
                }
            }
            Event::Step { what, done, total } => {
                if *done <= 1 || self.0.length() != Some(*total as u64) {
                    self.begin(STEPS, *total as u64);
                    self.0.set_message((*what).to_owned());
                }
                self.0.set_position(*done as u64);
            }
            _ => {}
        }
        interrupt::flow()
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}
