//! The bit budget on a model whose divergence is known in closed form: Σ importance · normalised squared error.

use candle_core::{Device, Tensor};
use std::sync::Arc;
use taper_core::{Checkpoint, Pipeline, Run, Select, Silent, WeightPass, verify, weight::to_f32_vec};
use taper_quant::{
    Error, Granularity, RoundNearest,
    allocate::{Budget, Candidate, Menu, Pin, Survey, Together},
};

const COLUMNS: usize = 64;

/// Rows and importance of each layer: cheap ones that matter and dear ones that do not.
const LAYERS: [(usize, f64); 5] = [(16, 1.0), (64, 0.01), (32, 0.3), (16, 0.002), (48, 0.1)];

fn name(layer: usize) -> String {
    format!("layers.{layer}.weight")
}

fn model() -> Checkpoint {
    let mut checkpoint = Checkpoint::new(serde_json::Map::new()).with_codecs(&taper_quant::codecs());
    for (layer, (rows, _)) in LAYERS.into_iter().enumerate() {
        let value = |i: usize| ((i * 7919 + layer * 104_729) % 1013) as f32 / 500.0 - 1.0;
        let values: Vec<f32> = (0..rows * COLUMNS).map(value).collect();
        let weight = Tensor::from_vec(values, (rows, COLUMNS), &Device::Cpu).unwrap();
        checkpoint.insert(name(layer), Arc::new(weight));
    }
    let norm = Tensor::ones(COLUMNS, candle_core::DType::F32, &Device::Cpu).unwrap();
    checkpoint.insert("norm".to_owned(), Arc::new(norm));
    checkpoint
}

fn divergence(original: &Checkpoint, changed: &Checkpoint) -> f64 {
    let layer = |(layer, (_, importance)): (usize, (usize, f64))| {
        let (a, b) = (original.get(&name(layer)).unwrap(), changed.get(&name(layer)).unwrap());
        importance * verify::damage(a.as_ref(), b.as_ref()).unwrap().normalised_mse
    };
    let kernel = match original.contains("layers.9.weight") {
        true => {
            let kernels = [original, changed].map(|c| c.get("layers.9.weight").unwrap());
            verify::damage(kernels[0].as_ref(), kernels[1].as_ref()).unwrap().normalised_mse
        }
        false => 0.0,
    };
    kernel + LAYERS.into_iter().enumerate().map(layer).sum::<f64>()
}

fn format(bits: u64, group: usize) -> Candidate {
    let pass = RoundNearest::int(bits, Granularity::group(group).unwrap()).unwrap();
    Candidate { label: pass.to_string(), pass: Arc::new(pass) }
}

fn menu() -> Menu {
    Menu {
        select: Select::glob("layers.*").unwrap(),
        candidates: vec![format(2, 64), format(3, 64), format(4, 32), format(8, 64)],
        pins: Vec::new(),
        probes: 1,
    }
}

fn survey(menu: &Menu) -> taper_core::Result<Survey> {
    let original = model();
    let judge = |changed: &Checkpoint| Ok(divergence(&original, changed));
    menu.survey(&original, &Run::new(), &judge, &Silent)
}

/// Runs the allotted formats, one pass for each.
fn run(menu: &Menu, survey: &Survey, allotment: &taper_quant::allocate::Allotment) -> (Checkpoint, u64) {
    let formats: Vec<&Candidate> =
        menu.candidates.iter().chain(menu.pins.iter().map(|p| &p.candidate)).collect();
    let mut pipeline = Pipeline::new();
    for weight in &allotment.weights {
        assert_eq!(survey.labels[weight.format], formats[weight.format].label);
        let pass = Arc::clone(&formats[weight.format].pass);
        pipeline = pipeline.then(pass.on(Select::glob(&weight.weight).unwrap()));
    }
    let (compressed, report) = pipeline.run(model(), &Run::new()).unwrap();
    (compressed, report.output.bytes)
}

fn label_of<'a>(survey: &'a Survey, allotment: &taper_quant::allocate::Allotment, layer: usize) -> &'a str {
    let found = allotment.weights.iter().find(|w| w.weight == name(layer)).unwrap();
    &survey.labels[found.format]
}

fn refused(result: Result<impl Sized, Error>) -> Error {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    }
}

