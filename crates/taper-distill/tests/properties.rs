//! What holds for all logits: signs, symmetries, invariances, and sums over micro-batches.

mod harness;

use candle_core::{Device, Tensor};
use harness::*;
use proptest::prelude::*;
use taper_distill::*;

/// Student, teacher and labels of a batch; about one row in four is ignored.
#[derive(Debug, Clone)]
struct Batch {
    rows: usize,
    classes: usize,
    student: Vec<f64>,
    teacher: Vec<f64>,
    labels: Vec<i64>,
}

fn batches() -> impl Strategy<Value = Batch> {
    (1usize..6, 2usize..9).prop_flat_map(|(rows, classes)| {
        let logits = || prop::collection::vec(-8.0..8.0, rows * classes);
        let label = prop_oneof![3 => 0..classes as i64, 1 => Just(-100i64)];
        (logits(), logits(), prop::collection::vec(label, rows))
            .prop_map(move |(student, teacher, labels)| Batch { rows, classes, student, teacher, labels })
    })
}

impl Batch {
    fn tensor(&self, values: &[f64]) -> Tensor {
        Tensor::from_slice(values, (self.rows, self.classes), &Device::Cpu).unwrap()
    }

    fn logits(&self, student: &Tensor) -> Result<Logits> {
        let targets = labels(&self.labels, &[self.rows]);
        Logits::of(student).teacher(&self.tensor(&self.teacher)).labels(&targets).prepare()
    }

    fn evaluate(&self, loss: &dyn LogitLoss) -> (f64, Vec<f64>) {
        value_and_gradient(&self.tensor(&self.student), |z| loss.loss(&self.logits(z)?, Reduction::TokenMean))
    }

