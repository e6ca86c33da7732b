//! Rows and classes that do not count: exactly zero, whatever stands there.

mod harness;

use candle_core::{DType, Device, Tensor, Var};
use harness::*;
use taper_distill::*;

const GARBAGE: [f64; 4] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300];

fn tensor(values: Vec<f64>, dims: &[usize]) -> Tensor {
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

#[test]
fn ignored_rows_are_as_if_they_were_not_there_whatever_they_hold() {
    let (z, t) = (wave(&[4, 5], 0.7, 0.3, 2.0), wave(&[4, 5], 1.1, 0.5, 3.0));
    let some = |x: &Tensor| tensor([&values(x)[..5], &values(x)[10..15]].concat(), &[2, 5]);
    for (name, loss) in logit_losses() {
        let alone = |z: &Tensor| {
            let logits = Logits::of(z).teacher(&some(&t)).labels(&labels(&[2, 4], &[2])).prepare()?;
            loss.loss(&logits, Reduction::TokenMean)
        };
        let (value, gradient) = value_and_gradient(&some(&z), alone);
        for garbage in GARBAGE {
            let spoil = |x: &Tensor| {
                let mut x = values(x);
                x[5..10].fill(garbage);
                x[15] = garbage;
                tensor(x, &[4, 5])
            };
            let (found, found_gradient) = value_and_gradient(&spoil(&z), |z| {
                let logits =
                    Logits::of(z).teacher(&spoil(&t)).labels(&labels(&[2, -100, 4, -100], &[4])).prepare()?;
                loss.loss(&logits, Reduction::TokenMean)
            });
            assert_eq!(found, value, "{name}");
            let expected = [&gradient[..5], &[0.0; 5], &gradient[5..], &[0.0; 5]].concat();
            assert_eq!(found_gradient, expected, "{name}");
        }
    }
}

#[test]
fn where_no_row_counts_the_loss_is_zero_and_so_is_its_gradient() {
    let ignored = labels(&[-100; 3], &[3]);
    for garbage in GARBAGE.into_iter().chain([0.5]) {
        let z = tensor(vec![garbage; 12], &[3, 4]);
        for (name, loss) in logit_losses() {
            for reduction in [Reduction::TokenMean, Reduction::Sum, Reduction::SumOver(7)] {
                let (value, gradient) = value_and_gradient(&z, |z| {
                    loss.loss(&Logits::of(z).teacher(&z.detach()).labels(&ignored).prepare()?, reduction)
                });
                assert_eq!((value, gradient), (0.0, vec![0.0; 12]), "{name}");
            }
        }
        for loss in [&HiddenMse::new() as &dyn FeatureLoss, &Cosine::new()] {
            let (value, gradient) = value_and_gradient(&z, |z| {
                loss.loss(&Features::new(z, &z.detach()).labels(&ignored), Reduction::TokenMean)
            });
            assert_eq!((value, gradient), (0.0, vec![0.0; 12]), "{loss:?}");
        }
        let (value, gradient) = value_and_gradient(&z.reshape((1, 3, 4)).unwrap(), |z| {
            MiniLm::new(2)?.loss(&Features::new(z, &z.detach()).lengths(&[0]), Reduction::TokenMean)
        });
        assert_eq!((value, gradient), (0.0, vec![0.0; 12]));
    }
}

#[test]
fn a_batch_of_nothing_is_no_rows() {
    let z = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
    for (name, loss) in logit_losses() {
        let logits = Logits::of(&z).teacher(&z).labels(&labels(&[], &[0])).prepare().unwrap();
        assert_eq!(scalar(&loss.loss(&logits, Reduction::TokenMean).unwrap()), 0.0, "{name}");
    }
}

#[test]
fn classes_of_minus_infinity_are_as_if_they_were_cut_off() {
    let (z, t) = (wave(&[3, 5], 0.7, 0.3, 2.0), wave(&[3, 5], 1.1, 0.5, 3.0));
    let targets = labels(&[2, 0, 4], &[3]);
    let pad = |x: &Tensor, with: f64| {
        let rows = values(x);
        tensor(rows.chunks(5).flat_map(|row| [row, &[with; 3]].concat()).collect(), &[3, 8])
    };
    let minus = f64::NEG_INFINITY;
    for (name, loss) in logit_losses() {
        let value = |z: &Tensor, t: &Tensor, vocabulary| {
            value_and_gradient(z, |z| {
                let logits = Logits::of(z).teacher(t).labels(&targets).vocabulary(vocabulary).prepare()?;
                loss.loss(&logits, Reduction::TokenMean)
            })
        };
        let (expected, gradient) = value(&z, &t, Vocabulary::Equal);
        let gradient = pad(&tensor(gradient, &[3, 5]), 0.0);
        let lowest = f64::from(f32::MIN);
        let mut paddings = vec![
            (minus, minus, Vocabulary::Equal),
            (lowest, minus, Vocabulary::Equal),
            (lowest, lowest, Vocabulary::Equal),
            (minus, 7.0, Vocabulary::Equal),
        ];
        if name != "cross entropy" {
            // Cross entropy looks at the student alone.
            paddings.push((7.0, minus, Vocabulary::Equal));
        }
        paddings.push((f64::NAN, f64::INFINITY, Vocabulary::Truncate(5)));
        for (in_student, in_teacher, vocabulary) in paddings {
            let (found, found_gradient) = value(&pad(&z, in_student), &pad(&t, in_teacher), vocabulary);
            let what = format!("{name}, padding {in_student} and {in_teacher}");
            assert!((found - expected).abs() < 1e-13, "{what}: {found} instead of {expected}");
            for (found, expected) in found_gradient.iter().zip(values(&gradient)) {
                assert!((found - expected).abs() < 1e-13, "{what}: {found} instead of {expected}");
                assert!(expected != 0.0 || *found == 0.0, "{what}: padding gets exactly zero");
            }
        }
    }
}

/// Masks of the lowest finite number divided by a temperature below one would overflow f32.
#[test]
fn masks_of_the_lowest_number_do_not_overflow_in_f32() {
    let z = tensor(vec![1.0, 2.0, f64::from(f32::MIN)], &[1, 3]).to_dtype(DType::F32).unwrap();
    let t = tensor(vec![0.0, 3.0, f64::from(f32::MIN)], &[1, 3]);
    for (name, loss) in logit_losses() {
        let (value, gradient) = value_and_gradient(&z, |z| {
            let logits = Logits::of(z).teacher(&t).labels(&labels(&[1], &[1])).prepare()?;
            loss.loss(&logits, Reduction::TokenMean)
        });
        assert!(value.is_finite() && gradient[..2].iter().all(|g| g.is_finite()), "{name}: {gradient:?}");
        assert_eq!(gradient[2], 0.0, "{name}");
    }
}

#[test]
fn positions_beyond_a_sequences_length_are_as_if_they_were_cut_off() {
    let (s, t) = (wave(&[2, 4, 6], 0.67, 0.4, 2.0), wave(&[2, 4, 12], 0.41, 0.2, 2.0));
    let cut = |x: &Tensor| x.narrow(1, 0, 3).unwrap().contiguous().unwrap();
    let spoil = |x: &Tensor, garbage: f64| {
        let filler = Tensor::full(garbage, (2, 1, x.dim(2).unwrap()), &Device::Cpu)
            .unwrap()
            .to_dtype(x.dtype())
            .unwrap();
        Tensor::cat(&[&cut(x), &filler], 1).unwrap()
    };
    let wide = t.narrow(2, 0, 6).unwrap().contiguous().unwrap();
    let losses: [(&dyn FeatureLoss, &Tensor); 3] =
        [(&MiniLm::new(3).unwrap(), &t), (&HiddenMse::new(), &wide), (&Cosine::new(), &wide)];
    for (loss, t) in losses {
        let (value, gradient) = value_and_gradient(&cut(&s), |s| {
            loss.loss(&Features::new(s, &cut(t)).lengths(&[3, 2]), Reduction::TokenMean)
        });
        assert!(value > 0.0);
        for garbage in GARBAGE {
            let (found, found_gradient) = value_and_gradient(&spoil(&s, garbage), |s| {
                loss.loss(&Features::new(s, &spoil(t, garbage)).lengths(&[3, 2]), Reduction::TokenMean)
            });
            assert!((found - value).abs() < 1e-14, "{loss:?}: {found} instead of {value}");
            let kept: Vec<f64> = [&found_gradient[..18], &found_gradient[24..42]].concat();
            for (found, expected) in kept.iter().zip(&gradient) {
                assert!((found - expected).abs() < 1e-14, "{loss:?}");
            }
            assert!(
                found_gradient[18..24].iter().chain(&found_gradient[42..]).all(|g| *g == 0.0),
                "{loss:?}"
            );
        }
    }
}

/// Logits far beyond what exp can hold, in f32: values and gradients stay finite and agree with f64.
#[test]
fn extreme_logits_stay_finite_and_right_in_f32() {
    let z = tensor(vec![9e3, -9e3, 0.0, 4e3, 120.0, 0.0, -80.0, 3.0, -1e4, -1e4, -1e4, -1e4], &[3, 4]);
    let t = tensor(vec![-5e3, 7e3, 1.0, 7e3, 0.0, 90.0, -30.0, 3.0, -1e4, 1e4, -1e4, -1e4], &[3, 4]);
    let targets = labels(&[0, 0, 3], &[3]);
    for (name, loss) in logit_losses() {
        let of = |z: &Tensor| {
            loss.loss(&Logits::of(z).teacher(&t).labels(&targets).prepare()?, Reduction::TokenMean)
        };
        let (exact, gradient) = value_and_gradient(&z, of);
        let (found, found_gradient) = value_and_gradient(&z.to_dtype(DType::F32).unwrap(), of);
        assert!((found - exact).abs() <= 1e-5 * (1.0 + exact.abs()), "{name}: {found} instead of {exact}");
        let largest = gradient.iter().fold(1f64, |m, g| m.max(g.abs()));
        for (found, exact) in found_gradient.iter().zip(&gradient) {
            assert!((found - exact).abs() <= 1e-5 * largest, "{name}: {found} instead of {exact}");
        }
    }
}

/// A student so sure of its label that 1 − q_y is 0 in f32 still learns what the teacher thinks of the rest.
#[test]
fn dkd_keeps_its_digits_where_the_target_is_certain() {
    let z = tensor(vec![60.0, 0.0, 1.0], &[1, 3]);
    let t = tensor(vec![2.0, 1.0, 0.0], &[1, 3]);
    let loss = Dkd::new(1.0, 8.0, Temperature::ONE).unwrap();
    let of = |z: &Tensor| {
        loss.loss(&Logits::of(z).teacher(&t).labels(&labels(&[0], &[1])).prepare()?, Reduction::TokenMean)
    };
    // By hand, in f64, with b = 1 − q_y = (1 + e) e^-60 / (1 + (1 + e) e^-60).
    let e = 1f64.exp();
    let others = (1.0 + e) * (-60f64).exp();
    let p_rest = (e + 1.0) / (e * e + e + 1.0);
    let (log_q, log_rest) = (-others.ln_1p(), others.ln() - others.ln_1p());
    let target = (1.0 - p_rest) * ((1.0 - p_rest).ln() - log_q) + p_rest * (p_rest.ln() - log_rest);
    let (p1, q1) = (e / (1.0 + e), 1.0 / (1.0 + e));
    let rest = p1 * (p1 / q1).ln() + (1.0 - p1) * ((1.0 - p1) / (1.0 - q1)).ln();
    let expected = target + 8.0 * rest;
    let found = scalar(&of(&z).unwrap());
    assert!((found - expected).abs() < 1e-12 * expected, "{found} instead of {expected}");
    let (found, gradient) = value_and_gradient(&z.to_dtype(DType::F32).unwrap(), of);
    assert!((found - expected).abs() < 1e-6 * expected, "{found} instead of {expected}");
    assert!((gradient[0] - p_rest).abs() < 1e-6, "the target is pulled down: {gradient:?}");
}

/// Equal samples, zero vectors and constant rows: where a plain formula divides by zero, gradients stay finite.
#[test]
fn degenerate_features_have_finite_gradients() {
    let t = wave(&[3, 4], 0.7, 0.3, 2.0);
    let degenerate = [
        tensor(vec![0.0; 12], &[3, 4]),
        tensor([[1.0, 2.0, 3.0, 4.0]; 3].concat(), &[3, 4]),
        tensor(vec![1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0], &[3, 4]),
    ];
    let losses: [&dyn FeatureLoss; 4] =
        [&HiddenMse::new(), &Cosine::new(), &RelationalDistance, &RelationalAngle];
    for s in degenerate.iter().flat_map(|s| [s.clone(), s.to_dtype(DType::F32).unwrap()]) {
        for loss in losses {
            let (value, gradient) =
                value_and_gradient(&s, |s| loss.loss(&Features::new(s, &t), Reduction::Sum));
            assert!(value.is_finite() && gradient.iter().all(|g| g.abs() < 1e7), "{loss:?}: {gradient:?}");
        }
        let (value, gradient) = value_and_gradient(&s.reshape((3, 1, 2, 2)).unwrap(), |s| {
            AttentionTransfer.loss(&Features::new(s, &t.reshape((3, 1, 2, 2))?), Reduction::Sum)
        });
        assert!(value.is_finite() && gradient.iter().all(|g| g.abs() < 1e7), "{gradient:?}");
        for (name, loss) in logit_losses() {
            let targets = labels(&[0, 1, 2], &[3]);
            let (value, gradient) = value_and_gradient(&s, |s| {
                loss.loss(&Logits::of(s).teacher(&t).labels(&targets).prepare()?, Reduction::TokenMean)
            });
            assert!(value.is_finite() && gradient.iter().all(|g| g.abs() < 1e9), "{name}: {gradient:?}");
        }
    }
}

#[test]
fn a_single_sample_has_no_relations() {
    let (s, t) = (wave(&[1, 4], 0.7, 0.3, 2.0), wave(&[1, 4], 1.1, 0.5, 3.0));
    for loss in [&RelationalDistance as &dyn FeatureLoss, &RelationalAngle] {
        let (value, gradient) =
            value_and_gradient(&s, |s| loss.loss(&Features::new(s, &t), Reduction::TokenMean));
        assert_eq!((value, gradient), (0.0, vec![0.0; 4]), "{loss:?}");
    }
    let between_samples = Dist::new(0.0, 1.0, Temperature::ONE).unwrap();
    let (value, gradient) = value_and_gradient(&s, |s| {
        between_samples.loss(&Logits::of(s).teacher(&t).prepare()?, Reduction::TokenMean)
    });
    assert_eq!((value, gradient), (0.0, vec![0.0; 4]));
}

#[test]
fn what_does_not_fit_is_an_error_that_says_what_would() {
    let z = wave(&[2, 3], 0.7, 0.3, 2.0);
    let says = |result: Result<Logits>, part: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(part), "`{message}` does not say `{part}`");
    };
    let wide = wave(&[2, 5], 1.1, 0.5, 3.0);
    says(Logits::of(&z).teacher(&wide).prepare(), "Vocabulary::Truncate(3)");
    says(
        Logits::of(&z).teacher(&wide).vocabulary(Vocabulary::Truncate(4)).prepare(),
        "student logits have (3)",
    );
    says(Logits::of(&z).vocabulary(Vocabulary::Truncate(0)).prepare(), "at least one class");
    says(Logits::of(&z).teacher(&wave(&[3, 3], 1.0, 0.0, 1.0)).prepare(), "all dimensions but the last");
    says(Logits::of(&z).labels(&labels(&[0], &[1])).prepare(), "one label per row");
    says(
        Logits::of(&z).labels(&labels(&[0, 3], &[2])).prepare(),
        "label 3 of row 1 is no class; expected 0..3",
    );
    says(Logits::of(&z).labels(&labels(&[-1, 0], &[2])).prepare(), "label -1 of row 0");
    says(Logits::of(&z).labels(&wave(&[2], 1.0, 0.0, 1.0)).prepare(), "an integer type");
    says(Logits::of(&z.get(0).unwrap()).prepare(), "[.., classes]");
    says(Logits::of(&z.to_dtype(DType::U32).unwrap()).prepare(), "f64, f32, f16 or bf16");
    says(Logits::of(&z).alignment(Alignment::NextToken).prepare(), "[batch, sequence, classes]");
    let excluded = tensor(
        vec![1.0, f64::NEG_INFINITY, 1.0, f64::NEG_INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY],
        &[2, 3],
    );
    says(Logits::of(&excluded).prepare(), "row 1 has no class");
    let other = tensor(vec![f64::NEG_INFINITY, 1.0, f64::NEG_INFINITY, 0.0, 0.0, 0.0], &[2, 3]);
    says(
        Logits::of(&other).teacher(&excluded).labels(&labels(&[1, -100], &[2])).prepare(),
        "both models at once",
    );

    let says = |result: Result<Tensor>, part: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(part), "`{message}` does not say `{part}`");
    };
    let mean = Reduction::TokenMean;
    let alone = Logits::of(&z).prepare().unwrap();
    says(Hinton::default().loss(&alone, mean), "teacher logits missing");
    says(CrossEntropy.loss(&alone, mean), "labels missing");
    let impossible = Logits::of(&excluded).labels(&labels(&[1, -100], &[2])).prepare().unwrap();
    says(CrossEntropy.loss(&impossible, mean), "row 0 has logit -inf in the student");
    let full = Logits::of(&z).teacher(&z).prepare().unwrap();
    says(Hinton::default().loss(&full, Reduction::SumOver(0)), "at least 1 row");
    let narrow = z.narrow(1, 0, 2).unwrap();
    says(HiddenMse::new().loss(&Features::new(&z, &narrow), mean), "`Projection`");
    says(RelationalAngle.loss(&Features::new(&z, &z.narrow(0, 0, 1).unwrap()), mean), "same batch");
    says(RelationalAngle.loss(&Features::new(&z, &z).labels(&labels(&[0, 0], &[2])), mean), "whole samples");
    let sequence = z.reshape((1, 2, 3)).unwrap();
    says(
        MiniLm::new(2).unwrap().loss(&Features::new(&sequence, &sequence), mean),
        "2 relation heads must divide",
    );
    says(
        MiniLm::new(3).unwrap().loss(&Features::new(&sequence, &sequence).lengths(&[3]), mean),
        "one length per sequence",
    );
    says(
        TinyBertAttention.loss(&Features::new(&sequence, &sequence), mean),
        "[batch, heads, length, length]",
    );
    says(AttentionTransfer.loss(&Features::new(&z, &z), mean), "[batch, channels, height, width]");
    assert!(Temperature::new(0.0).is_err() && Temperature::new(f64::NAN).is_err());
    assert!(Divergence::jensen_shannon(1.1).is_err() && Divergence::skew_forward_kl(1.0).is_err());
    assert!(Dkd::new(-1.0, 1.0, Temperature::ONE).is_err() && MiniLm::new(0).is_err());
    assert!(Dkd::new(0.0, 0.0, Temperature::ONE).is_err() && Dist::new(0.0, 0.0, Temperature::ONE).is_err());
}

#[test]
fn tinyberts_layer_maps() {
    assert_eq!(loss::tinybert::attention_layers(4, 12).unwrap(), [2, 5, 8, 11]);
    assert_eq!(loss::tinybert::hidden_states(4, 12).unwrap(), [0, 3, 6, 9, 12]);
    assert!(
        loss::tinybert::hidden_states(5, 12).is_err() && loss::tinybert::attention_layers(0, 12).is_err()
    );
}

#[test]
fn labels_of_every_integer_type_are_read() {
    let z = Var::from_tensor(&wave(&[3, 4], 0.7, 0.3, 2.0)).unwrap();
    let value = |labels: &Tensor| {
        let logits = Logits::of(&z).labels(labels).prepare().unwrap();
        scalar(&CrossEntropy.loss(&logits, Reduction::TokenMean).unwrap())
    };
    let wide = labels(&[1, 0, 3], &[3]);
    for dtype in [DType::U8, DType::U32, DType::I32, DType::I16] {
        assert_eq!(value(&wide.to_dtype(dtype).unwrap()), value(&wide));
    }
}