#[test]
fn predictions_of_size_and_divergence_are_met() {
    let (menu, original) = (menu(), model());
    let survey = survey(&menu).unwrap();
    let mut last = f64::INFINITY;
    for bits in [2.31, 2.6, 3.0, 3.7, 4.5, 6.0, 8.5] {
        let allotment = survey.allot(Budget::Bits(bits), &Together::Nobody).unwrap();
        assert!(allotment.bits_per_weight() <= bits);
        let (compressed, bytes) = run(&menu, &survey, &allotment);
        assert_eq!(bytes, allotment.total_bytes);
        let measured = divergence(&original, &compressed);
        assert!((allotment.divergence / measured - 1.0).abs() < 1e-6, "{bits}: {allotment:?} {measured}");
        let shares: f64 = allotment.weights.iter().map(|w| w.divergence).sum();
        assert!((shares / measured - 1.0).abs() < 1e-6);
        assert!(measured < last, "more bits, less divergence");
        last = measured;
    }
}

#[test]
fn no_mixture_of_formats_within_the_budget_diverges_less() {
    let survey = survey(&menu()).unwrap();
    let budget = 3.3;
    let best = survey.allot(Budget::Bits(budget), &Together::Nobody).unwrap();
    let elements: u64 = survey.weights.iter().map(|w| w.elements).sum();
    for mixture in 0..4usize.pow(5) {
        let format = |layer: usize| mixture / 4usize.pow(layer as u32) % 4;
        let costs = survey.weights.iter().enumerate().map(|(i, w)| (w, w.costs[format(i)].unwrap()));
        let (bytes, damage) = costs.fold((0, 0.0), |(bytes, damage), (weight, cost)| {
            (bytes + cost.bytes, damage + weight.damage(cost))
        });
        if bytes as f64 * 8.0 <= budget * elements as f64 {
            assert!(damage >= best.divergence * (1.0 - 1e-9), "{mixture}");
        }
    }
}

#[test]
fn bytes_and_divergence_are_budgets_too() {
    let survey = survey(&menu()).unwrap();
    let by_bits = survey.allot(Budget::Bits(3.3), &Together::Nobody).unwrap();
    // All weights count: the norm's 256 bytes too.
    assert_eq!((survey.other_bytes, by_bits.total_bytes), (256, by_bits.bytes + 256));
    let by_bytes = survey.allot(Budget::Bytes(by_bits.total_bytes), &Together::Nobody).unwrap();
    assert_eq!(by_bytes, by_bits);
    let target = by_bits.divergence * (1.0 + 1e-9);
    let by_divergence = survey.allot(Budget::Divergence(target), &Together::Nobody).unwrap();
    assert!(by_divergence.divergence <= target && by_divergence.bytes <= by_bits.bytes);
}

#[test]
fn a_budget_that_cannot_be_kept_says_the_least() {
    let survey = survey(&menu()).unwrap();
    let error = refused(survey.allot(Budget::Bits(2.0), &Together::Nobody));
    // Two bits, a scale per row of 64, and 16 bytes that say a weight's shape.
    let least = 2.25 + 8.0 * 16.0 * 5.0 / (176.0 * 64.0);
    assert_eq!(error, Error::Budget { asked: 2.0, least, unit: "bits per weight" });
    assert!(error.to_string().contains("the least possible is 2.306"), "{error}");
    let least: u64 = survey.weights.iter().map(|w| w.costs[0].unwrap().bytes).sum();
    let error = refused(survey.allot(Budget::Bytes(300), &Together::Nobody));
    assert_eq!(error, Error::Budget { asked: 300.0, least: (least + 256) as f64, unit: "bytes of weights" });
    assert!(matches!(
        refused(survey.allot(Budget::Divergence(1e-9), &Together::Nobody)),
        Error::Budget { unit: "of divergence", .. }
    ));
    assert!(matches!(refused(survey.allot(Budget::Bits(f64::NAN), &Together::Nobody)), Error::Menu { .. }));
}

#[test]
fn pins_and_exclusions_are_honoured_and_counted() {
    let pin = Pin { select: Select::glob("layers.1.*").unwrap(), candidate: format(6, 64) };
    let select = Select::glob("layers.*").unwrap().except("layers.3.*").unwrap();
    let menu = Menu { pins: vec![pin], select, ..menu() };
    let survey = survey(&menu).unwrap();
    for bits in [4.0, 5.0] {
        let allotment = survey.allot(Budget::Bits(bits), &Together::Nobody).unwrap();
        assert_eq!(label_of(&survey, &allotment, 1), "round-nearest int6 g64");
        assert!(allotment.weights.iter().all(|w| w.weight != name(3)));
        let (compressed, bytes) = run(&menu, &survey, &allotment);
        assert_eq!(bytes, allotment.total_bytes);
        assert!(compressed.get(&name(3)).unwrap().encoding().is_dense());
        assert!(allotment.bits_per_weight() <= bits);
    }
    // 64 of 160 rows at 6.25 bits, the rest at 2.25, and the shapes of four weights.
    let error = refused(survey.allot(Budget::Bits(3.5), &Together::Nobody));
    let expected = (64.0 * 6.25 + (16.0 + 32.0 + 48.0) * 2.25) / 160.0 + 8.0 * 16.0 * 4.0 / (160.0 * 64.0);
    assert!(matches!(error, Error::Budget { least, .. } if (least - expected).abs() < 1e-9), "{error}");
}

