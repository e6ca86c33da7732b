//! Matrices and weights that several jobs share, made when they are first wanted.

use std::{cell::RefCell, collections::HashMap, hash::Hash, rc::Rc, sync::Arc};
use taper::{
    candle::{
        DType, Device, Tensor,
        quantized::{GgmlDType, QMatMul, QTensor},
    },
    quant::{
        Bits, Fit, Granularity, IntLayout, Nf4Scheme, PackedInt, PackedNf4, Scheme,
        codec::bitsandbytes_nf4::ValueType,
    },
};
use taper_benches::matrix::gaussian;

use crate::Failed;

/// Rows and columns.
pub(crate) type Shape = [usize; 2];

/// A map that fills itself.
struct Made<K, V>(RefCell<HashMap<K, V>>);

impl<K, V> Default for Made<K, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Eq + Hash, V: Clone> Made<K, V> {
    fn get(&self, key: K, make: impl FnOnce() -> Result<V, Failed>) -> Result<V, Failed> {
        if let Some(value) = self.0.borrow().get(&key) {
            return Ok(value.clone());
        }
        let value = make()?;
        self.0.borrow_mut().insert(key, value.clone());
        Ok(value)
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Shelf {
    values: Made<Shape, Arc<Vec<f32>>>,
    tokens: Made<Shape, Tensor>,
    ints: Made<(u8, usize, Shape), PackedInt>,
    nf4: Made<(usize, Shape), PackedNf4>,
    quantized: Made<(u32, Shape), Candle>,
}

/// A weight as candle quantizes it.
#[derive(Clone)]
pub(crate) struct Candle {
    pub(crate) tensor: Arc<QTensor>,
    pub(crate) layer: Rc<QMatMul>,
}

impl Shelf {
    /// A Gaussian weight, row-major.
    pub(crate) fn values(&self, shape: Shape) -> Result<Arc<Vec<f32>>, Failed> {
        self.values.get(shape, || Ok(Arc::new(gaussian(shape[0] * shape[1], 1))))
    }

    /// The same as a tensor.
    pub(crate) fn dense(&self, shape: Shape, dtype: DType) -> Result<Tensor, Failed> {
        Ok(Tensor::from_slice(&self.values(shape)?, &shape, &Device::Cpu)?.to_dtype(dtype)?)
    }

    /// Gaussian tokens `[batch, cols]`.
    pub(crate) fn tokens(&self, batch: usize, cols: usize) -> Result<Tensor, Failed> {
        self.tokens.get([batch, cols], || {
            Ok(Tensor::from_vec(gaussian(batch * cols, 2), (batch, cols), &Device::Cpu)?)
        })
    }

    /// Integers of `bits` in groups of `group`, 0 for one scale per row.
    pub(crate) fn int(&self, bits: u8, group: usize, shape: Shape) -> Result<PackedInt, Failed> {
        self.ints.get((bits, group, shape), || self.another_int(bits, group, shape))
    }

    /// The same in memory of its own.
    pub(crate) fn another_int(&self, bits: u8, group: usize, shape: Shape) -> Result<PackedInt, Failed> {
        let scheme = scheme(bits, group)?;
        let values = self.values(shape)?;
        // Files of compressed-tensors have no short last group.
        let whole = shape[1].is_multiple_of(group.max(1));
        let layout = if whole { IntLayout::PackQuantized } else { IntLayout::Taper };
        Ok(PackedInt::encode(&values, &shape, &scheme, &Fit::AbsMax, None, layout)?)
    }

    /// NF4 in blocks.
    pub(crate) fn nf4(&self, block: usize, shape: Shape) -> Result<PackedNf4, Failed> {
        self.nf4.get((block, shape), || {
            let (scheme, values) = (Nf4Scheme::new(block)?, self.values(shape)?);
            Ok(PackedNf4::encode(&values, &shape, scheme, &Fit::AbsMax, None, ValueType::F32)?)
        })
    }

    /// candle's own formats.
    pub(crate) fn candle(&self, dtype: GgmlDType, shape: Shape) -> Result<Candle, Failed> {
        self.quantized.get((dtype as u32, shape), || {
            let tensor = Arc::new(QTensor::quantize(&self.dense(shape, DType::F32)?, dtype)?);
            Ok(Candle { layer: Rc::new(QMatMul::from_arc(Arc::clone(&tensor))?), tensor })
        })
    }
}

/// Symmetric integers in groups of `group`, 0 for one scale per row.
pub(crate) fn scheme(bits: u8, group: usize) -> Result<Scheme, Failed> {
    let granularity = if group == 0 { Granularity::Channel } else { Granularity::group(group)? };
    Ok(Scheme::new(Bits::new(bits.into())?, granularity))
}
