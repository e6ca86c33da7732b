//! Scaling and turning change weights and not the function: on the bundled model, and on an architecture of a user's own.

mod bundle;

use bundle::{Bundle, Tested};
use rayon::ThreadPoolBuilder;
use std::{num::NonZeroUsize, sync::Arc};
use taper::{
    Architecture, Coupling, InputStats, Needs, Stats,
    candle::{DType, Device, Tensor},
    core::{
        coupling::{Carrier, Gain, Rotation, Scaling, Side, Space},
        nn::{Embedding, Linear, RmsNorm, embedding, linear_no_bias, rms_norm},
        observe::calibrate_checkpoint,
    },
    prelude::*,
    quant::{
        Awq, Rotate, SmoothQuant,
        fit::Fit,
        pass::{Clip, Score, Spaces, TiedHead},
    },
};

/// A user's own model: table ─▶ norm ─▶ a, b ─▶ silu(a)·b ─▶ c, around a residual stream, norm, head.
#[derive(Debug, Clone, Copy)]
struct Own;

struct OwnModel {
    table: Embedding,
    norms: [RmsNorm; 2],
    linears: [Linear; 4],
}

const WORDS: usize = 30;
/// Neither width is a power of two.
const STREAM: usize = 12;
const INNER: usize = 20;

impl Architecture for Own {
    type Model = OwnModel;

    fn build(&self, weights: &WeightBuilder) -> taper::Result<OwnModel> {
        let norm = |name| rms_norm(STREAM, 1e-6, &weights.pp(name));
        let linear = |inner, out, name| linear_no_bias(inner, out, &weights.pp(name));
        Ok(OwnModel {
            table: embedding(WORDS, STREAM, &weights.pp("table"))?,
            norms: [norm("first")?, norm("last")?],
            linears: [
                linear(STREAM, INNER, "a")?,
                linear(STREAM, INNER, "b")?,
                linear(INNER, STREAM, "c")?,
                linear(STREAM, WORDS, "head")?,
            ],
        })
    }
}

impl OwnModel {
    fn forward(&self, ids: &Tensor) -> taper::Result<Tensor> {
        let [a, b, c, head] = &self.linears;
        let x = self.table.forward(ids)?;
        let y = self.norms[0].forward(&x)?;
        let inner = (a.forward(&y)?.silu()? * b.forward(&y)?)?;
        head.forward(&self.norms[1].forward(&(x + c.forward(&inner)?)?)?)
    }
}

impl Couplings for Own {
    fn couplings(&self, _: &Checkpoint) -> taper::Result<Vec<Coupling>> {
        Ok(Vec::new())
    }

    fn scalings(&self, _: &Checkpoint) -> taper::Result<Vec<Scaling>> {
        let read = |name: &str| Carrier::new(format!("{name}.weight"), 1);
        let made = |name: &str| Carrier::new(format!("{name}.weight"), 0);
        Ok(vec![
            Scaling {
                name: "first".into(),
                channels: STREAM,
                producers: vec![made("first")],
                consumers: vec![read("a"), read("b")],
            },
            Scaling {
                name: "inner".into(),
                channels: INNER,
                producers: vec![made("b")],
                consumers: vec![read("c")],
            },
        ])
    }

    fn rotations(&self, _: &Checkpoint) -> taper::Result<Vec<Rotation>> {
        let weight = |name: &str| format!("{name}.weight");
        Ok(vec![Rotation {
            name: "stream".into(),
            space: Space::Stream,
            width: STREAM,
            writers: vec![Side::new(weight("table"), 1), Side::new(weight("c"), 0)],
            readers: ["a", "b", "head"].map(|n| Side::new(weight(n), 1)).into(),
            gains: vec![
                Gain { weight: weight("first"), readers: vec![weight("a"), weight("b")] },
                Gain { weight: weight("last"), readers: vec![weight("head")] },
            ],
            tied: None,
        }])
    }
}

