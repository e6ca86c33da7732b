//! Rounding with feedback, calibrated: GPTQ (Frantar et al., 2022), with a Gram matrix that is trusted only as far as the
//! data supports it.
//!
//! ```text
//! Gram in two halves ─▶ order ─▶ factor, shrunk by cross-validation ─▶ columns settled in turn, grids fitted on the way
//! ```
//!
//! Plain GPTQ believes every correlation that calibration shows. With few tokens per input much of that is chance, and the
//! result is worse on other text than on the text of the calibration, at times worse than rounding. Here the
//! correlations are shrunk as far as one half of the tokens contradicts the other ([`Shrinkage::CrossValidated`]).
//!
//! A weight whose inputs calibration did not see is left, and the report says so; nothing becomes round-to-nearest.
//!
//! Layers that read one input share one factor, where they are rewritten one after the other.
//!
//! With [`Gptq::asymmetric_calibration`], layers make up for what the layers before them changed: [`super::asymmetric`].
//!
//! Neighbours: [`crate::settle`] is the mathematics, [`RoundNearest`] has the options of numbers and files.

use std::{borrow::Cow, sync::Arc};

use serde::Serialize;
use serde_json::Value;
use taper_core::{
    Context, InputStats, Needs, Outline, Result, Rewrite, SharedWeight, Stage, WeightPass,
    linalg::{Damped, Factor, Shrinkage},
    report::{Measure, Unit},
    weight::to_f32_vec,
};

use super::{
    asymmetric::{self, Asymmetry, Inputs},
    gptq_settings::GptqSettings,
    round_nearest::{Number, RoundNearest, activation_scale, named, stays, value_type},
};
use crate::{
    Error,
    code::{
        nearest::{IntCodes, Nf4Codes},
        nf4::{Absmax, BlockScales, Nested, Nf4Scheme},
    },
    codec::bitsandbytes_nf4::ValueType,
    layout::IntLayout,
    packed_int::{PackedInt, columns, fit_for},
    packed_nf4::PackedNf4,
    scheme::{Granularity, Scheme},
    settle::{Order, Plan, Settling},
};

/// Rounds with feedback to the numbers of a [`RoundNearest`].
///
/// ```
/// # use taper_quant::pass::{Gptq, RoundNearest};
/// # use taper_quant::settle::Order;
/// let pass = Gptq::new(RoundNearest::int4(128)?).in_order(Order::Columns);
/// assert_eq!(pass.to_string(), "gptq int4 g128");
/// # Ok::<(), taper_quant::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(into = "GptqSettings")]
pub struct Gptq {
    numbers: RoundNearest,
    order: Order,
    shrinkage: Shrinkage,
    asymmetry: Asymmetry,
}

/// A weight that was rounded with feedback.
#[derive(Debug, Clone)]
pub struct Fed<W> {
    /// The weight.
    pub weight: W,
    /// What it took to factor the Gram matrix.
    pub damped: Damped,
    /// The squared error of the output per token, as the shrunk Gram matrix sees it.
    pub loss: f64,
}

impl<W> Fed<W> {
    /// Says in the report what it took.
    fn report(&self, name: &str, context: &Context<'_>) {
        let say = |what, value, unit| context.measured(name, Measure::new(what, value, unit));
        say("damping", self.damped.factor, Unit::Share);
        if self.damped.tries > 1 {
            say("damping wished", self.damped.wished, Unit::Share);
            say("factorisations", f64::from(self.damped.tries), Unit::Count);
        }
        if self.damped.dead > 0 {
            say("dead inputs", self.damped.dead as f64, Unit::Count);
        }
        say("loss", self.loss, Unit::SquaredOutput);
    }
}

impl Gptq {
    /// The recipe's word for it.
    pub const KEY: &'static str = "gptq";

    /// These numbers and files; group-aware order, cross-validated shrinkage.
    #[must_use]
    pub fn new(numbers: RoundNearest) -> Self {
        let (order, shrinkage, asymmetry) = (Order::default(), Shrinkage::default(), Asymmetry::default());
        Self { numbers, order, shrinkage, asymmetry }
    }

