//! Promise 5: the same bytes, whatever the number of threads.

use crate::toy::{Halve, checkpoint, files, tensor, values};
use taper_core::{Pipeline, Run, WeightPass, stats::Accumulator, verify};

fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[test]
fn files_are_the_same_for_one_and_four_threads() {
    let dir = tempfile::tempdir().unwrap();
    let write = |threads: usize| {
        let out = dir.path().join(format!("out-{threads}"));
        with_threads(threads, || {
            let run = Run::new().with_shard_bytes(2000);
            Pipeline::new().then(Halve.on_matrices()).run_to(checkpoint(5), &out, &run).unwrap();
        });
        files(&out)
    };
    let one = write(1);
    assert!(one.len() > 3, "several shards");
    assert_eq!(one, write(4));
}

#[test]
fn sums_are_the_same_bit_for_bit_for_one_and_four_threads() {
    let (a, b) = (tensor(&[3000, 500], 1), tensor(&[3000, 500], 2));
    let damage = |threads| with_threads(threads, || verify::damage(&a, &b).unwrap());
    assert_eq!(damage(1), damage(4));
    let stats = |threads| {
        with_threads(threads, || {
            let mut sums = Accumulator::new(30, taper_core::Needs::Gram);
            sums.add("x", &values(300_000, 3)).unwrap();
            sums.finish("x").unwrap()
        })
    };
    assert_eq!(stats(1), stats(4));
}
