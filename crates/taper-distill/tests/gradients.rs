//! The gradient of every loss by every student input, against finite differences and closed forms, in f64.

mod harness;

use candle_core::{DType, Device, Tensor, Var};
use harness::*;
use taper_distill::*;

fn student() -> Tensor {
    wave(&[4, 7], 0.7, 0.3, 2.0)
}

fn teacher() -> Tensor {
    wave(&[4, 7], 1.1, 0.5, 3.0)
}

#[test]
fn logit_losses_on_all_rows() {
    let targets = labels(&[2, 0, 6, 3], &[4]);
    for (name, loss) in logit_losses() {
        for reduction in [Reduction::TokenMean, Reduction::Sum, Reduction::SumOver(3)] {
            assert_gradient(name, &student(), |z| {
                loss.loss(&Logits::of(z).teacher(&teacher()).labels(&targets).prepare()?, reduction)
            });
        }
    }
}

#[test]
fn logit_losses_with_ignored_rows_and_a_cut_vocabulary() {
    let (z, t) = (wave(&[2, 3, 7], 0.7, 0.3, 2.0), wave(&[2, 3, 6], 1.1, 0.5, 3.0));
    let targets = labels(&[2, -100, 4, 0, 1, -100], &[2, 3]);
    for (name, loss) in logit_losses() {
        assert_gradient(name, &z, |z| {
            let logits = Logits::of(z).teacher(&t).labels(&targets).vocabulary(Vocabulary::Truncate(5));
            loss.loss(&logits.prepare()?, Reduction::TokenMean)
        });
    }
}

#[test]
fn logit_losses_with_excluded_classes() {
    let mut z = values(&student());
    let mut t = values(&teacher());
    for (row, class) in [(0, 6), (1, 6), (2, 5), (3, 1)] {
        z[row * 7 + class] = f64::NEG_INFINITY;
    }
    for (row, class) in [(0, 6), (1, 2), (3, 4)] {
        t[row * 7 + class] = f64::NEG_INFINITY;
    }
    let [z, t] = [z, t].map(|x| Tensor::from_vec(x, (4, 7), &Device::Cpu).unwrap());
    let targets = labels(&[2, 0, 6, 3], &[4]);
    for (name, loss) in logit_losses() {
        assert_gradient(name, &z, |z| {
            loss.loss(&Logits::of(z).teacher(&t).labels(&targets).prepare()?, Reduction::TokenMean)
        });
    }
}

#[test]
fn next_token_alignment() {
    let (z, t) = (wave(&[2, 4, 5], 0.9, 0.1, 2.0), wave(&[2, 4, 5], 1.3, 0.7, 2.5));
    let targets = labels(&[1, 2, -100, 3, -100, 0, 4, 1], &[2, 4]);
    let shifted = labels(&[2, -100, 3, 0, 4, 1], &[2, 3]);
    let by_hand = |x: &Tensor| x.narrow(1, 0, 3).unwrap();
    for (name, loss) in logit_losses() {
        let aligned = |z: &Tensor| {
            let logits = Logits::of(z).teacher(&t).labels(&targets).alignment(Alignment::NextToken);
            loss.loss(&logits.prepare()?, Reduction::TokenMean)
        };
        let plain = Logits::of(&by_hand(&z)).teacher(&by_hand(&t)).labels(&shifted).prepare().unwrap();
        let plain = loss.loss(&plain, Reduction::TokenMean).unwrap();
        assert_eq!(scalar(&aligned(&z).unwrap()), scalar(&plain), "{name}");
        assert_gradient(name, &z, aligned);
    }
}

/// p, q and the gradient of `loss` at temperature `t` on the classifier batch, row by row.
fn rows(loss: impl LogitLoss, t: f64) -> Vec<(Vec<f64>, Vec<f64>, Vec<f64>)> {
    let targets = labels(&[2, 0, 6, 3], &[4]);
    let (_, gradient) = value_and_gradient(&student(), |z| {
        loss.loss(&Logits::of(z).teacher(&teacher()).labels(&targets).prepare()?, Reduction::Sum)
    });
    let softmax = |x: &[f64]| {
        let e: Vec<f64> = x.iter().map(|x| (x / t).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|e| e / sum).collect::<Vec<f64>>()
    };
    let (z, p) = (values(&student()), values(&teacher()));
    let row = |i: usize| i * 7..(i + 1) * 7;
    (0..4).map(|i| (softmax(&p[row(i)]), softmax(&z[row(i)]), gradient[row(i)].to_vec())).collect()
}

