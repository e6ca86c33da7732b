//! Quantization for Taper: integers of 2 to 8 bits, NF4, scale search, and the ecosystem's file formats.
//!
//! | I want to | I use |
//! |---|---|
//! | quantize a checkpoint | [`RoundNearest`] in a `taper_core::Pipeline` |
//! | open or save quantized checkpoints | [`codecs`] with `Checkpoint::open_with` |
//! | learn rounding on calibration text | [`Tuned`] |
//! | quantize with calibration | [`Gptq`] |
//! | quantize one weight | [`PackedInt::encode`], [`PackedNf4::encode`], from halves [`PackedInt::encode_values`] |
//! | store two bits a weight that work | [`Trellis`], [`PackedTrellis`] |
//! | choose a format per weight within a size | [`allocate`] |
//! | quantize slices of my own tensor type | [`mod@slice`] |
//! | multiply by integer weights with eight-bit activations | [`PackedInt::with_arithmetic`], for whole checkpoints [`codecs_with`] |
//! | round inputs by a scale from calibration (W8A8) | [`Activations::Static`] in [`RoundNearest::with_activations`] |
//! | know or force the instructions that products use | [`kernel::isa()`], [`kernel::force()`] |
//! | scale or turn a model before encoding it | [`Awq`], [`SmoothQuant`], [`Rotate`] |
//! | choose how scales are found | [`Fit`]: absmax, minmax, [`Hqq`], or [`fit::Search`], the default |
//!
//! ```
//! use taper_quant::{Fit, RoundNearest};
//! use taper_core::WeightPass;
//!
//! let pass = RoundNearest::int4(128)?.with_fit(Fit::MinMax).on_matrices();
//! # let _ = pass;
//! # Ok::<(), taper_quant::Error>(())
//! ```
//!
//! Not here: GPU kernels.

pub mod allocate;
pub mod code;
pub mod codec;
pub mod equivalence;
pub mod error;
pub mod fit;
pub mod kernel;
pub mod layout;
pub mod learn;
pub mod pack;
pub mod packed_int;
pub mod packed_nf4;
pub mod packed_trellis;
pub mod pass;
pub mod scales;
pub mod scheme;
pub mod settle;
pub mod slice;
pub mod values;

pub use code::nf4::Nf4Scheme;
pub use codec::{codecs, codecs_with};
pub use error::{Error, Result};
pub use fit::{Fit, Hqq, ScaleSign, Search};
pub use kernel::{ActivationScale, Arithmetic};
pub use layout::IntLayout;
pub use packed_int::PackedInt;
pub use packed_nf4::PackedNf4;
pub use packed_trellis::PackedTrellis;
pub use pass::{
    Awq, AwqSettings, FileFormat, Gptq, GptqSettings, Number, Rotate, RotateSettings, RoundNearest,
    RoundNearestSettings, Schedule, SmoothQuant, SmoothQuantSettings, Trellis, Tuned, TunedSettings,
    Weighting,
};
pub use scheme::{Activations, Bits, Granularity, ScaleType, Scheme, Symmetry};
pub use values::Values;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
