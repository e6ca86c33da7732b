//! The ways of compressing that the tables compare.

use std::sync::Arc;
use taper::{
    Outcome, Pass, Pipeline, Report, Run, Select, WeightPass,
    core::coupling::Family,
    models::Families,
    prelude::*,
    prune::{Scope, UnitScore},
    quant::{
        fit::{Fit, Hqq, Search},
        scheme::Granularity,
    },
};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// A name and a pipeline.
pub(crate) struct Method {
    /// What the table says.
    pub(crate) name: String,
    /// What is run.
    pub(crate) pipeline: Pipeline,
}

impl Method {
    fn new(name: impl Into<String>, pass: impl Pass + 'static) -> Self {
        Self { name: name.into(), pipeline: Pipeline::new().then(pass) }
    }

    /// Bits per weight of what the pipeline selected: codes, scales, zero points and metadata counted.
    pub(crate) fn bits_per_weight(report: &Report) -> f64 {
        let Some(last) = report.passes.last() else { return 0.0 };
        let (mut bits, mut elements) = (0.0, 0.0);
        for row in last.rows.iter().filter(|r| r.outcome == Outcome::Done) {
            let n = row.before.shape.iter().product::<usize>() as f64;
            bits += row.after.as_ref().map_or(0.0, |a| a.bytes as f64 * 8.0);
            elements += n;
        }
        bits / elements.max(1.0)
    }

    /// Runs the pipeline in memory; the weights come back decoded, so that judging many methods is quick (a packed
    /// weight decodes to the same numbers).
    pub(crate) fn apply(&self, original: &Checkpoint) -> Fallible<(Checkpoint, Report)> {
        let (mut checkpoint, report) = self.pipeline.run(original.clone(), &Run::new())?;
        for name in checkpoint.names() {
            let weight = checkpoint.get(&name)?;
            if !weight.encoding().is_dense() {
                checkpoint.insert(name, Arc::new(weight.dense()?));
            }
        }
        Ok((checkpoint, report))
    }
}

/// Every format and fit, over a selection.
pub(crate) fn quantizers(select: &Select) -> Fallible<Vec<Method>> {
    let fits = [("absmax", Fit::AbsMax), ("minmax", Fit::MinMax), ("search", Fit::Search(Search::default()))];
    let mut methods = Vec::new();
    let mut add = |name: String, pass: RoundNearest| {
        if pass.check().is_ok() {
            methods.push(Method::new(name, pass.on(select.clone())));
        }
    };
    for (fit_name, fit) in fits {
        add(format!("int8 channel, {fit_name}"), RoundNearest::int8().with_fit(fit));
    }
    // The widths that most people ask for come first: a long table can be read while it grows.
    for (bits, group) in [(4, 128), (4, 32), (3, 128), (2, 64), (4, 64), (3, 64), (2, 32), (5, 128), (6, 128)]
    {
        let pass = RoundNearest::int(bits, Granularity::group(group)?)?;
        for (fit_name, fit) in fits {
            add(format!("int{bits} g{group}, {fit_name}"), pass.with_fit(fit));
        }
        for (fit_name, fit) in fits[1..].iter().chain(&[("hqq", Fit::Hqq(Hqq::default()))]) {
            add(format!("int{bits} g{group} asym, {fit_name}"), pass.asymmetric().with_fit(*fit));
        }
        if (bits, group) == (4, 32) {
            for (fit_name, fit) in fits {
                add(format!("nf4 b64, {fit_name}"), RoundNearest::nf4(64)?.with_fit(fit));
                add(
                    format!("nf4 b64 double, {fit_name}"),
                    RoundNearest::nf4(64)?.double_quant().with_fit(fit),
                );
            }
        }
    }
    Ok(methods)
}

/// The pruners, over a selection.
pub(crate) fn pruners(select: &Select) -> Fallible<Vec<Method>> {
    let magnitude = |scope| Magnitude::new(0.5).map(|m| m.with_scope(scope).on(select.clone()));
    let structured = |family| Structured::new(Arc::new(Families), family, 0.25);
    let two_four = || -> Fallible<_> { Ok(NOfM::new(2, 4)?.on(select.clone())) };
    Ok(vec![
        Method::new("magnitude 50 %, per weight", magnitude(Scope::Tensor)?),
        Method::new("magnitude 50 %, per row", magnitude(Scope::Row)?),
        Method::new("magnitude 50 %, global", magnitude(Scope::Global)?),
        Method::new("2:4", two_four()?),
        Method {
            name: "2:4, bitmask".into(),
            pipeline: Pipeline::new().then(two_four()?).then(SparseBitmask {}.on(select.clone())),
        },
        Method {
            name: "2:4, int4 g32 search".into(),
            pipeline: Pipeline::new().then(two_four()?).then(RoundNearest::int4(32)?.on(select.clone())),
        },
        Method::new("structured 25 %, feed-forward", structured(Family::FeedForward)?),
        Method::new("structured 25 %, attention groups", structured(Family::AttentionGroups)?),
    ])
}

/// Structured cuts by every score, to see which to prefer.
pub(crate) fn scores() -> Fallible<Vec<Method>> {
    let mut methods = Vec::new();
    for family in [Family::FeedForward, Family::AttentionGroups] {
        for score in [UnitScore::Product, UnitScore::Consumers, UnitScore::Sum] {
            for (share, ratio) in [("25", 0.25), ("50", 0.5)] {
                let pass = Structured::new(Arc::new(Families), family, ratio)?.with_score(score);
                methods.push(Method::new(format!("{family} {share} %, {score:?}").to_lowercase(), pass));
            }
        }
    }
    Ok(methods)
}