fn assert_rows(name: &str, loss: impl LogitLoss, t: f64, expected: impl Fn(&[f64], &[f64]) -> Vec<f64>) {
    for (p, q, gradient) in rows(loss, t) {
        for (found, expected) in gradient.iter().zip(expected(&p, &q)) {
            assert!((found - expected).abs() < 1e-13, "{name}: {found} instead of {expected}");
        }
    }
}

/// q ⊙ (g − ⟨q, g⟩): the gradient by z of a loss whose derivative by q is g.
fn through_softmax(q: &[f64], g: impl Fn(usize) -> f64) -> Vec<f64> {
    let mean: f64 = q.iter().enumerate().map(|(j, q)| q * g(j)).sum();
    q.iter().enumerate().map(|(j, q)| q * (g(j) - mean)).collect()
}

#[test]
fn closed_forms() {
    assert_rows("hinton", Hinton::new(temperature(3.0)), 3.0, |p, q| {
        q.iter().zip(p).map(|(q, p)| 3.0 * (q - p)).collect()
    });
    assert_rows("reverse KL", Divergence::reverse_kl(), 1.0, |p, q| {
        through_softmax(q, |j| (q[j] / p[j]).ln())
    });
    let beta = 0.3;
    assert_rows("JS", Divergence::jensen_shannon(beta).unwrap(), 1.0, |p, q| {
        let m = |j: usize| beta * p[j] + (1.0 - beta) * q[j];
        through_softmax(q, |j| (1.0 - beta) * (q[j] / m(j)).ln())
    });
    let skew = 0.2;
    assert_rows("skew forward", Divergence::skew_forward_kl(skew).unwrap(), 1.0, |p, q| {
        through_softmax(q, |j| -(1.0 - skew) * p[j] / (skew * p[j] + (1.0 - skew) * q[j]))
    });
    assert_rows("skew reverse", Divergence::skew_reverse_kl(skew).unwrap(), 1.0, |p, q| {
        let m = |j: usize| (1.0 - skew) * p[j] + skew * q[j];
        through_softmax(q, |j| (q[j] / m(j)).ln() + 1.0 - skew * q[j] / m(j))
    });
    assert_rows("total variation", Divergence::total_variation(), 1.0, |p, q| {
        through_softmax(q, |j| 0.5 * (q[j] - p[j]).signum())
    });
}

#[test]
fn feature_losses_over_positions() {
    let (s, t) = (wave(&[2, 3, 6], 0.3, 0.1, 2.0), wave(&[2, 3, 6], 0.45, 0.6, 2.0));
    let targets = labels(&[1, -100, 5, 7, 0, -100], &[2, 3]);
    let losses: [(&str, Box<dyn FeatureLoss>); 2] =
        [("hidden", Box::new(HiddenMse::new())), ("cosine", Box::new(Cosine::new()))];
    for (name, loss) in losses {
        let mean = Reduction::TokenMean;
        assert_gradient(name, &s, |s| loss.loss(&Features::new(s, &t), mean));
        assert_gradient(name, &s, |s| loss.loss(&Features::new(s, &t).labels(&targets), mean));
        assert_gradient(name, &s, |s| loss.loss(&Features::new(s, &t).lengths(&[1, 2]), mean));
    }
}

#[test]
fn projections_and_what_they_project() {
    let (s, t) = (wave(&[5, 4], 0.3, 0.1, 2.0), wave(&[5, 6], 0.45, 0.6, 2.0));
    let (weight, bias) = (wave(&[6, 4], 0.77, 0.2, 0.8), wave(&[6], 0.5, 0.9, 0.3));
    let linear = |w: &Tensor, b: &Tensor| Projection::new(candle_nn::Linear::new(w.clone(), Some(b.clone())));
    type Make = fn(Projection) -> Box<dyn FeatureLoss>;
    let losses: [(&str, Make); 3] = [
        ("hidden", |p| Box::new(HiddenMse::projected(p))),
        ("cosine", |p| Box::new(Cosine::projected(p))),
        ("fitnets", |p| Box::new(FitNets::new(p))),
    ];
    for (name, make) in losses {
        let mean = Reduction::TokenMean;
        assert_gradient(name, &s, |s| make(linear(&weight, &bias)).loss(&Features::new(s, &t), mean));
        assert_gradient(name, &weight, |w| make(linear(w, &bias)).loss(&Features::new(&s, &t), mean));
        assert_gradient(name, &bias, |b| make(linear(&weight, b)).loss(&Features::new(&s, &t), mean));
    }
}

