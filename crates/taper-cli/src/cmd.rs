//! The commands, one file each.

mod compress;
mod demo;
mod diff;
mod eval;
mod generate;
mod inspect;
mod plan;
mod recipes;
mod report;
mod rows;

use crate::{args::Command, failure::Failure, terminal::Terminal};

/// Does what was asked.
pub(crate) fn run(command: &Command, terminal: &Terminal) -> Result<(), Failure> {
    match command {
        Command::Inspect(args) => inspect::run(args, *terminal),
        Command::Compress(args) => compress::run(args, *terminal),
        Command::Plan(args) => plan::run(args, *terminal),
        Command::Report(args) => report::run(args, *terminal),
        Command::Recipes => recipes::run(*terminal),
        Command::Eval(args) => eval::run(args, *terminal),
        Command::Diff(args) => diff::run(args, *terminal),
        Command::Generate(args) => generate::run(args, *terminal),
        Command::Demo(args) => demo::run(args, *terminal),
    }
}
