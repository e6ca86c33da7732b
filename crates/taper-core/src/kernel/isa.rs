//! Which instructions this machine has, and which of them are used.
//!
//! ```text
//! available() ─▶ those not above the cap of TAPER_ISA ─▶ the best of them, unless `force` said another
//! ```
//!
//! Neighbours: tables of kernels are chosen by [`isa`] and refined by [`features`].

use std::{
    fmt,
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use crate::{Error, Result};

/// The environment variable that caps the instruction set: `scalar`, `neon`, `avx2` or `avx512`.
pub const ISA_VARIABLE: &str = "TAPER_ISA";

/// An instruction set for which there is a table of kernels, narrower registers first. A cap of another family therefore
/// allows what is narrower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust: the specification.
    Scalar,
    /// AArch64 with NEON (Advanced SIMD): all of its machines but some without an operating system.
    Neon,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, VBMI and VNNI, and with all of [`Isa::Avx2`].
    Avx512,
}

impl Isa {
    /// All of them, slowest first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Neon, Self::Avx2, Self::Avx512];

    /// What [`ISA_VARIABLE`] calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// True where this machine has every instruction of the set.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => false,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    /// Reads a name, in any case. Errors where no instruction set has it.
    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name.trim()));
        found.ok_or_else(|| {
            let known = Self::ALL.map(|isa| format!("`{isa}`")).join(", ");
            Error::bad_option(ISA_VARIABLE, format!("`{name}`"), format!("expected one of {known}"))
        })
    }
}

/// Instructions beyond those of an [`Isa`], which some of its kernels use where the machine has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct Features {
    /// `vdpbf16ps` on 512 bits (AVX512_BF16), beyond [`Isa::Avx512`].
    pub bf16: bool,
    /// `vpdpbusd` on 256 bits without AVX-512 (AVX-VNNI), beyond [`Isa::Avx2`].
    pub avx_vnni: bool,
    /// `sdot` (FEAT_DotProd), beyond [`Isa::Neon`].
    pub dot_product: bool,
}

impl Features {
    /// What this machine has beyond an instruction set; nothing beyond one that it lacks.
    #[must_use]
    pub fn beyond(isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        if isa.is_available() {
            return Self {
                bf16: isa >= Isa::Avx512 && is_x86_feature_detected!("avx512bf16"),
                avx_vnni: isa >= Isa::Avx2 && is_x86_feature_detected!("avxvnni"),
                ..Self::default()
            };
        }
        #[cfg(target_arch = "aarch64")]
        if isa == Isa::Neon && isa.is_available() {
            return Self {
                dot_product: std::arch::is_aarch64_feature_detected!("dotprod"),
                ..Self::default()
            };
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = isa;
        Self::default()
    }
}

/// What the machine has beyond the instruction set in use.
#[must_use]
pub fn features() -> Features {
    Features::beyond(isa())
}

/// The instruction sets that this machine has, slowest first; always begins with [`Isa::Scalar`].
#[must_use]
pub fn available() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
}

/// The cap that [`ISA_VARIABLE`] asks for; `None` where it is not set or empty.
///
/// Errors where it names no instruction set. A library cannot refuse to start, so [`isa`] then uses the best one: programs
/// call this first and show the error, as the `taper` command does.
pub fn requested() -> Result<Option<Isa>> {
    match std::env::var_os(ISA_VARIABLE) {
        Some(name) if !name.is_empty() => name.to_string_lossy().parse().map(Some),
        _ => Ok(None),
    }
}

/// The instruction set in use: the one that was forced, else the best that the machine has and [`requested`] allows.
#[must_use]
pub fn isa() -> Isa {
    static BEST: OnceLock<Isa> = OnceLock::new();
    match Isa::ALL.get(usize::from(FORCED.load(Ordering::Relaxed)).wrapping_sub(1)) {
        Some(isa) => *isa,
        None => *BEST.get_or_init(|| best(requested().unwrap_or_default())),
    }
}

/// Uses this instruction set from now on, or with `None` the best one again (within what [`ISA_VARIABLE`] allows).
///
/// For tests and bug reports: it holds for the whole process. Returns false, and changes nothing, where the machine does
/// not have it.
pub fn force(isa: Option<Isa>) -> bool {
    if isa.is_some_and(|isa| !isa.is_available()) {
        return false;
    }
    FORCED.store(isa.map_or(0, |isa| isa as u8 + 1), Ordering::Relaxed);
    true
}

/// 0 where nothing is forced, else one more than the [`Isa`].
static FORCED: AtomicU8 = AtomicU8::new(0);

/// The best instruction set that is not above the cap.
fn best(cap: Option<Isa>) -> Isa {
    let allowed = available().into_iter().filter(|isa| cap.is_none_or(|cap| *isa <= cap));
    allowed.max().unwrap_or(Isa::Scalar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_holds() {
        assert_eq!(best(Some(Isa::Scalar)), Isa::Scalar);
        assert_eq!(best(None), *available().last().unwrap());
        assert!(best(Some(Isa::Avx2)) <= Isa::Avx2);
        assert!(best(Some(Isa::Neon)) <= Isa::Neon);
    }

    #[test]
    fn names_are_read_in_any_case_and_unknown_ones_are_errors() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse::<Isa>().unwrap(), isa);
        }
        assert_eq!(" SCALAR ".parse::<Isa>().unwrap(), Isa::Scalar);
        let refusal = "sse9".parse::<Isa>().unwrap_err().to_string();
        assert_eq!(refusal, "`TAPER_ISA` is `sse9`; expected one of `scalar`, `neon`, `avx2`, `avx512`");
    }

    #[test]
    fn the_specification_has_no_extra_instructions() {
        assert_eq!(Features::beyond(Isa::Scalar), Features::default());
        assert!(available().starts_with(&[Isa::Scalar]));
    }
}
