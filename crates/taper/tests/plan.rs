//! Bit budgets on the bundled model: plans are recipes, predictions are kept, mistakes are told.

mod bundle;

use bundle::{Bundle, Tested, bytes};
use taper::{
    bundled,
    models::calibration,
    plan::{OnWindows, Plan, Surveyed},
    prelude::*,
    quant::allocate::Budget,
    recipe::budget::Fused,
};

const FORMATS: &str = "
[budget]
select = 'model.layers.*'
exclude = '*.1.mlp.up_proj.*'
probes = 1

[[candidate]]
name = 'gptq'
bits = 2
group = 32

[[candidate]]
name = 'round-nearest'
bits = 4
group = 32
weighting = 'input-norms'

[[candidate]]
name = 'gptq'
bits = 8
granularity = 'channel'

[[pin]]
select = '*.0.self_attn.q_proj.*'
name = 'gptq'
bits = 5
group = 32
";

struct Planned {
    bundle: Bundle,
    calibration: Calibration,
    judge: OnWindows,
    surveyed: Surveyed,
}

fn planned(recipe: &str) -> Tested<Planned> {
    planned_on(recipe, 8, 4)
}

/// Calibrated on so many windows, judged on so many after them.
fn planned_on(recipe: &str, seen: usize, judged: usize) -> Tested<Planned> {
    let bundle = Bundle::new()?;
    let original = bundle.open()?;
    let calibration = calibration::on_text(&original, bundled::TEXT, 64, seen)?;
    let judge = OnWindows::after(&original, bundled::TEXT, 64, seen, judged)?.ok_or("too short")?;
    let recipe = Recipe::parse(recipe)?;
    let budgeted = recipe.budgeted().ok_or("no budget")?;
    let run = Run::new().with_calibration(&calibration);
    let surveyed = Surveyed::new(budgeted, &original, &run, &judge, &Silent)?;
    Ok(Planned { bundle, calibration, judge, surveyed })
}

fn formats(plan: &Plan, name: &str) -> Vec<String> {
    let weights = plan.allotment().weights.iter().filter(|w| w.weight.contains(name));
    weights.map(|w| plan.label(w.format).to_owned()).collect()
}

#[test]
fn a_plan_is_a_recipe_that_gives_what_it_predicts() -> Tested {
    let planned = planned(FORMATS)?;
    let plan = planned.surveyed.plan(Budget::Bits(4.0))?;
    let expected = plan.expected();
    assert!(expected.bits_per_weight <= 4.0 && expected.bits_per_weight > 3.8, "{expected:?}");
    // Pinned and excluded.
    assert_eq!(formats(&plan, ".0.self_attn.q_proj"), ["gptq int5 g32"]);
    assert!(formats(&plan, ".1.mlp.up_proj").is_empty());

    let text = plan.to_toml();
    let recipe = Recipe::parse(&text)?;
    assert_eq!(recipe.expected(), Some(&expected));
    assert_eq!(recipe.pipeline().recipe(), plan.pipeline()?.recipe());
    assert!(recipe.budgeted().is_none());

    let run = Run::new().with_calibration(&planned.calibration);
    let out = planned.bundle.at("out");
    let report = recipe.pipeline().run_to(planned.bundle.open()?, &out, &run)?;
    assert_eq!(report.output.bytes, expected.total_bytes);
    let selected: u64 =
        report.passes.iter().flat_map(|p| &p.rows).filter_map(|r| Some(r.after.as_ref()?.bytes)).sum();
    assert_eq!(selected, expected.bytes);
    let measured = planned.judge.judge(&taper::open(&out)?)?;
    let ratio = expected.divergence / measured.mean_kl;
    assert!((0.75..1.25).contains(&ratio), "{} {}", expected.divergence, measured.mean_kl);
    // The road in memory gives the same weights.
    let (memory, _) = plan.pipeline()?.run(planned.bundle.open()?, &run)?;
    memory.save(planned.bundle.at("memory"))?;
    assert_eq!(bytes(&planned.bundle.at("memory"))?, bytes(&out)?);
    Ok(())
}

#[test]
fn formats_that_make_up_for_the_layers_before_keep_predictions_too() -> Tested {
    let mut recipe = "[budget]\nselect = 'model.layers.*'\nbits = 3.5\njudged = 4\n".to_owned();
    for format in ["'trellis'\nbits = 2.5", "'trellis'\nbits = 3.5", "'gptq'\nbits = 5\ngroup = 64"] {
        recipe += &format!("[[candidate]]\nname = {format}\nasymmetric-calibration = 1.0\n");
    }
    let budgeted = Recipe::parse(&recipe)?;
    let budgeted = budgeted.budgeted().ok_or("no budget")?;
    assert_eq!((budgeted.budget, budgeted.judged), (Some(Budget::Bits(3.5)), Some(4)));
    let planned = planned_on(&recipe, 24, 8)?;
    let plan = planned.surveyed.plan(Budget::Bits(3.5))?;
    let expected = plan.expected();
    let run = Run::new().with_calibration(&planned.calibration);
    let (compressed, report) = plan.pipeline()?.run(planned.bundle.open()?, &run)?;
    assert_eq!(report.output.bytes, expected.total_bytes);
    let measured = planned.judge.judge(&compressed)?.mean_kl;
    let ratio = expected.divergence / measured;
    assert!((0.75..1.25).contains(&ratio), "{} {measured}", expected.divergence);
    assert!(measured < hull(&planned.surveyed.survey().uniform, expected.bits_per_weight), "{measured}");
    Ok(())
}