/// Weights that look random; one channel of the first norm is loud.
fn own() -> Tested<Checkpoint> {
    let mut checkpoint = Checkpoint::new(Default::default());
    let mut put = |name: &str, shape: &[usize], centre: f32| -> Tested {
        let n: usize = shape.iter().product();
        let noise = |i: usize| ((i * 7919 + name.len() * 131) % 997) as f32 / 498.0 - 1.0;
        let values: Vec<f32> = (0..n).map(|i| centre + 0.6 * noise(i)).collect();
        checkpoint.insert(format!("{name}.weight"), Arc::new(Tensor::from_vec(values, shape, &Device::Cpu)?));
        Ok(())
    };
    put("table", &[WORDS, STREAM], 0.0)?;
    put("last", &[STREAM], 1.0)?;
    put("a", &[INNER, STREAM], 0.0)?;
    put("b", &[INNER, STREAM], 0.0)?;
    put("c", &[STREAM, INNER], 0.0)?;
    put("head", &[WORDS, STREAM], 0.0)?;
    let mut gains = [1f32; STREAM];
    gains[4] = 25.0;
    checkpoint.insert("first.weight", Arc::new(Tensor::new(&gains, &Device::Cpu)?));
    Ok(checkpoint)
}

fn own_ids() -> Tested<Tensor> {
    let ids: Vec<u32> = (0..WORDS as u32).collect();
    Ok(Tensor::from_vec(ids, (1, WORDS), &Device::Cpu)?)
}

fn own_logits(checkpoint: &Checkpoint) -> Tested<Tensor> {
    let weights = WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu);
    Ok(Own.build(&weights)?.forward(&own_ids()?)?)
}

fn own_stats(checkpoint: &Checkpoint) -> Tested<Stats> {
    let ids = own_ids()?;
    Ok(calibrate_checkpoint(&Own, checkpoint, Needs::Gram, |model| model.forward(&ids).map(drop))?)
}

/// The largest difference over the largest value.
fn distance(a: &Tensor, b: &Tensor) -> Tested<f32> {
    let peak = |t: Tensor| -> Tested<f32> { Ok(t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?) };
    Ok(peak((a - b)?)? / peak(b.clone())?)
}

/// The bundled model in f32: folding rounds to the type that a weight has, and here exactness is the question.
fn wide(bundle: &Bundle) -> Tested<Checkpoint> {
    let mut checkpoint = bundle.open()?;
    for name in checkpoint.names() {
        let weight = checkpoint.get(&name)?.dense()?.to_dtype(DType::F32)?;
        checkpoint.insert(name, Arc::new(weight));
    }
    Ok(checkpoint)
}

fn ids(checkpoint: &Checkpoint) -> Tested<Tensor> {
    let tokens = Windows::of_text(&Tokenizer::of(checkpoint)?, taper::bundled::TEXT, 48)?.first(4);
    let batches = tokens.batches().collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::cat(&batches, 0)?)
}

fn logits(checkpoint: &Checkpoint) -> Tested<Tensor> {
    Ok(taper::build(checkpoint)?.language()?.forward(&ids(checkpoint)?)?)
}

fn stats(checkpoint: &Checkpoint) -> Tested<Stats> {
    let ids = ids(checkpoint)?;
    let feed = |model: &AnyModel| match model {
        AnyModel::Language(model) => model.forward(&ids).map(drop),
        other => panic!("{other:?}"),
    };
    Ok(calibrate_checkpoint(&Families, checkpoint, Needs::Gram, feed)?)
}

fn run(pass: impl Pass + 'static, checkpoint: &Checkpoint, stats: &Stats) -> taper::Result<Checkpoint> {
    let (after, _) = Pipeline::new().then(pass).run(checkpoint.clone(), &Run::new().with_stats(stats))?;
    Ok(after)
}