    /// With columns settled in this order.
    #[must_use]
    pub fn in_order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// With correlations shrunk this far.
    #[must_use]
    pub fn shrunk(mut self, shrinkage: Shrinkage) -> Self {
        self.shrinkage = shrinkage;
        self
    }

    /// With what the layers before changed made up for, or not ([`super::asymmetric`]). It needs sequential calibration.
    #[must_use]
    pub fn asymmetric_calibration(mut self, asymmetry: Asymmetry) -> Self {
        self.asymmetry = asymmetry;
        self
    }

    /// The numbers and files.
    #[must_use]
    pub fn numbers(&self) -> &RoundNearest {
        &self.numbers
    }

    /// The order of columns.
    #[must_use]
    pub fn order(&self) -> Order {
        self.order
    }

    /// How far correlations are shrunk.
    #[must_use]
    pub fn shrinkage(&self) -> Shrinkage {
        self.shrinkage
    }

    /// How much of what the layers before changed is made up for.
    #[must_use]
    pub fn asymmetry(&self) -> Asymmetry {
        self.asymmetry
    }

    /// Checks that the options go together; every rewrite does so first.
    ///
    /// # Errors
    /// Everything that [`RoundNearest::check`] refuses, and a weighting: the Gram matrix is one.
    pub fn check(&self) -> crate::Result<()> {
        self.numbers.check()?;
        let conflict = |option, conflict: &str, expected: &str| {
            Err(Error::Conflict { option, conflict: conflict.into(), expected: expected.into() })
        };
        if self.numbers.weighting() != super::Weighting::Equal {
            return conflict("weighting", "is what the Gram matrix decides here", "remove it");
        }
        self.asymmetry.check()?;
        match self.shrinkage {
            Shrinkage::Fixed(alpha) if !(0.0..=1.0).contains(&alpha) => {
                conflict("shrinkage", "is not between 0 and 1", "choose a share, such as 0.1")
            }
            _ => Ok(()),
        }
    }

