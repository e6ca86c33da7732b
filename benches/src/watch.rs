//! Watching a child process: its memory, its time, and ending it at a given moment.
//!
//! `RssAnon` of `/proc/PID/status` is what a process holds beyond the page cache: heap, stacks, private pages. `RssFile`
//! is the part of mapped files that happens to be in memory, which the system takes back when it wants to. Both are
//! sampled every [`INTERVAL`]; a buffer that lives shorter can be missed, but one that is worth counting takes longer to
//! fill. Linux only.

use serde::Serialize;
use std::{
    io,
    path::PathBuf,
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

/// Time between two looks.
pub const INTERVAL: Duration = Duration::from_millis(2);

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Resident {
    /// Beyond the page cache.
    pub anonymous: u64,
    /// Mapped files.
    pub file: u64,
}

/// What was seen of a child.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Watched {
    /// The largest values seen, each for itself.
    pub peak: Resident,
    /// How often memory was looked at.
    pub samples: u64,
    /// Wall time.
    pub seconds: f64,
    /// How it ended.
    #[serde(skip)]
    pub status: ExitStatus,
    /// Whether it was ended from outside.
    pub killed: bool,
}

/// The memory of a process; `None` where it has ended.
///
/// # Errors
/// A system without `/proc`.
pub fn resident(pid: u32) -> io::Result<Option<Resident>> {
    let path = PathBuf::from(format!("/proc/{pid}/status"));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if PathBuf::from("/proc/self/status").exists() => {
            // Gone between two looks: no such file, or no such process while reading.
            drop(error);
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(parse(&text))
}

/// The two lines of a status; a process that has ended but was not yet waited for has neither.
fn parse(status: &str) -> Option<Resident> {
    let kilobytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Resident { anonymous: 1024 * kilobytes("RssAnon")?, file: 1024 * kilobytes("RssFile")? })
}

/// Waits for a child while looking at its memory; ends it with SIGKILL once `stop` says so.
///
/// # Errors
/// A system without `/proc`, a child that cannot be waited for.
pub fn watch(child: &mut Child, mut stop: impl FnMut() -> bool) -> io::Result<Watched> {
    let clock = Instant::now();
    let mut peak = Resident::default();
    let (mut samples, mut killed) = (0, false);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Some(now) = resident(child.id())? {
            samples += 1;
            peak.anonymous = peak.anonymous.max(now.anonymous);
            peak.file = peak.file.max(now.file);
        }
        if !killed && stop() {
            child.kill()?;
            killed = true;
        }
        std::thread::sleep(INTERVAL);
    };
    Ok(Watched { peak, samples, seconds: clock.elapsed().as_secs_f64(), status, killed })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::{os::unix::process::ExitStatusExt, process::Command};

    #[test]
    fn memory_that_is_written_to_counts_and_mapped_files_are_apart() -> io::Result<()> {
        let before = resident(std::process::id())?.unwrap_or_default();
        let held = vec![1u8; 64 << 20];
        let after = resident(std::process::id())?.unwrap_or_default();
        assert!(after.anonymous >= before.anonymous + (60 << 20), "{before:?} {after:?}");
        assert!(after.file < before.file + (4 << 20), "{before:?} {after:?}");
        assert_eq!(held.iter().map(|&b| u64::from(b)).sum::<u64>(), 64 << 20);
        Ok(())
    }

    #[test]
    fn a_child_is_watched_to_its_end() -> io::Result<()> {
        let seen = watch(&mut Command::new("sleep").arg("0.05").spawn()?, || false)?;
        assert!(seen.status.success() && !seen.killed && seen.seconds >= 0.05);
        assert!(seen.samples > 0 && seen.peak.anonymous > 0);
        Ok(())
    }

    #[test]
    fn a_child_is_killed_when_told() -> io::Result<()> {
        let seen = watch(&mut Command::new("sleep").arg("60").spawn()?, || true)?;
        assert!(seen.killed && seen.seconds < 30.0);
        assert_eq!(seen.status.signal(), Some(9));
        Ok(())
    }

    #[test]
    fn a_process_that_has_ended_has_no_memory() -> io::Result<()> {
        assert_eq!(parse("Name:\tgone\nState:\tZ (zombie)\n"), None);
        let status = "VmRSS:\t  9 kB\nRssAnon:\t     12 kB\nRssFile:\t  3 kB\n";
        assert_eq!(parse(status), Some(Resident { anonymous: 12_288, file: 3072 }));
        let mut child = Command::new("true").spawn()?;
        child.wait()?;
        assert_eq!(resident(child.id())?, None);
        Ok(())
    }
}
