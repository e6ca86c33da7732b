//! What every Taper pass stands on, for those who extend it.
//!
//! Programs that use Taper want the `taper` crate, which re-exports all of this.

pub mod blocks;
pub mod build;
pub mod calibrate;
pub mod checkpoint;
pub mod codec;
pub mod coupling;
pub mod error;
pub mod kernel;
pub mod linalg;
pub mod nn;
pub mod observe;
pub mod pass;
pub mod pipeline;
pub mod progress;
pub mod report;
pub mod select;
pub mod stats;
pub mod store;
pub mod verify;
pub mod weight;

pub use blocks::{Batch, Block, Blocks, Entrance, Exit, Gradients, Hidden, Trace};
pub use build::{Architecture, WeightBuilder};
pub use calibrate::Calibration;
pub use checkpoint::{Checkpoint, WeightInfo};
pub use codec::{Claim, Codec, Codecs, StoredWeight};
pub use coupling::{Coupling, Couplings};
pub use error::{Error, Result};
pub use observe::{Observer, Recorder};
pub use pass::{Context, Coordinates, Needs, Outline, Pass, Reading, Rewrite, Stage, WeightPass};
pub use pipeline::{Pipeline, Run};
pub use progress::{Event, Flow, Progress, Silent};
pub use report::{Outcome, Report};
pub use select::Select;
pub use stats::{Gram, InputStats, Stats};
pub use weight::{Encoding, Part, Parts, Rows, SharedWeight, Weight};
