//! A killed run resumes and ends with the same bytes; another run refuses to.

use crate::toy::{Halve, Scale, error_of, files, on_disk};
use std::sync::atomic::{AtomicUsize, Ordering};
use taper_core::{
    Checkpoint, Event, Flow, Pipeline, Run, Stage, WeightPass, store::journal, store::output::Resume,
};

fn pipeline() -> Pipeline {
    let scale = Scale { factor: 0.5, stage: Stage::Value };
    Pipeline::new().then(scale.on_matrices()).then(Halve.on_matrices())
}

fn run<'a>() -> Run<'a> {
    Run::new().with_shard_bytes(2000)
}

/// Runs until `weights` weights are finished, then cancels.
fn interrupted(input: &Checkpoint, out: &std::path::Path, weights: usize) {
    let seen = AtomicUsize::new(0);
    let stop = move |event: &Event<'_>| match event {
        Event::Weight { .. } if seen.fetch_add(1, Ordering::Relaxed) + 1 == weights => Flow::Cancel,
        _ => Flow::Continue,
    };
    assert!(pipeline().run_to(input.clone(), out, &run().with_progress(&stop)).unwrap_err().is_cancelled());
}

#[test]
fn a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 5);
    let whole = dir.path().join("whole");
    let whole_report = pipeline().run_to(input.clone(), &whole, &run()).unwrap();
    for stop_after in 1..=input.len() {
        let out = dir.path().join(format!("out-{stop_after}"));
        interrupted(&input, &out, stop_after);
        // What a kill can leave: a torn line, and bytes that no line vouches for.
        let partial = dir.path().join(format!("out-{stop_after}.partial"));
        append(&partial.join(journal::FILE), b"{\"weight\": {\"name\": \"lay");
        for file in std::fs::read_dir(&partial).unwrap().map(|e| e.unwrap().path()) {
            if file.extension().is_some_and(|e| e == "data") {
                append(&file, b"half a weight");
            }
        }
        let resumed = AtomicUsize::new(0);
        let count = |event: &Event<'_>| {
            if let Event::Weight { resumed: true, .. } = event {
                resumed.fetch_add(1, Ordering::Relaxed);
            }
            Flow::Continue
        };
        let options = run().with_resume(Resume::Continue).with_progress(&count);
        let report = pipeline().run_to(input.clone(), &out, &options).unwrap();
        assert_eq!(resumed.into_inner(), stop_after);
        assert_eq!(files(&out), files(&whole), "stopped after {stop_after}");
        assert_eq!(report.output, whole_report.output);
        let rows = |r: &taper_core::Report| r.passes.iter().map(|p| p.rows.len()).collect::<Vec<_>>();
        assert_eq!(rows(&report), rows(&whole_report), "the report is whole too");
    }
}

#[test]
fn bytes_that_rotted_in_an_unfinished_run_are_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 5);
    let whole = dir.path().join("whole");
    let options = Run::new();
    pipeline().run_to(input.clone(), &whole, &options).unwrap();
    let out = dir.path().join("out");
    let seen = AtomicUsize::new(0);
    let stop = |event: &Event<'_>| match event {
        Event::Weight { .. } if seen.fetch_add(1, Ordering::Relaxed) == 6 => Flow::Cancel,
        _ => Flow::Continue,
    };
    let options = options.with_progress(&stop);
    assert!(pipeline().run_to(input.clone(), &out, &options).unwrap_err().is_cancelled());
    let data = dir.path().join("out.partial/shard-0.data");
    let mut bytes = std::fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    pipeline().run_to(input, &out, &Run::new().with_resume(Resume::Continue)).unwrap();
    assert_eq!(files(&out), files(&whole));
}

#[test]
fn another_run_refuses_to_resume() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 3);
    let out = dir.path().join("out");
    interrupted(&input, &out, 2);
    let resume = run().with_resume(Resume::Continue);
    assert!(error_of(pipeline().run_to(input.clone(), &out, &run())).contains("holds an unfinished run"));
    let other = Pipeline::new().then(Halve.on_matrices());
    assert!(error_of(other.run_to(input.clone(), &out, &resume)).contains("had another recipe"));
    let shards = Run::new().with_shard_bytes(99).with_resume(Resume::Continue);
    assert!(error_of(pipeline().run_to(input.clone(), &out, &shards)).contains("another shard size"));
    let another = on_disk(&dir.path().join("another"), 4);
    assert!(error_of(pipeline().run_to(another, &out, &resume)).contains("another input checkpoint"));
    pipeline().run_to(input, &out, &resume).unwrap();
}

#[test]
fn there_must_be_something_to_resume() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 1);
    let options = run().with_resume(Resume::Continue);
    let message = error_of(pipeline().run_to(input, dir.path().join("out"), &options));
    assert!(message.contains("nothing to resume"), "{message}");
}

#[test]
fn two_runs_never_write_one_output() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 2);
    let out = dir.path().join("out");
    interrupted(&input, &out, 1);
    let held = std::fs::File::open(dir.path().join("out.partial").join(journal::FILE)).unwrap();
    held.lock().unwrap();
    let options = run().with_resume(Resume::Continue);
    let message = error_of(pipeline().run_to(input, &out, &options));
    assert!(message.contains("another run is writing"), "{message}");
}

fn append(path: &std::path::Path, bytes: &[u8]) {
    use std::io::Write;
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn a_journal_that_was_tampered_with_is_refused_and_keeps_the_unfinished_run() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 3);
    let out = dir.path().join("out");
    interrupted(&input, &out, 3);
    let path = dir.path().join("out.partial").join(journal::FILE);
    let good = std::fs::read_to_string(&path).unwrap();
    let resume = run().with_resume(Resume::Continue);
    let refused = |what: &str, from: &str, to: &str| {
        assert!(good.contains(from), "{what}: nothing to tamper with");
        std::fs::write(&path, good.replace(from, to)).unwrap();
        let message = error_of(pipeline().run_to(input.clone(), &out, &resume));
        assert!(path.is_file(), "{what}: the unfinished run is still there");
        message
    };
    assert!(
        refused("a pass that is not there", "\"rows\":[[0,", "\"rows\":[[133,").contains("another journal")
    );
    assert!(refused("another name", "layers.0.weight", "layers.9.weight").contains("another journal"));
    assert!(refused("sizes that lie", "\"nbytes\":768", "\"nbytes\":769").contains("contradict"));
    std::fs::write(&path, &good).unwrap();
    pipeline().run_to(input, &out, &resume).unwrap();
}