#[test]
fn fitnets_through_a_convolution() {
    let (s, t) = (wave(&[2, 3, 4, 4], 0.37, 0.2, 1.5), wave(&[2, 5, 4, 4], 0.53, 0.9, 1.2));
    let kernel = wave(&[5, 3, 1, 1], 0.7, 0.1, 1.0);
    let conv = |k: &Tensor| {
        Projection::new(candle_nn::Conv2d::new(k.clone(), None, candle_nn::Conv2dConfig::default()))
    };
    let mean = Reduction::TokenMean;
    let loss = |s: &Tensor, k: &Tensor| FitNets::new(conv(k)).loss(&Features::new(s, &t), mean);
    assert_gradient("fitnets", &s, |s| loss(s, &kernel));
    assert_gradient("fitnets kernel", &kernel, |k| loss(&s, k));

    // Against plain loops.
    let (sv, tv, kv) = (values(&s), values(&t), values(&kernel));
    let mut sum = 0.0;
    for (b, o, place) in (0..2).flat_map(|b| (0..5).flat_map(move |o| (0..16).map(move |p| (b, o, p)))) {
        let r: f64 = (0..3).map(|c| kv[o * 3 + c] * sv[(b * 3 + c) * 16 + place]).sum();
        sum += (r - tv[(b * 5 + o) * 16 + place]).powi(2);
    }
    assert!((scalar(&loss(&s, &kernel).unwrap()) - sum / 160.0).abs() < 1e-13);
}

#[test]
fn attention_transfer_where_either_model_is_larger() {
    let mean = Reduction::TokenMean;
    for (size_s, size_t) in [([4, 4], [2, 2]), ([2, 3], [5, 4]), ([5, 2], [3, 4]), ([3, 3], [3, 3])] {
        let s = wave(&[2, 3, size_s[0], size_s[1]], 0.37, 0.2, 1.5);
        let t = wave(&[2, 5, size_t[0], size_t[1]], 0.53, 0.9, 1.2);
        assert_gradient("attention transfer", &s, |s| AttentionTransfer.loss(&Features::new(s, &t), mean));
        let oracle = attention_transfer_by_loops(&s, &t);
        let found = scalar(&AttentionTransfer.loss(&Features::new(&s, &t), mean).unwrap());
        assert!((found - oracle).abs() < 1e-13, "{size_s:?} {size_t:?}: {found} instead of {oracle}");
    }
}

fn attention_transfer_by_loops(s: &Tensor, t: &Tensor) -> f64 {
    let (batch, _, hs, ws) = s.dims4().unwrap();
    let (_, _, ht, wt) = t.dims4().unwrap();
    let (h, w) = (hs.min(ht), ws.min(wt));
    let map = |x: &Tensor, b: usize| {
        let (_, channels, height, width) = x.dims4().unwrap();
        let v = values(x);
        let mut map = vec![0.0; h * w];
        for (i, j, c) in (0..h).flat_map(|i| (0..w).flat_map(move |j| (0..channels).map(move |c| (i, j, c))))
        {
            let rows = (i * height) / h..((i + 1) * height).div_ceil(h);
            let columns = (j * width) / w..((j + 1) * width).div_ceil(w);
            let count = (rows.len() * columns.len()) as f64;
            let cells = rows.flat_map(|y| columns.clone().map(move |x| (y, x)));
            let mean: f64 =
                cells.map(|(y, x)| v[((b * channels + c) * height + y) * width + x]).sum::<f64>() / count;
            map[i * w + j] += mean * mean / channels as f64;
        }
        let norm = map.iter().map(|x| x * x).sum::<f64>().sqrt();
        map.iter().map(|x| x / norm).collect::<Vec<f64>>()
    };
    let squares = (0..batch).flat_map(|b| map(s, b).into_iter().zip(map(t, b)).map(|(a, b)| (a - b).powi(2)));
    squares.sum::<f64>() / (batch * h * w) as f64
}