    /// Integers of a weight `[rows, d]`, stored as `layout`.
    ///
    /// # Errors
    /// A scale that cannot be stored, slices that do not fit together, a Gram matrix that is not finite; asymmetric calibration
    /// without the cross Gram matrix.
    pub fn ints<'a>(
        &self,
        values: &[f32],
        shape: &[usize],
        inputs: impl Into<Inputs<'a>>,
        scheme: &Scheme,
        layout: IntLayout,
    ) -> crate::Result<Fed<PackedInt>> {
        let inputs = inputs.into();
        self.ints_by(values, shape, inputs, scheme, layout, &|order| self.factor(inputs, order))
    }

    /// The factor for an order of columns, made for this weight alone.
    fn factor(&self, inputs: Inputs<'_>, order: &[usize]) -> Option<Arc<Factor>> {
        Factor::new(inputs.gram, order, self.shrinkage).map(Arc::new)
    }

    fn ints_by(
        &self,
        values: &[f32],
        shape: &[usize],
        inputs: Inputs<'_>,
        scheme: &Scheme,
        layout: IntLayout,
        factors: &ByOrder<'_>,
    ) -> crate::Result<Fed<PackedInt>> {
        let codes = IntCodes::new(*scheme, fit_for(layout, &self.numbers.fit()));
        let work = Work::new(self, values, shape, inputs, scheme.granularity.span(columns(shape)), factors)?;
        let settling = work.settling(&codes);
        let whole = scheme.granularity == Granularity::Tensor;
        let overflow = |(row, scale)| Error::ScaleOverflow { row, scale, scales: scheme.scales };
        let fixed = match work.adaptive {
            true => None,
            false => Some(settling.fit_beforehand(&work.target, whole).map_err(overflow)?),
        };
        let settled = Settling { fixed: fixed.as_deref(), ..settling }.run(&work.target).map_err(overflow)?;
        let grids = if whole { &settled.grids[..1] } else { &settled.grids };
        let weight = PackedInt::from_codes(&settled.codes, grids, shape, scheme, layout)?;
        Ok(Fed { weight, damped: work.factor.damped, loss: settled.loss })
    }

    /// NF4 of a weight `[rows, d]`; `decoded` as in [`PackedNf4::encode`].
    ///
    /// # Errors
    /// As for [`Gptq::ints`], and rows that are not whole blocks.
    pub fn nf4<'a>(
        &self,
        values: &[f32],
        shape: &[usize],
        inputs: impl Into<Inputs<'a>>,
        scheme: Nf4Scheme,
        decoded: ValueType,
    ) -> crate::Result<Fed<PackedNf4>> {
        let inputs = inputs.into();
        self.nf4_by(values, shape, inputs, scheme, decoded, &|order| self.factor(inputs, order))
    }

    fn nf4_by(
        &self,
        values: &[f32],
        shape: &[usize],
        inputs: Inputs<'_>,
        scheme: Nf4Scheme,
        decoded: ValueType,
        factors: &ByOrder<'_>,
    ) -> crate::Result<Fed<PackedNf4>> {
        let block = scheme.block.get();
        if !columns(shape).is_multiple_of(block) {
            return Err(Error::Conflict {
                option: "block",
                conflict: format!("{block} does not divide the {} columns", columns(shape)),
                expected: "choose blocks that do: feedback runs along rows, blocks must not cross them"
                    .into(),
            });
        }
        let codes = Nf4Codes::new(scheme, self.numbers.fit())?;
        let work = Work::new(self, values, shape, inputs, block, factors)?;
        let settling = work.settling(&codes);
        let overflow = |(row, scale)| Error::ScaleOverflow { row, scale, scales: crate::ScaleType::F32 };
        // Doubly quantized scales are known only together, so they are fitted before.
        let double = scheme.scales == BlockScales::Double;
        let (fixed, nested) = if double || !work.adaptive {
            let scales = settling.fit_beforehand(&work.target, false).map_err(overflow)?;
            let nested = double.then(|| Nested::encode(&scales));
            let stored = match &nested {
                Some(nested) => (0..scales.len()).map(|i| nested.get(i)).collect(),
                None => scales,
            };
            (Some(stored), nested)
        } else {
            (None, None)
        };
        let settled = Settling { fixed: fixed.as_deref(), ..settling }.run(&work.target).map_err(overflow)?;
        let absmax = nested.map_or(Absmax::Plain(settled.grids), Absmax::Nested);
        let weight = PackedNf4::from_codes(&settled.codes, absmax, shape, scheme, decoded)?;
        Ok(Fed { weight, damped: work.factor.damped, loss: settled.loss })
    }
}

/// Who has the factor for an order of columns; none where the Gram matrix has none.
type ByOrder<'f> = dyn Fn(&[usize]) -> Option<Arc<Factor>> + 'f;

/// What every format needs: the order, the factor and the dead columns.
struct Work<'v> {
    /// What is rounded: the weight, or under asymmetric calibration what it should become.
    target: Cow<'v, [f32]>,
    plan: Plan,
    factor: Arc<Factor>,
    dead: Vec<bool>,
    adaptive: bool,
}

