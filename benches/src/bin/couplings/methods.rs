//! The methods that are compared.

use std::sync::Arc;
use taper::{
    Pass, Select, WeightPass,
    models::Families,
    quant::{
        Awq, Fit, Granularity, Rotate, RoundNearest, Search, SmoothQuant, Trellis,
        code::trellis::StateBits,
        pass::{Clip, Spaces, TiedHead, trellis::FeedbackFrom},
    },
};

use crate::Fallible;

/// One pass, calibrated for if it needs that.
pub(crate) struct Step {
    pub(crate) pass: Arc<dyn Pass>,
}

/// A name and passes.
pub(crate) struct Method {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
}

struct Methods {
    linears: Select,
    all: Vec<Method>,
}

impl Methods {
    fn add(&mut self, name: impl Into<String>, before: &[Arc<dyn Pass>], encode: impl WeightPass + 'static) {
        let encode: Arc<dyn Pass> = Arc::new(encode.on(self.linears.clone()));
        let steps = before.iter().cloned().chain([encode]).map(|pass| Step { pass }).collect();
        self.all.push(Method { name: name.into(), steps });
    }
}

/// All methods, the widths that people ask for first.
pub(crate) fn all() -> Fallible<Vec<Method>> {
    let mut methods = Methods { linears: Select::any(["*_proj.weight"])?, all: Vec::new() };
    scaled(&mut methods)?;
    turned(&mut methods)?;
    trellises(&mut methods)?;
    Ok(methods.all)
}

/// AWQ and SmoothQuant before int4 g128.
fn scaled(methods: &mut Methods) -> Fallible {
    let couplings = || Arc::new(Families);
    let four = RoundNearest::int4(128)?.asymmetric();
    for (fit_name, fit) in [("minmax", Fit::MinMax), ("search", Fit::Search(Search::default()))] {
        let rounding = four.with_fit(fit);
        methods.add(format!("int4 g128 asym {fit_name}"), &[], rounding);
        let awq = Awq::new(couplings(), rounding);
        methods.add(format!("awq, int4 g128 asym {fit_name}"), &[Arc::new(awq.clone())], rounding);
        let clipped = awq.with_clip(Clip::Search);
        methods.add(format!("awq clip, int4 g128 asym {fit_name}"), &[Arc::new(clipped)], rounding);
    }
    let smooth = SmoothQuant::new(couplings(), 0.5)?;
    methods.add("smooth-quant, int4 g128 asym search", &[Arc::new(smooth)], four);
    Ok(())
}

/// Rotations before the search, beside the search alone.
fn turned(methods: &mut Methods) -> Fallible {
    let rotate = Rotate::new(Arc::new(Families)).with_tied_head(TiedHead::Untie);
    let heads: Arc<dyn Pass> = Arc::new(rotate.clone().with_spaces(Spaces::Heads));
    let both: Arc<dyn Pass> = Arc::new(rotate);
    for (bits, group) in [(4, 128), (3, 128), (2, 64)] {
        let rounding = RoundNearest::int(bits, Granularity::group(group)?)?;
        methods.add(format!("int{bits} g{group}"), &[], rounding);
        methods.add(format!("rotate heads, int{bits} g{group}"), std::slice::from_ref(&heads), rounding);
        methods.add(format!("rotate, int{bits} g{group}"), std::slice::from_ref(&both), rounding);
    }
    Ok(())
}

/// Trellis codes, with and without data, by states, block and bits.
fn trellises(methods: &mut Methods) -> Fallible {
    let rotate: Arc<dyn Pass> = Arc::new(Rotate::new(Arc::new(Families)).with_tied_head(TiedHead::Untie));
    let two = Trellis::new(2.0)?;
    methods.add("trellis 2.00 L10, no data", &[], two.fed_from(FeedbackFrom::Nothing));
    methods.add("trellis 2.00 L10", &[], two);
    methods.add("trellis 2.00 L10 block 1", &[], two.with_block(1)?);
    methods.add("trellis 2.00 L10 block 256", &[], two.with_block(256)?);
    methods.add("rotate, trellis 2.00 L10 block 1", std::slice::from_ref(&rotate), two.with_block(1)?);
    methods.add("rotate, trellis 2.00 L10", &[rotate], two);
    methods.add("trellis 2.00 L8", &[], two.with_state_bits(StateBits::Eight));
    methods.add("trellis 2.00 L12", &[], two.with_state_bits(StateBits::Twelve));
    for damping in [0.003, 0.03, 0.1] {
        methods.add(format!("trellis 2.00 L10 damping {damping}"), &[], two.with_damping(damping)?);
    }
    for bits in [2.15, 3.0, 3.05, 4.0] {
        methods.add(format!("trellis {bits:.2} L10"), &[], Trellis::new(bits)?);
    }
    methods.add("trellis 2.15 L12", &[], Trellis::new(2.15)?.with_state_bits(StateBits::Twelve));
    Ok(())
}