/// The values of every weight, bit by bit.
fn bits(checkpoint: &Checkpoint) -> Tested<Vec<Vec<u32>>> {
    let all = checkpoint.names().into_iter().map(|name| {
        let values = bundle::values(checkpoint, &name)?;
        Ok(values.into_iter().map(f32::to_bits).collect())
    });
    all.collect()
}

#[test]
fn a_rotated_model_gives_the_same_logits() -> Tested {
    let bundle = Bundle::new()?;
    let original = wide(&bundle)?;
    let before = logits(&original)?;
    let rotate = Rotate::new(Arc::new(Families)).with_tied_head(TiedHead::Untie);
    let block = NonZeroUsize::new(8).ok_or("8 is not 0")?;
    for pass in [
        rotate.clone(),
        rotate.clone().with_spaces(Spaces::Heads),
        rotate.clone().with_spaces(Spaces::Stream),
        rotate.with_block(block),
    ] {
        let (rotated, report) = Pipeline::new().then(pass.clone()).run(original.clone(), &Run::new())?;
        assert!(report.passes[0].rows.iter().any(|r| r.damage.is_some_and(|d| d.normalised_mse > 0.5)));
        let moved = distance(&logits(&rotated)?, &before)?;
        assert!(moved < 1e-4, "{pass:?}: {moved}");
    }
    Ok(())
}

#[test]
fn a_tied_head_is_refused_with_a_way_out_or_parted_with_a_word() -> Tested {
    let bundle = Bundle::new()?;
    let original = bundle.open()?;
    let run = |pass: Rotate| Pipeline::new().then(pass).run(original.clone(), &Run::new());
    let rotate = Rotate::new(Arc::new(Families));
    let error = run(rotate.clone()).map(drop).unwrap_err().to_string();
    assert!(error.contains("`tie_word_embeddings`") && error.contains("tied-head = \"untie\""), "{error}");
    assert!(run(rotate.clone().with_spaces(Spaces::Heads)).is_ok());
    let (parted, report) = run(rotate.with_tied_head(TiedHead::Untie))?;
    let added: Vec<&str> = report.passes[0]
        .rows
        .iter()
        .filter(|r| r.outcome == Outcome::Added)
        .map(|r| r.weight.as_str())
        .collect();
    assert_eq!(added, ["lm_head.weight"]);
    // What was written is what was computed.
    let out = bundle.at("rotated");
    parted.save(&out)?;
    assert_eq!(distance(&logits(&taper::open(&out)?)?, &logits(&parted)?)?, 0.0);
    Ok(())
}

#[test]
fn scaling_a_real_model_changes_weights_and_not_logits() -> Tested {
    let bundle = Bundle::new()?;
    let original = wide(&bundle)?;
    let (before, seen) = (logits(&original)?, stats(&original)?);
    let awq = Awq::new(Arc::new(Families), RoundNearest::int4(32)?.asymmetric());
    let smooth = SmoothQuant::new(Arc::new(Families), 0.5)?;
    for (name, after) in [
        ("gram", run(awq.clone(), &original, &seen)?),
        ("norms", run(awq.scored_by(Score::InputNorms), &original, &seen)?),
        ("smooth", run(smooth, &original, &seen)?),
    ] {
        let moved = distance(&logits(&after)?, &before)?;
        assert!(moved < 1e-4, "{name}: {moved}");
        assert_ne!(bits(&after)?, bits(&original)?, "{name}");
    }
    Ok(())
}

#[test]
fn couplings_of_a_users_own_serve_every_pass() -> Tested {
    let original = own()?;
    let (before, seen) = (own_logits(&original)?, own_stats(&original)?);
    let awq = Awq::new(Arc::new(Own), RoundNearest::int(3, CHANNEL)?.asymmetric());
    let after = [
        run(Rotate::new(Arc::new(Own)), &original, &seen)?,
        run(awq, &original, &seen)?,
        run(SmoothQuant::new(Arc::new(Own), 0.7)?, &original, &seen)?,
    ];
    for after in after {
        let moved = distance(&own_logits(&after)?, &before)?;
        assert!(moved < 1e-4, "{moved}");
        assert_ne!(bits(&after)?, bits(&original)?);
    }
    Ok(())
}

