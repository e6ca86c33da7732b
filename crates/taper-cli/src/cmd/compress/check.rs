//! A plan's prediction beside what came of it.

use serde::Serialize;
use std::{fmt, path::Path};
use taper::{
    Checkpoint, Report,
    plan::{Expected, Moved},
};

use super::statistics;
use crate::{args::Compress, cmd::plan, failure::Failure, table::thousands};

/// What was predicted, and what was found.
#[derive(Debug, Serialize)]
pub(super) struct Checked {
    /// What the plan said.
    expected: Expected,
    /// Bytes of all weights.
    total_bytes: u64,
    /// The divergence on the part of the calibration text that statistics did not see; where there is such a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<Moved>,
}

impl Checked {
    /// Looks at what was written.
    pub(super) fn of(
        args: &Compress,
        expected: Expected,
        original: &Checkpoint,
        out: &Path,
        report: &Report,
    ) -> Result<Self, Failure> {
        let judge = match &args.calibrate {
            Some(text) => {
                let seen = statistics::windows(args, original)?;
                plan::judge_if_any(original, text, args.window, seen, None)?
            }
            None => None,
        };
        let measured = match judge {
            Some(judge) => Some(judge.judge(&taper::open(out)?)?),
            None => None,
        };
        Ok(Self { expected, total_bytes: report.output.bytes, measured })
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (planned, found) = (self.expected.total_bytes, self.total_bytes);
        match planned == found {
            true => write!(f, "plan: {} bytes of weights as predicted", thousands(found))?,
            false => {
                write!(
                    f,
                    "plan: {} bytes of weights were predicted, {} came",
                    thousands(planned),
                    thousands(found)
                )?;
            }
        }
        write!(f, "; divergence {:.5} predicted", self.expected.divergence)?;
        match &self.measured {
            Some(found) => {
                write!(
                    f,
                    ", {:.5} measured on the calibration text's next {}",
                    found.divergence, found.judged
                )?;
                match found.top1_agreement {
                    Some(share) => write!(f, " windows (top-1 agreement {:.2} %)", 100.0 * share),
                    None => write!(f, " sentences"),
                }
            }
            None => write!(f, "; measure it with `taper eval --text FILE --against ORIGINAL`"),
        }
    }
}