/// The least that any mixture of two formats would give at `bits`, if divergence mixed in proportion.
fn hull(uniform: &[taper::quant::allocate::survey::Uniform], bits: f64) -> f64 {
    let points: Vec<(f64, f64)> = uniform.iter().map(|u| (u.bits_per_weight(), u.divergence)).collect();
    let chords = points.iter().flat_map(|a| points.iter().map(move |b| (*a, *b)));
    let around = chords.filter(|(a, b)| a.0 <= bits && bits <= b.0 && a.0 < b.0);
    let at = |((x0, y0), (x1, y1)): ((f64, f64), (f64, f64))| y0 + (bits - x0) / (x1 - x0) * (y1 - y0);
    around.map(at).fold(f64::INFINITY, f64::min)
}

#[test]
fn plans_lie_below_the_convex_hull_of_their_formats() -> Tested {
    let unpinned = FORMATS.split("[[pin]]").next().unwrap_or_default();
    let planned = planned(unpinned)?;
    for bits in [3.0, 4.0, 5.5] {
        let plan = planned.surveyed.plan(Budget::Bits(bits))?;
        let run = Run::new().with_calibration(&planned.calibration);
        let (compressed, _) = plan.pipeline()?.run(planned.bundle.open()?, &run)?;
        let measured = planned.judge.judge(&compressed)?.mean_kl;
        let hull = hull(&planned.surveyed.survey().uniform, plan.expected().bits_per_weight);
        assert!(measured < hull, "{bits}: {measured} {hull}");
        let ratio = plan.expected().divergence / measured;
        assert!((0.75..1.25).contains(&ratio), "{bits}: {} {measured}", plan.expected().divergence);
    }
    Ok(())
}

#[test]
fn more_bits_are_predicted_to_diverge_less() -> Tested {
    let planned = planned(FORMATS)?;
    let mut last = f64::INFINITY;
    for bits in [3.2, 4.0, 5.0, 6.0, 8.0] {
        let expected = planned.surveyed.plan(Budget::Bits(bits))?.expected();
        assert!(expected.divergence < last && expected.bits_per_weight <= bits, "{bits}: {expected:?}");
        last = expected.divergence;
    }
    let error = planned.surveyed.plan(Budget::Bits(2.0)).unwrap_err().to_string();
    assert!(error.contains("2 bits per weight cannot be kept; the least possible is"), "{error}");
    Ok(())
}

#[test]
fn layers_that_read_one_input_can_be_kept_together() -> Tested {
    let together = FORMATS.replace("probes = 1", "probes = 1\nfused = 'together'");
    assert_eq!(Recipe::parse(&together)?.budgeted().map(|b| b.fused), Some(Fused::Together));
    let planned = planned(&together)?;
    for bits in [3.2, 4.0, 5.0] {
        let plan = planned.surveyed.plan(Budget::Bits(bits))?;
        for layer in 0..2 {
            let of = |name: &str| formats(&plan, &format!("layers.{layer}.{name}"));
            assert_eq!(of("self_attn.k_proj"), of("self_attn.v_proj"));
            // One query is pinned, one up projection excluded: the others go with their like.
            if layer > 0 {
                assert_eq!(of("self_attn.q_proj"), of("self_attn.k_proj"));
            } else {
                assert_eq!(of("mlp.gate_proj"), of("mlp.up_proj"));
            }
        }
    }
    Ok(())
}

#[test]
fn recipes_with_a_budget_tell_their_mistakes() {
    let cases: &[(&str, &[&str])] = &[
        ("[budget]\nselect = '*'", &["line 1", "`candidate` is missing", "at least one `[[candidate]]`"]),
        ("[[candidate]]\nname = 'magnitude'", &["candidate", "no such pass", "`gptq`"]),
        ("[[candidate]]\nname = 'gptq'\nselect = '*'", &["line 3", "unknown key `select`"]),
        ("[[candidate]]\nname = 'gptq'\n[budget]\nprobs = 1", &["line 4", "did you mean `probes`?"]),
        ("[[candidate]]\nname = 'gptq'\n[budget]\nfused = 'yes'", &["line 4", "`together`"]),
        ("[candidate]\nname = 'gptq'", &["`candidate` is table", "one `[[candidate]]`"]),
        (
            "[[pass]]\nname = 'gptq'\n[[candidate]]\nname = 'gptq'",
            &["line 3", "passes to run or formats to choose from, not both", "`candidate`"],
        ),
        ("[[pass]]\nname = 'gptq'\n[plan]\nbytes = 3", &["`plan` is missing field", "`total-bytes`"]),
        ("plan = 3\n[[pass]]\nname = 'gptq'", &["line 1", "`plan` is of type integer", "`[plan]`"]),
    ];
    for (recipe, words) in cases {
        let message = match Recipe::parse(recipe) {
            Ok(_) => panic!("accepted:\n{recipe}"),
            Err(error) => error.to_string(),
        };
        for word in *words {
            // A candidate is numbered like a pass; its place says the rest.
            let word = if *word == "candidate" { "line" } else { word };
            assert!(message.contains(word), "no {word:?} in {message:?} for\n{recipe}");
        }
    }
}
