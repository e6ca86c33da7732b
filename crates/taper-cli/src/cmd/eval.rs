//! `taper eval`: how good a model is, and how near to its original.

use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::Instant,
};
use taper::{
    Checkpoint,
    candle::Tensor,
    models::{
        DsCnnConfig, Llama, SentenceEncoder, Tokenizer,
        eval::{
            Accuracy, Divergence, Labelled, Perplexity, Similarity, Windows, accuracy, divergence,
            perplexity, read_pairs, similarity,
        },
        llama::{Cache, CacheFormat},
    },
};

use crate::{args::Eval, bar::Bar, failure::Failure, model::Language, terminal::Terminal};

/// Windows for the divergence where nothing is said: enough for three digits, at the price of two models.
const DIVERGENCE_WINDOWS: usize = 64;

#[derive(Serialize)]
struct Shown<'a> {
    dir: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Divergence>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sts: Vec<Sts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<Accuracy>,
}

#[derive(Serialize)]
struct Text {
    #[serde(flatten)]
    perplexity: Perplexity,
    tokens_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_cache: Option<KvCache>,
}

#[derive(Serialize)]
struct KvCache {
    format: &'static str,
    bytes_per_token: f64,
}

#[derive(Serialize)]
struct Sts {
    file: PathBuf,
    #[serde(flatten)]
    similarity: Similarity,
}

pub(crate) fn run(args: &Eval, terminal: Terminal) -> Result<(), Failure> {
    let checkpoint = match args.arithmetic {
        None => taper::open(&args.dir)?,
        Some(numbers) => Checkpoint::open_with(&args.dir, &taper::codecs_with(numbers.into()))?,
    };
    let bar = Bar::new(terminal);
    let (text, against) = match &args.text {
        Some(file) => language(args, &checkpoint, file, &bar)?,
        None => (None, None),
    };
    let sts = if args.sts.is_empty() { Vec::new() } else { sentences(&checkpoint, &args.sts, &bar)? };
    let features = args.features.as_deref().map(|file| classes(&checkpoint, file, &bar)).transpose()?;
    bar.clear();
    let shown = Shown { dir: &args.dir, text, against, sts, features };
    terminal.show(&shown, || lines(&shown).join("\n"))
}

fn language(
    args: &Eval,
    checkpoint: &Checkpoint,
    file: &Path,
    bar: &Bar,
) -> Result<(Option<Text>, Option<Divergence>), Failure> {
    let model = Language::of(checkpoint.clone())?.through(args.kv_cache.map(CacheFormat::from));
    let text = std::fs::read_to_string(file).map_err(Failure::file(file))?;
    let all = Windows::of_text(&Tokenizer::of(checkpoint)?, &text, args.window.get())?;
    let limit = args.windows.map(std::num::NonZeroUsize::get);
    let windows = limit.map_or_else(|| all.clone(), |n| all.clone().first(n));
    let clock = Instant::now();
    let perplexity = perplexity(&model, &windows, bar)?;
    let tokens = (windows.len() * windows.size()) as f64;
    let tokens_per_second = tokens / clock.elapsed().as_secs_f64();
    let kv_cache = args.kv_cache.map(|format| held(&model.model, &windows, format.into())).transpose()?;
    let text = Text { perplexity, tokens_per_second, kv_cache };
    let Some(original) = &args.against else { return Ok((Some(text), None)) };
    let original = Language::open(original)?;
    let windows = all.first(limit.unwrap_or(DIVERGENCE_WINDOWS));
    Ok((Some(text), Some(divergence(&original, &model, &windows, bar)?)))
}

/// What a cache takes that holds one window.
fn held(model: &Llama, windows: &Windows, format: CacheFormat) -> Result<KvCache, Failure> {
    let mut cache = Cache::with_format(model.config(), format);
    if let Some(window) = windows.iter().next() {
        let ids =
            Tensor::from_slice(window, (1, window.len()), model.device()).map_err(taper::Error::from)?;
        model.forward_last(&ids, &mut cache)?;
    }
    let bytes_per_token = cache.nbytes() as f64 / cache.len().max(1) as f64;
    Ok(KvCache { format: format.name(), bytes_per_token })
}

fn sentences(checkpoint: &Checkpoint, files: &[PathBuf], bar: &Bar) -> Result<Vec<Sts>, Failure> {
    let encoder = SentenceEncoder::new(taper::build(checkpoint)?.encoder()?, checkpoint)?;
    files
        .iter()
        .map(|file| {
            let similarity = similarity(&encoder, &read_pairs(file)?, bar)?;
            Ok(Sts { file: file.clone(), similarity })
        })
        .collect()
}

fn classes(checkpoint: &Checkpoint, file: &Path, bar: &Bar) -> Result<Accuracy, Failure> {
    let model = taper::build(checkpoint)?.classifier()?;
    let data = Labelled::open(file, DsCnnConfig::of(checkpoint)?.quantized)?;
    Ok(accuracy(&model, &data, bar)?)
}

fn lines(shown: &Shown<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(Text { perplexity: p, tokens_per_second, kv_cache }) = &shown.text {
        lines.push(format!(
            "perplexity {:.3} over {} predictions in {} windows of {} ({tokens_per_second:.0} tokens/s)",
            p.perplexity, p.predictions, p.windows, p.window
        ));
        if let Some(KvCache { format, bytes_per_token }) = kv_cache {
            lines.push(format!("through a {format} cache of {bytes_per_token:.0} bytes per token"));
        }
    }
    if let Some(d) = &shown.against {
        lines.push(format!(
            "against the original: mean KL {:.5} nats, top-1 agreement {:.2} % over {} positions",
            d.mean_kl,
            100.0 * d.top1_agreement,
            d.positions
        ));
    }
    for Sts { file, similarity: s } in &shown.sts {
        lines.push(format!(
            "{}: Spearman {:.4}, Pearson {:.4} over {} pairs",
            file.display(),
            s.spearman,
            s.pearson,
            s.pairs
        ));
    }
    if let Some(a) = &shown.features {
        lines.push(format!("top-1 {:.2} % ({} of {})", 100.0 * a.top1, a.correct, a.examples));
    }
    lines
}