    fn counted(&self) -> usize {
        self.labels.iter().filter(|label| **label != -100).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn divergences_are_never_negative_and_zero_at_equality(batch in batches()) {
        for (name, loss) in divergences() {
            let (value, _) = batch.evaluate(&*loss);
            prop_assert!(value >= -1e-12, "{name} is {value}");
            let same = Batch { teacher: batch.student.clone(), ..batch.clone() };
            let (value, gradient) = same.evaluate(&*loss);
            prop_assert!(value.abs() < 1e-9, "{name} of equal logits is {value}");
            if name != "total variation" {
                prop_assert!(gradient.iter().all(|g| g.abs() < 1e-7), "{name}: {gradient:?}");
            }
        }
    }

    #[test]
    fn a_shift_of_a_row_changes_nothing(batch in batches(), shift in -50.0..50.0) {
        let mut shifted = batch.clone();
        for (i, (z, t)) in shifted.student.iter_mut().zip(&mut shifted.teacher).enumerate() {
            let by = shift * (1 + i / batch.classes) as f64;
            *z += by;
            *t -= by;
        }
        for (name, loss) in logit_losses() {
            let ((value, gradient), (found, found_gradient)) =
                (batch.evaluate(&*loss), shifted.evaluate(&*loss));
            prop_assert!((found - value).abs() < 1e-9 * (1.0 + value.abs()), "{name}: {found}, {value}");
            for (found, expected) in found_gradient.iter().zip(&gradient) {
                prop_assert!((found - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{name}");
            }
        }
    }

    #[test]
    fn gradient_rows_sum_to_zero_and_ignored_rows_are_exactly_zero(batch in batches()) {
        for (name, loss) in logit_losses() {
            let (_, gradient) = batch.evaluate(&*loss);
            let largest = gradient.iter().fold(0f64, |m, g| m.max(g.abs()));
            for (row, label) in gradient.chunks(batch.classes).zip(&batch.labels) {
                prop_assert!(row.iter().sum::<f64>().abs() < 1e-10 * (1.0 + largest), "{name}: {row:?}");
                prop_assert!(*label != -100 || row.iter().all(|g| *g == 0.0), "{name}: {row:?}");
            }
        }
    }

    #[test]
    fn jensen_shannon_is_symmetric(batch in batches(), beta in 0.01..0.99) {
        let swapped = Batch {
            student: batch.teacher.clone(), teacher: batch.student.clone(), ..batch.clone()
        };
        let js = |beta| Divergence::jensen_shannon(beta).unwrap();
        let (one, other) = (batch.evaluate(&js(beta)).0, swapped.evaluate(&js(1.0 - beta)).0);
        prop_assert!((one - other).abs() < 1e-12, "{one}, {other}");
        // Bounded by the entropy of the mixing weights; total variation by one.
        let entropy = -(beta * beta.ln() + (1.0 - beta) * (1.0 - beta).ln());
        prop_assert!(one <= entropy + 1e-12);
        let tv = Divergence::total_variation();
        prop_assert!((batch.evaluate(&tv).0 - swapped.evaluate(&tv).0).abs() < 1e-12);
        prop_assert!(batch.evaluate(&tv).0 <= 1.0 + 1e-12);
    }

    /// Hinton's loss is DKD with β = 1 − p_y, row by row (section 3 of the DKD paper).
    #[test]
    fn dkd_adds_up_to_kl(batch in batches()) {
        let logits = batch.logits(&batch.tensor(&batch.student)).unwrap();
        if logits.rows() == 0 { return Ok(()) }
        let rows = |loss: &dyn LogitLoss| values(loss.rows(&logits).unwrap().values().unwrap());
        let (_, log_p) = logits.log_probs(Temperature::ONE).unwrap();
        let targets = logits.targets().unwrap().unsqueeze(1).unwrap();
        let p_target = values(&log_p.gather(&targets, 1).unwrap().exp().unwrap());
        let dkd = |alpha, beta| rows(&Dkd::new(alpha, beta, Temperature::ONE).unwrap());
        let (target, others) = (dkd(1.0, 0.0), dkd(0.0, 1.0));
        for (i, kl) in rows(&Hinton::default()).iter().enumerate() {
            let sum = target[i] + (1.0 - p_target[i]) * others[i];
            prop_assert!((sum - kl).abs() < 1e-9 * (1.0 + kl), "{sum}, {kl}");
        }
    }

    /// Gradient accumulation: micro-batches that state the whole batch's number of rows add up to the whole batch.
    #[test]
    fn micro_batches_add_up_to_the_whole_batch(batch in batches(), at in 0usize..6) {
        let (at, whole) = (at.min(batch.rows), batch.counted().max(1));
        let part = |rows: std::ops::Range<usize>| {
            let entries = rows.start * batch.classes..rows.end * batch.classes;
            Batch {
                rows: rows.len(),
                classes: batch.classes,
                student: batch.student[entries.clone()].to_vec(),
                teacher: batch.teacher[entries].to_vec(),
                labels: batch.labels[rows].to_vec(),
            }
        };
        let parts: Vec<Batch> =
            [part(0..at), part(at..batch.rows)].into_iter().filter(|part| part.rows > 0).collect();
        for (name, loss) in logit_losses() {
            if name == "DIST" { continue } // couples its rows
            let (value, gradient) = batch.evaluate(&*loss);
            let (mut sum, mut sum_gradient) = (0.0, vec![]);
            for part in &parts {
                let (value, gradient) = value_and_gradient(&part.tensor(&part.student), |z| {
                    loss.loss(&part.logits(z)?, Reduction::SumOver(whole))
                });
                sum += value;
                sum_gradient.extend(gradient);
            }
            prop_assert!((sum - value).abs() < 1e-12 * (1.0 + value.abs()), "{name}: {sum}, {value}");
            for (found, expected) in sum_gradient.iter().zip(&gradient) {
                prop_assert!((found - expected).abs() < 1e-12 * (1.0 + expected.abs()), "{name}");
            }
        }
    }

    /// Relations see neither rotations of the feature space nor its scale nor its origin.
    #[test]
    fn relations_do_not_see_scale_and_origin(
        values in prop::collection::vec(-3.0..3.0, 12), scale in 0.1..9.0, shift in -5.0..5.0,
    ) {
        let t = wave(&[4, 5], 1.1, 0.5, 3.0);
        let s = Tensor::from_vec(values, (4, 3), &Device::Cpu).unwrap();
        let moved = s.affine(scale, shift).unwrap();
        for loss in [&RelationalDistance as &dyn FeatureLoss, &RelationalAngle] {
            let value = |s: &Tensor| scalar(&loss.loss(&Features::new(s, &t), Reduction::TokenMean).unwrap());
            prop_assert!((value(&s) - value(&moved)).abs() < 1e-7);
            let same = loss.loss(&Features::new(&s, &moved), Reduction::TokenMean).unwrap();
            prop_assert!(scalar(&same).abs() < 1e-12);
        }
    }
}

#[test]
fn feature_losses_are_zero_where_student_and_teacher_agree() {
    let x = wave(&[2, 4, 3, 3], 0.37, 0.2, 1.5);
    let rows = x.reshape((2, 4, 9)).unwrap();
    let cases: [(&dyn FeatureLoss, &Tensor); 8] = [
        (&HiddenMse::new(), &rows),
        (&Cosine::new(), &rows),
        (&FitNets::new(Projection::default()), &x),
        (&AttentionTransfer, &x),
        (&RelationalDistance, &rows),
        (&RelationalAngle, &rows),
        (&MiniLm::new(3).unwrap(), &rows),
        (&TinyBertAttention, &x),
    ];
    for (loss, x) in cases {
        let (value, gradient) =
            value_and_gradient(x, |s| loss.loss(&Features::new(s, x), Reduction::TokenMean));
        assert!(value.abs() < 1e-12 && gradient.iter().all(|g| g.abs() < 1e-9), "{loss:?}: {value}");
    }
}
