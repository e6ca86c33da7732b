//! N of every M.

use candle_core::DType;
use taper_core::{Outcome, Pipeline, Run, WeightPass};
use taper_prune::NOfM;

use crate::{checkpoint, run, shared, sorted_support, support, tensor, uniform, values};

#[test]
fn every_run_keeps_its_largest() {
    for (n, m) in [(2, 4), (4, 8), (1, 3), (1, 2)] {
        // 22 columns end in a short run of 2, 6, 1 and 0.
        let before = checkpoint([("w", tensor(uniform(6, 5 * 22), &[5, 22]).to_dtype(DType::BF16).unwrap())]);
        let old = values(&before, "w");
        let after = run(&NOfM::new(n, m).unwrap().on_matrices(), before).unwrap();
        let new = values(&after, "w");
        let short = [(2usize, 4usize, 1usize), (4, 8, 3), (1, 3, 1), (1, 2, 0)];
        let (_, _, kept_of_short) = short.into_iter().find(|s| (s.0, s.1) == (n, m)).unwrap();
        for (row, old) in new.chunks(22).zip(old.chunks(22)) {
            for (run, old) in row.chunks(m).zip(old.chunks(m)) {
                let kept = if run.len() == m { n } else { kept_of_short };
                assert_eq!(support(run), sorted_support(old, run.len() - kept), "{n}:{m}");
            }
        }
        assert_eq!(after.get("w").unwrap().encoding().format, "bf16");
    }
}

#[test]
fn runs_go_along_the_flattened_input_of_a_convolution() {
    // 3 · 2 · 2 = 12 inputs: three runs of four that cross the kernel's rows.
    let before = checkpoint([("conv", tensor(uniform(7, 4 * 12), &[4, 3, 2, 2]))]);
    let old = values(&before, "conv");
    let new = values(&run(&NOfM::new(2, 4).unwrap().on_matrices(), before).unwrap(), "conv");
    let expected: Vec<bool> = old.chunks(4).flat_map(|r| sorted_support(r, 2)).collect();
    assert_eq!(support(&new), expected);
}

#[test]
fn rows_too_short_to_prune_are_left_with_a_reason() {
    let before = checkpoint([("w", tensor(uniform(8, 3), &[3, 1]))]);
    let pass = NOfM::new(2, 4).unwrap().on_matrices();
    let (_, report) = Pipeline::new().then(pass).run(before, &Run::new()).unwrap();
    assert!(matches!(&report.passes[0].rows[0].outcome, Outcome::Left { why } if why.contains("too short")));
}

#[test]
fn settings_read_from_a_recipe_and_refuse_nonsense() {
    let read = |text: &str| serde_json::from_str::<NOfM>(text);
    assert_eq!(read(r#"{"n": 2, "m": 4}"#).unwrap(), NOfM::new(2, 4).unwrap());
    for bad in [r#"{"n": 4, "m": 4}"#, r#"{"n": 0, "m": 4}"#, r#"{"n": 2}"#, r#"{"n": 2, "m": 4, "k": 1}"#] {
        assert!(read(bad).is_err(), "{bad}");
    }
    assert_eq!(serde_json::to_string(&NOfM::new(2, 4).unwrap()).unwrap(), r#"{"n":2,"m":4}"#);
}

/// Rows of 172 are 43 whole runs of four and, for 4:8, 21 runs of eight and one of four that keeps two.
#[test]
fn a_real_model_is_exactly_half_zero() {
    let Some(dir) = shared("models/stories260k") else { return };
    for (n, m) in [(2, 4), (4, 8)] {
        let before = taper_core::Checkpoint::open(&dir).unwrap();
        let after = run(&NOfM::new(n, m).unwrap().on_matrices(), before).unwrap();
        let name = "model.layers.2.mlp.down_proj.weight";
        assert_eq!(after.info(name).unwrap().shape, [64, 172]);
        let new = values(&after, name);
        assert_eq!(new.iter().filter(|v| **v == 0.0).count(), 64 * 86);
    }
}