#[test]
fn relations_between_samples() {
    let mean = Reduction::TokenMean;
    // Large enough differences for both branches of the smooth L1.
    let (s, t) = (wave(&[5, 3], 0.7, 0.3, 2.0), wave(&[5, 2, 3], 2.9, 0.5, 40.0));
    assert_gradient("distance", &s, |s| RelationalDistance.loss(&Features::new(s, &t), mean));
    assert_gradient("angle", &s, |s| RelationalAngle.loss(&Features::new(s, &t), mean));
    assert_gradient("distance, sum", &s, |s| {
        RelationalDistance.loss(&Features::new(s, &t), Reduction::SumOver(10))
    });
    // The five samples of a batch share one value; they are half of ten.
    let value = |by| scalar(&RelationalDistance.loss(&Features::new(&s, &t), by).unwrap());
    assert!((value(Reduction::SumOver(10)) - 0.5 * value(mean)).abs() < 1e-14);
    assert!((value(Reduction::Sum) - 5.0 * value(mean)).abs() < 1e-14);
}

#[test]
fn relations_within_sequences() {
    let (s, t) = (wave(&[3, 4, 6], 0.67, 0.4, 2.0), wave(&[3, 4, 12], 0.41, 0.2, 2.0));
    for lengths in [[4, 4, 4], [4, 3, 1], [2, 0, 3]] {
        assert_gradient("minilm", &s, |s| {
            MiniLm::new(3)?.loss(&Features::new(s, &t).lengths(&lengths), Reduction::TokenMean)
        });
    }
}

#[test]
fn attention_scores_with_masked_entries() {
    let mut s = values(&wave(&[2, 2, 3, 3], 0.67, 0.4, 2.0));
    let mut t = values(&wave(&[2, 2, 3, 3], 0.41, 0.2, 2.0));
    for i in [2, 5, 8] {
        s[i] = -10_000.0;
        t[i] = f64::NEG_INFINITY;
    }
    s[10] = -150.0;
    t[12] = -100.0;
    let by_loops: f64 = s
        .iter()
        .zip(&t)
        .map(|(s, t)| if *s <= -100.0 { 0.0 } else { *s } - if *t <= -100.0 { 0.0 } else { *t })
        .map(|d| d * d)
        .sum::<f64>()
        / 36.0;
    let [s, t] = [s, t].map(|x| Tensor::from_vec(x, (2, 2, 3, 3), &Device::Cpu).unwrap());
    let loss = |s: &Tensor| TinyBertAttention.loss(&Features::new(s, &t), Reduction::TokenMean);
    assert!((scalar(&loss(&s).unwrap()) - by_loops).abs() < 1e-13);
    assert_gradient("tinybert attention", &s, loss);
}

#[test]
fn the_teacher_gets_no_gradient() {
    let teacher = Var::from_tensor(&teacher()).unwrap();
    let student = Var::from_tensor(&student()).unwrap();
    let targets = labels(&[2, 0, 6, 3], &[4]);
    for (name, loss) in logit_losses() {
        let logits = Logits::of(&student).teacher(&teacher).labels(&targets).prepare().unwrap();
        let grads = loss.loss(&logits, Reduction::TokenMean).unwrap().backward().unwrap();
        assert!(grads.get(&student).is_some() && grads.get(&teacher).is_none(), "{name}");
    }
}

#[test]
fn half_precision_is_computed_in_f32_and_its_gradient_comes_back_in_half() {
    for dtype in [DType::BF16, DType::F16] {
        let z = student().to_dtype(dtype).unwrap();
        let t = teacher().to_dtype(DType::BF16).unwrap();
        let targets = labels(&[2, 0, 6, 3], &[4]);
        for (name, loss) in logit_losses() {
            let of = |z: &Tensor| {
                let logits = Logits::of(z).teacher(&t).labels(&targets).prepare()?;
                loss.loss(&logits, Reduction::TokenMean)
            };
            let var = Var::from_tensor(&z).unwrap();
            let half = of(&var).unwrap();
            assert_eq!(half.dtype(), DType::F32, "{name}");
            let exact = scalar(&of(&z.to_dtype(DType::F32).unwrap()).unwrap());
            assert_eq!(scalar(&half), exact, "{name}");
            assert_eq!(half.backward().unwrap().get(&var).unwrap().dtype(), dtype, "{name}");
        }
    }
}
