//! The `taper` command.
//!
//! Exit status: 0 done, 1 a clear error, 2 wrong usage, 130 cancelled. With `--json` there is exactly one JSON object on
//! standard output, `{"error": …}` where something failed; messages for people and the progress bar go to standard error.
//!
//! `args` says what can be asked, `cmd/*` does it, `failure` is what can go wrong, `terminal` and `table` how results
//! look, `bar` shows progress, `interrupt` listens for Ctrl-C.

mod args;
mod bar;
mod cmd;
mod failure;
mod interrupt;
mod model;
mod table;
mod terminal;

use clap::Parser;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::Mutex,
};

use args::Args;
use failure::Failure;
use terminal::Terminal;

/// What the last panic said; a panic is a bug here, but it still ends with a message and status 1.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(refusal) => return refuse(&refusal),
    };
    let terminal = Terminal::new(args.json);
    note_panics();
    let done = catch_unwind(AssertUnwindSafe(|| run(&args, &terminal)));
    let failure = match done {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => failure,
        Err(_) => Failure::Bug(PANIC.lock().ok().and_then(|mut p| p.take()).unwrap_or_default()),
    };
    terminal.fail(&failure);
    ExitCode::from(failure.exit_status())
}

fn run(args: &Args, terminal: &Terminal) -> Result<(), Failure> {
    interrupt::listen()?;
    taper::kernel::requested().map_err(|e| Failure::Usage(e.to_string()))?;
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(usize::from(threads));
        pool.build_global().map_err(|e| Failure::Usage(format!("--threads {threads}: {e}")))?;
    }
    cmd::run(&args.command, terminal)
}

/// Wrong usage, or a request for help or the version.
fn refuse(refusal: &clap::Error) -> ExitCode {
    // A closed standard output or error changes nothing about the status.
    drop(refusal.print());
    let wrong = refusal.use_stderr();
    if wrong && std::env::args_os().any(|a| a == "--json") {
        let text = refusal.render().to_string();
        Terminal::new(true).error_object(text.trim_start_matches("error: ").trim_end());
    }
    ExitCode::from(if wrong { 2 } else { 0 })
}

fn note_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
        let said = info.payload_as_str().unwrap_or("no message");
        if let Ok(mut slot) = PANIC.lock() {
            slot.get_or_insert_with(|| format!("{said}{place}"));
        }
    }));
}
