//! `taper generate`: continues a prompt, showing words as they come.

use serde::Serialize;
use std::time::Instant;
use taper::{
    Flow,
    models::{Generation, Sampling, Tokenizer, generate_in, llama::Cache},
};

use crate::{args::Generate, failure::Failure, interrupt, model::Language, terminal::Terminal};

#[derive(Serialize)]
struct Shown<'a> {
    prompt: &'a str,
    #[serde(flatten)]
    generation: &'a Generation,
    tokens_per_second: f64,
}

pub(crate) fn run(args: &Generate, terminal: Terminal) -> Result<(), Failure> {
    let language = Language::open(&args.dir)?;
    let tokenizer = Tokenizer::of(&language.checkpoint)?;
    let clock = Instant::now();
    let mut shown = terminal.piece(&args.prompt);
    let (limit, model) = (args.max_tokens.get(), &language.model);
    let mut cache = Cache::with_format(model.config(), args.kv_cache.into());
    let on_text = |piece: &str| {
        if shown.is_ok() {
            shown = terminal.piece(piece);
        }
        if shown.is_err() { Flow::Cancel } else { interrupt::flow() }
    };
    let generation =
        generate_in(&mut cache, model, &tokenizer, &args.prompt, limit, sampling(args), on_text)?;
    shown?;
    terminal.piece("\n")?;
    interrupt::check()?;
    let tokens_per_second = generation.tokens.len() as f64 / clock.elapsed().as_secs_f64();
    match terminal {
        Terminal::Json => {
            let shown = Shown { prompt: &args.prompt, generation: &generation, tokens_per_second };
            terminal.show(&shown, String::new)
        }
        Terminal::Text => {
            terminal.note(&format!("{} tokens, {tokens_per_second:.0} tokens/s", generation.tokens.len()));
            Ok(())
        }
    }
}

fn sampling(args: &Generate) -> Sampling {
    let mut sampling = Sampling::at_temperature(args.temperature).with_seed(args.seed);
    if let Some(k) = args.top_k {
        sampling = sampling.with_top_k(k.get());
    }
    if let Some(p) = args.top_p {
        sampling = sampling.with_top_p(p);
    }
    sampling
}
