//! The methods under comparison: a layer to decoded weights.

use taper::{
    core::{InputStats, Rows, linalg::Shrinkage},
    quant::{
        Bits, Error, Fit, Gptq, Granularity, Hqq, IntLayout, PackedInt, RoundNearest, Scheme, settle::Order,
    },
};

/// A layer and what calibration saw of its inputs.
pub(crate) struct Layer<'a> {
    /// `[rows, width]`.
    pub(crate) weights: &'a [f32],
    /// Rows and width.
    pub(crate) shape: [usize; 2],
    /// Of its inputs.
    pub(crate) stats: &'a InputStats,
    /// Bits per code.
    pub(crate) bits: u64,
    /// Weights per group.
    pub(crate) group: usize,
}

/// What a method made of it.
pub(crate) struct Done {
    /// Decoded, `[rows, width]`.
    pub(crate) values: Vec<f32>,
    /// How far correlations were shrunk.
    pub(crate) shrinkage: Option<f64>,
}

type Method = fn(&Layer<'_>) -> Result<Done, Error>;

/// All methods by name.
pub(crate) const METHODS: [(&str, Method); 11] = [
    ("rtn minmax asym", |layer| layer.rounded(true, Fit::MinMax, false)),
    ("hqq asym", |layer| layer.rounded(true, Fit::Hqq(Hqq::default()), false)),
    ("search asym", |layer| layer.rounded(true, Fit::default(), false)),
    ("weighted search asym", |layer| layer.rounded(true, Fit::default(), true)),
    ("gptq asym, 1 % shrinkage, minmax", |layer| {
        layer.fed(true, Fit::MinMax, Order::Columns, Shrinkage::Fixed(0.01))
    }),
    ("gptq asym, natural order", |layer| {
        layer.fed(true, Fit::default(), Order::Natural, Shrinkage::CrossValidated)
    }),
    ("gptq asym, order of columns", |layer| {
        layer.fed(true, Fit::default(), Order::Columns, Shrinkage::CrossValidated)
    }),
    ("gptq asym", |layer| layer.fed(true, Fit::default(), Order::Groups, Shrinkage::CrossValidated)),
    ("rtn minmax sym", |layer| layer.rounded(false, Fit::MinMax, false)),
    ("weighted search sym", |layer| layer.rounded(false, Fit::default(), true)),
    ("gptq sym", |layer| layer.fed(false, Fit::default(), Order::Groups, Shrinkage::CrossValidated)),
];

impl Layer<'_> {
    fn scheme(&self, asymmetric: bool) -> Result<Scheme, Error> {
        let scheme = Scheme::new(Bits::new(self.bits)?, Granularity::group(self.group)?);
        Ok(if asymmetric { scheme.asymmetric() } else { scheme })
    }

    fn rounded(&self, asymmetric: bool, fit: Fit, weighted: bool) -> Result<Done, Error> {
        let norms = weighted.then(|| self.stats.mean_squares());
        let scheme = self.scheme(asymmetric)?;
        let (w, shape, layout) = (self.weights, &self.shape, IntLayout::Taper);
        let packed = PackedInt::encode(w, shape, &scheme, &fit, norms.as_deref(), layout)?;
        Ok(Done { values: decoded(&packed), shrinkage: None })
    }

    fn fed(&self, asymmetric: bool, fit: Fit, order: Order, shrinkage: Shrinkage) -> Result<Done, Error> {
        let scheme = self.scheme(asymmetric)?;
        let numbers = RoundNearest::int(self.bits, scheme.granularity)?.with_fit(fit);
        let pass = Gptq::new(numbers).in_order(order).shrunk(shrinkage);
        let missing = Error::Length { what: "gram", found: 0, expected: self.shape[1] };
        let gram = self.stats.gram.as_ref().ok_or(missing)?;
        let fed = pass.ints(self.weights, &self.shape, gram, &scheme, IntLayout::Taper)?;
        Ok(Done { values: decoded(&fed.weight), shrinkage: Some(fed.damped.factor) })
    }
}

/// All values of a matrix.
pub(crate) fn decoded(packed: &PackedInt) -> Vec<f32> {
    let mut values = vec![0f32; packed.rows() * packed.cols()];
    for (row, out) in values.chunks_exact_mut(packed.cols()).enumerate() {
        packed.decode_row(row, out);
    }
    values
}
