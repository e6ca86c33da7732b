//! The objective: sums, reports, accumulation, and errors that name the term.

mod harness;

use candle_core::{DType, Device, Tensor, Var};
use harness::*;
use taper_distill::*;

fn student() -> Tensor {
    wave(&[4, 7], 0.7, 0.3, 2.0)
}

fn inputs(student: &Tensor) -> Inputs {
    let targets = labels(&[2, 0, -100, 3], &[4]);
    let teacher = wave(&[4, 7], 1.1, 0.5, 3.0);
    let logits = Logits::of(student).teacher(&teacher).labels(&targets).prepare().unwrap();
    Inputs::new().logits(logits).features("logits", Features::new(student, &teacher))
}

fn objective() -> Objective {
    Objective::new().term("ce", 0.1, CrossEntropy).term("kd", 0.9, Hinton::new(temperature(4.0))).term(
        "relations",
        25.0,
        RelationalDistance.at("logits"),
    )
}

#[test]
fn the_total_is_the_weighted_sum_and_so_is_its_gradient() {
    let (total, gradient) = value_and_gradient(&student(), |z| Ok(objective().evaluate(&inputs(z))?.total));
    let report = objective().evaluate(&inputs(&student())).unwrap().report;
    assert_eq!(report.total, total);

    let term = |of: &dyn Fn(&Inputs) -> Result<Tensor>| value_and_gradient(&student(), |z| of(&inputs(z)));
    let mean = Reduction::TokenMean;
    let terms = [
        (0.1, term(&|i| CrossEntropy.loss(i.given_logits()?, mean))),
        (0.9, term(&|i| Hinton::new(temperature(4.0)).loss(i.given_logits()?, mean))),
        (25.0, term(&|i| RelationalDistance.loss(i.given_features("logits")?, mean))),
    ];
    let sum: f64 = terms.iter().map(|(weight, (value, _))| weight * value).sum();
    assert!((total - sum).abs() < 1e-14 * sum);
    for (reported, (weight, (value, _))) in report.terms.iter().zip(&terms) {
        assert_eq!((reported.weight, reported.value), (*weight, *value), "{}", reported.name);
    }
    for (i, found) in gradient.iter().enumerate() {
        let sum: f64 = terms.iter().map(|(weight, (_, gradient))| weight * gradient[i]).sum();
        assert!((found - sum).abs() < 1e-14);
    }
    assert_gradient("objective", &student(), |z| Ok(objective().evaluate(&inputs(z))?.total));
}

#[test]
fn the_report_is_readable_by_people_and_programs() {
    let report = objective().evaluate(&inputs(&student())).unwrap().report;
    let kd = report.get("kd").unwrap();
    let text = report.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], format!("total {:.6}", report.total));
    assert_eq!(lines[2], format!("  kd         0.9 × {:.6} = {:.6}  (3 tokens)", kd.value, 0.9 * kd.value));
    assert!(lines[3].ends_with("(4 samples)"));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["terms"][2]["name"], "relations");
    assert_eq!(json["terms"][2]["unit"], "sample");
    assert_eq!(json["terms"][1]["rows"], 3);
    assert_eq!(json["terms"][1]["value"], kd.value);
}

#[test]
fn micro_batches_add_up_through_the_objective() {
    let (s, t) = (wave(&[3, 2, 4, 4], 0.37, 0.2, 1.5), wave(&[3, 5, 2, 2], 0.53, 0.9, 1.2));
    let targets = labels(&[1, -100, 3], &[3]);
    let objective =
        Objective::new().term("ce", 1.0, CrossEntropy).term("at", 1000.0, AttentionTransfer.at("map"));
    let of = |s: &Tensor, from: usize, rows: usize| -> Result<Inputs> {
        let logits = Logits::of(&s.flatten_from(1)?).labels(&targets.narrow(0, from, rows)?).prepare()?;
        let features = Features::new(s, &t.narrow(0, from, rows)?);
        Ok(Inputs::new().logits(logits).features("map", features))
    };
    let (value, gradient) = value_and_gradient(&s, |s| Ok(objective.evaluate(&of(s, 0, 3)?)?.total));
    let (mut sum, mut sum_gradient) = (0.0, vec![]);
    for (from, rows) in [(0, 1), (1, 2)] {
        let part = s.narrow(0, from, rows).unwrap();
        let (value, gradient) = value_and_gradient(&part, |s| {
            let inputs = of(s, from, rows)?.token_reduction(Reduction::SumOver(2));
            let unstated = objective.evaluate(&inputs).unwrap_err().to_string();
            assert!(unstated.contains("`at`") && unstated.contains("sample_reduction"), "{unstated}");
            Ok(objective.evaluate(&inputs.sample_reduction(Reduction::SumOver(3)))?.total)
        });
        sum += value;
        sum_gradient.extend(gradient);
    }
    assert!((sum - value).abs() < 1e-12 * value);
    for (found, expected) in sum_gradient.iter().zip(&gradient) {
        assert!((found - expected).abs() < 1e-12);
    }
}

#[test]
fn a_term_of_weight_zero_is_reported_and_takes_no_part() {
    let mut objective = objective();
    objective.set_weight("relations", 0.0).unwrap();
    objective.set_weight("ce", 0.0).unwrap();
    let (_, gradient) = value_and_gradient(&student(), |z| Ok(objective.evaluate(&inputs(z))?.total));
    let (_, alone) = value_and_gradient(&student(), |z| {
        let loss = Hinton::new(temperature(4.0)).loss(inputs(z).given_logits()?, Reduction::TokenMean)?;
        Ok((loss * 0.9)?)
    });
    assert_eq!(gradient, alone);
    assert!(objective.evaluate(&inputs(&student())).unwrap().report.get("ce").unwrap().value > 0.0);
    assert!(objective.set_weight("kl", 1.0).unwrap_err().to_string().contains("`kl`"));
}

