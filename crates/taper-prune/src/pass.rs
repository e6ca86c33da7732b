//! The passes: one file each, named as the recipe key spells it.
//!
//! Each settings type is what a recipe step deserialises to (kebab-case, unknown keys refused), and builds the pass with
//! `.on(select)`, or with the architecture's couplings where it cuts.

mod drop_layers;
mod magnitude;
mod magnitude_global;
mod n_of_m;
mod sparse_bitmask;
mod structured;

pub use drop_layers::{DropLayers, DropLayersSettings, Ends, Layers};
pub use magnitude::{Magnitude, MagnitudeOver, Scope, Sparsity};
pub use n_of_m::NOfM;
pub use sparse_bitmask::SparseBitmask;
pub use structured::{Amount, Structured, StructuredSettings};
