//! Loops of transformers that candle has no fast form of, in f32 on the CPU: for inference, and for learning in plain code.
//!
//! ```text
//! attention.rs   softmax(q kᵀ / √d) v over a cache of its own, heads split and turned on the way
//! gate.rs        act(g) ⊙ u, act(x)
//! sum.rs         x + y
//! back.rs        norms and gates with their way back; attention/back.rs the same for attention
//! smooth.rs      e^x and Φ(x) that compilers vectorise
//! ```
//!
//! All of it is plain code in fixed lanes and a fixed order, compiled again for wider registers and chosen at run time: every
//! machine and any number of threads give the same bits. `unsafe` is only the calls of what was detected.
//!
//! Nothing here knows candle's gradients: [`plain`] says whether a tensor may be used, and callers keep candle's differentiable
//! forms beside.

#![allow(unsafe_code)]

pub(crate) mod attention;
pub(crate) mod back;
pub(crate) mod gate;
mod smooth;
pub(crate) mod sum;

use candle_core::{CpuStorage, Storage, Tensor};

/// True where no gradient is tracked and the values lie in memory as f32, in order.
pub(crate) fn plain(x: &Tensor) -> bool {
    !x.track_op() && values(x, |_| ()).is_some()
}

/// Hands out the values of a tensor; `None` where they are not f32 in memory, in order.
pub(crate) fn values<T>(x: &Tensor, work: impl FnOnce(&[f32]) -> T) -> Option<T> {
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => values.get(start..end).map(work),
        _ => None,
    }
}

/// Compiles a loop for the registers that machines have, and calls the widest that this one has.
macro_rules! widest {
    ($(#[$doc:meta])* $vis:vis fn $name:ident = $body:path; ($($arg:ident: $kind:ty),*)) => {
        $(#[$doc])*
        $vis fn $name($($arg: $kind),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn wide($($arg: $kind),*) {
                    $body($($arg),*);
                }
                #[target_feature(enable = "avx2")]
                fn middle($($arg: $kind),*) {
                    $body($($arg),*);
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the instructions are there.
                    return unsafe { wide($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the instructions are there.
                    return unsafe { middle($($arg),*) };
                }
            }
            $body($($arg),*);
        }
    };
}
pub(crate) use widest;