#[test]
fn terms_of_two_types_meet_in_the_wider() {
    let narrow = student().to_dtype(DType::F32).unwrap();
    let hidden = wave(&[2, 3], 0.3, 0.1, 1.0);
    let objective =
        Objective::new().term("ce", 1.0, CrossEntropy).term("hidden", 1.0, HiddenMse::new().at("h"));
    let inputs = inputs(&narrow).features("h", Features::new(&hidden, &hidden.affine(2.0, 1.0).unwrap()));
    let step = objective.evaluate(&inputs).unwrap();
    assert_eq!(step.total.dtype(), DType::F64);
    let sum: f64 = step.report.terms.iter().map(|term| term.value).sum();
    assert!((step.report.total - sum).abs() < 1e-14);
}

#[test]
fn what_cannot_be_evaluated_is_an_error_that_names_the_term() {
    let inputs = inputs(&student());
    let says = |objective: Objective, inputs: &Inputs, parts: &[&str]| {
        let message = objective.evaluate(inputs).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "`{message}` does not say `{part}`");
        }
    };
    says(Objective::new(), &inputs, &["no terms"]);
    says(objective().term("kd", 1.0, CrossEntropy), &inputs, &["two terms", "`kd`"]);
    says(objective().term("x", f64::NAN, CrossEntropy), &inputs, &["`x`", "NaN"]);
    says(Objective::new().term("x", 0.0, CrossEntropy), &inputs, &["every weight is 0"]);
    says(objective(), &Inputs::new(), &["`ce`", "logits missing", "Inputs::logits"]);
    says(
        objective().term("h", 1.0, HiddenMse::new().at("block.3")),
        &inputs,
        &["term `h`", "features `block.3` missing", "given: `logits`"],
    );
    let nan = Tensor::full(f64::NAN, (2, 3), &Device::Cpu).unwrap();
    let spoiled = inputs.clone().features("h", Features::new(&nan, &nan));
    says(objective().term("h", 1.0, HiddenMse::new().at("h")), &spoiled, &["`h` is NaN"]);
}

/// A term of one's own, over all the inputs.
#[derive(Debug)]
struct Smallness;

impl Term for Smallness {
    fn compute(&self, inputs: &Inputs) -> Result<RowLoss> {
        let z = inputs.given_logits()?.student();
        RowLoss::each(z.sqr()?.sum(1)?, Unit::Token)
    }
}

#[test]
fn a_term_of_ones_own_takes_part() {
    let objective = Objective::new().term("small", 2.0, Smallness);
    let expected: f64 = values(&student())
        .chunks(7)
        .enumerate()
        .filter(|(i, _)| *i != 2)
        .flat_map(|(_, r)| r)
        .map(|z| z * z)
        .sum();
    let total = scalar(&objective.evaluate(&inputs(&student())).unwrap().total);
    assert!((total - 2.0 * expected / 3.0).abs() < 1e-12);
}

#[test]
fn training_on_an_objective_brings_the_student_to_the_teacher() {
    let teacher = wave(&[4, 7], 1.1, 0.5, 3.0);
    let student = Var::from_tensor(&student()).unwrap();
    let objective = Objective::new().term("kd", 1.0, Hinton::default());
    let value = || {
        let logits = Logits::of(&student).teacher(&teacher).prepare().unwrap();
        objective.evaluate(&Inputs::new().logits(logits)).unwrap()
    };
    let before = value().report.total;
    for _ in 0..300 {
        let grads = value().total.backward().unwrap();
        grad_coverage([("logits", &student)], &grads).unwrap();
        let step = (grads.get(&student).unwrap() * 4.0).unwrap();
        student.set(&(student.as_tensor() - step).unwrap()).unwrap();
    }
    let after = value().report.total;
    assert!(before > 1.0 && after < 1e-3, "{before} to {after}");
}

#[test]
fn coverage_names_every_variable_without_a_gradient() {
    let device = Device::Cpu;
    let var = |x: f32| Var::new(&[[x, 1.0, 2.0]], &device).unwrap();
    let (used, fused, unused) = (var(0.5), var(0.1), var(0.2));
    let soft = candle_nn::ops::softmax_last_dim(fused.as_tensor()).unwrap();
    let grads = (used.as_tensor() * soft).unwrap().sum_all().unwrap().backward().unwrap();

    let vars = [("a", &used), ("b", &fused), ("c", &unused)];
    let coverage = Coverage::of(vars, &grads);
    assert_eq!(
        (coverage.covered.as_slice(), coverage.missing.as_slice()),
        (&["a".into()][..], &["b".into(), "c".into()][..])
    );
    assert_eq!(coverage.to_string(), "1 of 3 variables have a gradient; without: b, c");
    match grad_coverage(vars, &grads).unwrap_err() {
        error @ Error::NoGradient { .. } => {
            assert!(error.to_string().starts_with("2 of 3 trainable variables got no gradient: `b`, `c`;"));
        }
        other => panic!("{other}"),
    }
    assert_eq!(grad_coverage([("a", &used)], &grads).unwrap().covered, ["a"]);
    assert!(grad_coverage(std::iter::empty::<(&str, &Var)>(), &grads).is_err());
}

#[test]
fn errors_pass_into_core() {
    let z = student();
    let error = Logits::of(&z).teacher(&wave(&[4, 9], 1.0, 0.0, 1.0)).prepare().unwrap_err();
    let message = error.to_string();
    assert_eq!(taper_core::Error::from(error).to_string(), message);
    let candle = Error::from(z.get(9).unwrap_err());
    assert!(matches!(taper_core::Error::from(candle), taper_core::Error::Candle(_)));
}
