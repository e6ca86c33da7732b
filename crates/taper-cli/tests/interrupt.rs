//! Runs that are stopped: Ctrl-C ends with status 130, a kill with nothing said; `--resume` finishes either to the
//! bytes of a run that was never stopped.

#![cfg(unix)]

mod taper;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use taper::{Ran, Scratch, Tested, bytes, synthetic};

/// 120 matrices of 256 KiB, each searched for its scales: a second or more of work in pieces of some milliseconds.
const WEIGHTS: usize = 120;

fn scratch() -> Tested<Scratch> {
    let scratch = Scratch::new()?;
    synthetic(&scratch.at("many"), WEIGHTS, 256, 256)?;
    scratch.run("--threads 1 compress many -o whole --int4")?.done();
    Ok(scratch)
}

/// Weights that the unfinished run has written down.
fn journaled(scratch: &Scratch) -> usize {
    let journal = scratch.at("out.partial/taper-journal.jsonl");
    std::fs::read_to_string(journal).map_or(0, |text| text.lines().count().saturating_sub(1))
}

/// A run of `out` that has finished some weights and not all.
fn half_way(scratch: &Scratch) -> Tested<Child> {
    let mut child = scratch
        .command("--threads 1 compress many -o out --int4")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let begun = Instant::now();
    while journaled(scratch) < 10 {
        if let Some(status) = child.try_wait()? {
            return Err(format!("ended too early: {status}").into());
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not get on");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(child)
}

fn signal(child: &Child, name: &str) -> Tested {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status()?;
    if sent.success() { Ok(()) } else { Err("the signal was not sent".into()) }
}

/// Waits until the process catches Ctrl-C: before that, a signal would simply end it.
fn listening(child: &Child) -> Tested {
    let status = format!("/proc/{}/status", child.id());
    for _ in 0..6000 {
        match std::fs::read_to_string(&status) {
            Ok(text) => {
                let caught = text.lines().find_map(|l| l.strip_prefix("SigCgt:")).unwrap_or("0");
                // Bit n − 1 stands for signal n; Ctrl-C is 2.
                if u64::from_str_radix(caught.trim(), 16)? & 0b10 != 0 {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            // No such file system: half a second is ample on an idle machine.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(500));
                return Ok(());
            }
        }
    }
    Err("it does not listen".into())
}

fn same(a: &Path, b: &Path) -> Tested<bool> {
    Ok(bytes(a)? == bytes(b)?)
}

/// Resumes to the bytes of the whole run, not doing again what was done.
fn resumes(scratch: &Scratch) -> Tested {
    let before = journaled(scratch);
    assert!((10..WEIGHTS).contains(&before), "{before} of {WEIGHTS}");
    assert!(!scratch.at("out").exists());
    scratch.run("compress many -o out --int4")?.refused(1, &["unfinished run", "resume"]);
    scratch.run("compress many -o out --int8 --resume")?.refused(1, &["had another recipe"]);
    assert_eq!(journaled(scratch), before, "a refused resume changes nothing");
    let json = scratch.run("compress many -o out --int4 --resume --json")?.done().json()?;
    assert_eq!(json["report"]["passes"][0]["rows"].as_array().map(Vec::len), Some(WEIGHTS));
    assert!(same(&scratch.at("out"), &scratch.at("whole"))?);
    assert_eq!(scratch.names()?, ["many", "model", "out", "whole"]);
    Ok(())
}

#[test]
fn ctrl_c_is_status_130_and_resumes_byte_for_byte() -> Tested {
    let scratch = scratch()?;
    let child = half_way(&scratch)?;
    signal(&child, "-INT")?;
    let ran = Ran::of(child.wait_with_output()?).refused(130, &["cancelled", "out.partial", "--resume"]);
    assert!(ran.out.is_empty());
    resumes(&scratch)
}

#[test]
fn a_killed_run_resumes_byte_for_byte() -> Tested {
    let scratch = scratch()?;
    let mut child = half_way(&scratch)?;
    child.kill()?;
    assert_eq!(child.wait()?.code(), None, "killed by a signal");
    resumes(&scratch)
}

#[test]
fn a_cancelled_run_says_so_in_json() -> Tested {
    let scratch = Scratch::new()?;
    let mut command = scratch.command("generate model --max-tokens 900 --threads 1 --json");
    let child = command.args(["--prompt", "The"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    listening(&child)?;
    signal(&child, "-INT")?;
    let ran = Ran::of(child.wait_with_output()?).refused(130, &["cancelled"]);
    assert_eq!(ran.json()?["error"], "cancelled");
    Ok(())
}