#[test]
fn weights_that_belong_together_share_a_format() {
    let survey = survey(&menu()).unwrap();
    let together = Together::Sets(vec![vec![name(0), name(3), "not.planned".to_owned()]]);
    for bits in [2.6, 3.3, 4.5] {
        let apart = survey.allot(Budget::Bits(bits), &Together::Nobody).unwrap();
        let fused = survey.allot(Budget::Bits(bits), &together).unwrap();
        assert_eq!(label_of(&survey, &fused, 0), label_of(&survey, &fused, 3));
        assert!(fused.divergence >= apart.divergence * (1.0 - 1e-9));
        assert!(fused.bits_per_weight() <= bits);
    }
}

#[test]
fn formats_that_leave_a_weight_are_not_chosen_for_it() {
    // Trellis codes are for matrices; a convolution stays.
    let mut original = model();
    let kernel = Tensor::rand(-1f32, 1.0, (8, 4, 3, 3), &Device::Cpu).unwrap();
    original.insert("layers.9.weight".to_owned(), Arc::new(kernel));
    let trellis =
        taper_quant::Trellis::new(2.0).unwrap().fed_from(taper_quant::pass::trellis::FeedbackFrom::Nothing);
    let trellis = Candidate { label: "trellis".into(), pass: Arc::new(trellis) };
    let judge = |changed: &Checkpoint| Ok(divergence(&original, changed));
    let mixed = Menu { candidates: vec![trellis.clone(), format(4, 32)], ..menu() };
    let survey = mixed.survey(&original, &Run::new(), &judge, &Silent).unwrap();
    let allotment = survey.allot(Budget::Bits(4.0), &Together::Nobody).unwrap();
    assert_eq!(label_of(&survey, &allotment, 9), "round-nearest int4 g32");
    // The probe could not be it: it is measured at the format that changed it.
    let kernel = survey.weights.iter().find(|w| w.weight == "layers.9.weight").unwrap();
    assert!(kernel.costs[0].is_none() && kernel.sensitivity.is_some());
    assert!(allotment.weights.iter().any(|w| survey.labels[w.format] == "trellis"));
    // Where no format suits, the weight is left, with the reason.
    let only = Menu { candidates: vec![trellis], ..menu() };
    let survey = only.survey(&original, &Run::new(), &judge, &Silent).unwrap();
    assert!(survey.left["layers.9.weight"].contains("only matrices"), "{:?}", survey.left);
}

#[test]
fn menus_without_a_choice_are_refused() {
    let message = |menu: Menu| survey(&menu).map(|_| ()).unwrap_err().to_string();
    assert!(message(Menu { candidates: Vec::new(), ..menu() }).contains("no formats to choose from"));
    assert!(
        message(Menu { select: Select::glob("nothing").unwrap(), ..menu() }).contains("selects no matrix")
    );
    assert!(
        message(Menu { candidates: vec![format(4, 32), format(4, 32)], ..menu() }).contains("two formats")
    );
    let pin = Pin { select: Select::glob("elsewhere").unwrap(), candidate: format(8, 64) };
    assert!(message(Menu { pins: vec![pin], ..menu() }).contains("pin `elsewhere` is for no"));
}

#[test]
fn the_survey_decodes_what_it_judges_one_weight_at_a_time() {
    let original = model();
    let judge = |changed: &Checkpoint| {
        let differing: Vec<usize> = (0..LAYERS.len())
            .filter(|&layer| {
                let values = |c: &Checkpoint| to_f32_vec(c.get(&name(layer)).unwrap().as_ref()).unwrap();
                values(&original) != values(changed)
            })
            .collect();
        assert!(differing.len() == 1 || differing.len() == LAYERS.len(), "{differing:?}");
        Ok(divergence(&original, changed))
    };
    menu().survey(&original, &Run::new(), &judge, &Silent).unwrap();
}
