//! The second entrance: everything that works on plain slices, in one place.
//!
//! No candle type appears here, so an engine with another tensor type can call all of it. The passes are built on
//! exactly these functions.

pub use crate::mask::{
    kept_of_run, prune_lowest, prune_lowest_per_row, prune_n_of_m, pruned_count, zero_pruned,
};
pub use crate::score::magnitude::magnitudes;
pub use crate::sparse::{pack_mask, popcount, row_offsets};
pub use crate::structured::{
    Axis, MemberSquares, UnitScore, cut_units, highest_units, kept_units, mask_units, path_gain, unit_scores,
    unit_squares,
};
pub use crate::threshold::{Coarse, Fine, Threshold};