const CHANNEL: taper::quant::Granularity = taper::quant::Granularity::Channel;

#[test]
fn a_loud_channel_is_rounded_better_after_awq_clipped_or_not() -> Tested {
    let original = own()?;
    let (before, seen) = (own_logits(&original)?, own_stats(&original)?);
    let rounding = RoundNearest::int(3, CHANNEL)?.asymmetric().with_fit(Fit::MinMax);
    let encode = |checkpoint: Checkpoint| -> Tested<f32> {
        let pass = rounding.on(Select::any(["a.weight", "b.weight", "c.weight"])?);
        distance(&own_logits(&Pipeline::new().then(pass).run(checkpoint, &Run::new())?.0)?, &before)
    };
    let plain = encode(original.clone())?;
    let awq = Awq::new(Arc::new(Own), rounding);
    let scaled = encode(run(awq.clone(), &original, &seen)?)?;
    let clipped = encode(run(awq.with_clip(Clip::Search), &original, &seen)?)?;
    println!("plain {plain}, awq {scaled}, clipped {clipped}");
    assert!(scaled < plain, "{scaled} instead of {plain}");
    assert!(clipped < plain, "{clipped} instead of {plain}");
    Ok(())
}

#[test]
fn the_same_bits_come_out_whatever_the_number_of_threads() -> Tested {
    let bundle = Bundle::new()?;
    let original = bundle.open()?;
    let seen = stats(&original)?;
    let all = |threads: usize| -> Tested<Vec<Vec<Vec<u32>>>> {
        let awq = Awq::new(Arc::new(Families), RoundNearest::int4(32)?).with_clip(Clip::Search);
        let rotate = Rotate::new(Arc::new(Families)).with_tied_head(TiedHead::Untie);
        let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
        let (a, b) = pool.install(|| (run(awq, &original, &seen), run(rotate, &original, &seen)));
        Ok(vec![bits(&a?)?, bits(&b?)?])
    };
    assert!(all(1)? == all(2)?);
    Ok(())
}

#[test]
fn statistics_that_are_no_numbers_or_missing_are_errors() -> Tested {
    let original = own()?;
    let seen = own_stats(&original)?;
    let spoilt = |spoil: fn(&mut InputStats)| -> Stats {
        let spoil = |(name, stats): (&str, &Arc<InputStats>)| {
            let mut stats = InputStats::clone(stats);
            spoil(&mut stats);
            (name.to_owned(), Arc::new(stats))
        };
        seen.iter().map(spoil).collect()
    };
    let awq = || Awq::new(Arc::new(Own), RoundNearest::int4(32).expect("32 is a group"));
    for bad in [
        spoilt(|s| s.mean_abs[0] = f32::NAN),
        spoilt(|s| s.sum_squares.iter_mut().for_each(|x| *x = f64::NAN)),
    ] {
        let score = awq().scored_by(Score::InputNorms);
        assert!(run(score, &original, &bad).unwrap_err().to_string().contains("statistics of `"));
    }
    let missing = run(awq(), &original, &Stats::default()).unwrap_err().to_string();
    assert!(missing.contains("none were gathered"), "{missing}");
    Ok(())
}

#[test]
fn a_rotation_makes_earlier_statistics_stale() -> Tested {
    let original = own()?;
    let seen = own_stats(&original)?;
    let awq = Awq::new(Arc::new(Own), RoundNearest::int4(32)?);
    let pipeline = Pipeline::new().then(Rotate::new(Arc::new(Own))).then(awq);
    let error = pipeline.run(original, &Run::new().with_stats(&seen)).map(drop).unwrap_err().to_string();
    assert!(error.contains("`rotate` before it changes the coordinates"), "{error}");
    Ok(())
}