impl<'v> Work<'v> {
    fn new(
        pass: &Gptq,
        values: &'v [f32],
        shape: &[usize],
        inputs: Inputs<'_>,
        span: usize,
        factors: &ByOrder<'_>,
    ) -> crate::Result<Self> {
        let (d, gram) = (columns(shape), inputs.gram);
        for (what, found, expected) in
            [("gram", gram.inputs(), d), ("values", values.len(), shape.iter().product())]
        {
            if found != expected {
                return Err(Error::Length { what, found, expected });
            }
        }
        crate::Values::F32(values).check_finite()?;
        let loudness: Vec<f32> = (0..d).map(|i| gram.get(i, i) as f32).collect();
        let plan = Plan::new(&loudness, span, pass.order);
        // What no original is beside is refused before the factor, which is the work.
        let cross = match pass.asymmetry {
            Asymmetry::Off => None,
            Asymmetry::Share(share) => Some((share, asymmetric::cross(inputs.cross, d)?)),
        };
        let factor = factors(&plan.order).ok_or_else(|| Error::Conflict {
            option: "gram",
            conflict: "holds numbers that are not finite, or none that are positive".into(),
            expected: "calibrate again; no shrinkage can make up for that".into(),
        })?;
        let dead = loudness.iter().map(|&x| x <= 0.0).collect();
        let adaptive = plan.is_adaptive();
        let target = match cross {
            None => Cow::Borrowed(values),
            Some((share, cross)) => {
                Cow::Owned(asymmetric::target(values, (gram, cross), share, &plan.order, &factor.ldl))
            }
        };
        Ok(Self { target, plan, factor, dead, adaptive })
    }

    fn settling<'a, C: crate::code::nearest::NearestCode>(&'a self, codes: &'a C) -> Settling<'a, C> {
        Settling { codes, plan: &self.plan, factor: &self.factor.ldl, fixed: None, dead: &self.dead }
    }
}

impl WeightPass for Gptq {
    fn name(&self) -> &str {
        Self::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Encode
    }

    fn needs(&self) -> Needs {
        match self.asymmetry {
            Asymmetry::Off => Needs::Gram,
            Asymmetry::Share(_) => Needs::CrossGram,
        }
    }

    fn settings(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn rewrite(&self, name: &str, weight: &SharedWeight, context: &Context<'_>) -> Result<Rewrite> {
        self.check()?;
        let (encoding, shape) = (weight.encoding(), weight.shape());
        if let Some(why) = stays(&encoding, shape) {
            return Ok(Rewrite::left(why));
        }
        let inputs = match seen(context.stats(name), columns(shape)) {
            Ok(inputs) => inputs,
            Err(why) => return Ok(Rewrite::left(why)),
        };
        let values = to_f32_vec(weight.as_ref())?;
        let factors = |order: &[usize]| context.factor(name, order, self.shrinkage);
        Ok(match self.numbers.number() {
            Number::Int(scheme) => {
                let layout = self.numbers.layout(name, shape, &scheme);
                let rounded = match activation_scale(scheme.activations, context.stats(name)) {
                    Ok(rounded) => rounded,
                    Err(why) => return Ok(Rewrite::left(why)),
                };
                let fed = self.ints_by(&values, shape, inputs, &scheme, layout, &factors);
                let fed = fed.map_err(|e| named(name, e))?;
                fed.report(name, context);
                Rewrite::done(fed.weight.with_activation_scale(rounded))
            }
            Number::Nf4(scheme) => {
                let decoded = value_type(&encoding.format).unwrap_or_default();
                let fed = self.nf4_by(&values, shape, inputs, scheme, decoded, &factors);
                let fed = fed.map_err(|e| named(name, e))?;
                fed.report(name, context);
                Rewrite::done(fed.weight)
            }
        })
    }

    fn outline(&self, name: &str, before: &Outline) -> Option<Outline> {
        self.numbers.outline(name, before)
    }
}

/// The matrices of a layer, or why there is none.
fn seen(stats: Option<&InputStats>, columns: usize) -> std::result::Result<Inputs<'_>, String> {
    let Some(stats) = stats else {
        return Err("calibration saw no input of it".into());
    };
    match &stats.gram {
        None => Err("calibration kept no gram matrix of its inputs".into()),
        Some(gram) if gram.inputs() != columns => Err(format!(
            "has {columns} columns, and calibration saw {} inputs: a convolution, whose columns are several per input",
            gram.inputs()
        )),
        Some(gram) => Ok(Inputs { gram, cross: stats.cross.as_deref() }),
    }
}

impl std::fmt::Display for Gptq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.numbers.number() {
            Number::Int(scheme) => write!(f, "gptq {scheme}"),
            Number::Nf4(scheme) => write!(f, "gptq {scheme}"),
        }
    }
}
