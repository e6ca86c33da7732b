//! What can go wrong in pruning and nowhere else.
//!
//! Options out of range, values that are not finite and weights that cannot be read are [`taper_core::Error`]s; these
//! are about couplings and layers. They travel inside `taper_core::Error::Other` and can be downcast from there.

use taper_core::coupling::Family;

/// What failed, and what would be right.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The architecture declares no coupling of the family.
    #[error("the architecture declares no `{family}` couplings; it declares {declared}")]
    NoCouplings {
        /// The family asked for.
        family: Family,
        /// The families that are declared, for people.
        declared: String,
    },

    /// A coupling contradicts the checkpoint.
    #[error("coupling `{coupling}`, weight `{weight}`: {message}")]
    BadCoupling {
        /// The coupling.
        coupling: String,
        /// The member.
        weight: String,
        /// What is wrong, and what would be right.
        message: String,
    },

    /// Couplings that share a key of `config.json` would end with different sizes.
    #[error(
        "couplings `{first}` and `{second}` share the config key `{key}` and would keep {first_units} and {second_units} units; keep equally many"
    )]
    Uneven {
        /// The key.
        key: String,
        /// A coupling.
        first: String,
        /// Its units.
        first_units: usize,
        /// Another.
        second: String,
        /// Its units.
        second_units: usize,
    },

    /// Explicit units that do not fit.
    #[error("units of coupling `{coupling}`: {message}")]
    BadUnits {
        /// The coupling.
        coupling: String,
        /// What is wrong, and what would be right.
        message: String,
    },

    /// The architecture declares no stack of layers.
    #[error(
        "the architecture declares no stack of layers, so none can be dropped; implement `Couplings::stack`"
    )]
    NoStack,

    /// Layers that do not fit.
    #[error("layers to drop: {message}")]
    BadLayers {
        /// What is wrong, and what would be right.
        message: String,
    },
}

impl From<Error> for taper_core::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}
