//! Text from a language model, token by token.
//!
//! `sampling.rs` draws tokens, `detokenize.rs` turns them into text as they come.

mod detokenize;
mod sampling;

pub use detokenize::Detokenizer;
pub use sampling::{Sampler, Sampling};

use candle_core::Tensor;
use taper_core::Flow;

use crate::{
    Error, Result,
    llama::{Cache, Llama},
    tokenizer::{SpecialTokens, Tokenizer},
};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// The model ended the text.
    EndOfText,
    /// The number of tokens asked for was reached.
    Limit,
    /// The model has no positions left.
    ContextFull,
    /// The receiver of the text asked to stop.
    Asked,
}

/// A generated text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Generation {
    /// The text after the prompt: all pieces that were handed out, joined.
    pub text: String,
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// How many tokens the prompt had.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub stop: Stop,
}

/// Continues `prompt` by up to `limit` tokens.
///
/// `on_text` is handed each piece of text when it is complete and can ask to stop. Special tokens are added to the
/// prompt as the tokenizer's template says. Errors where the prompt has no tokens or does not fit the model.
pub fn generate(
    model: &Llama,
    tokenizer: &Tokenizer,
    prompt: &str,
    limit: usize,
    sampling: Sampling,
    on_text: impl FnMut(&str) -> Flow,
) -> Result<Generation> {
    let mut cache = Cache::new(model.config());
    generate_in(&mut cache, model, tokenizer, prompt, limit, sampling, on_text)
}

/// [`generate`] with a cache of one's own, which is cleared first and then holds all tokens but the last: for a
/// [`crate::llama::CacheFormat`] other than full.
pub fn generate_in(
    cache: &mut Cache,
    model: &Llama,
    tokenizer: &Tokenizer,
    prompt: &str,
    limit: usize,
    sampling: Sampling,
    mut on_text: impl FnMut(&str) -> Flow,
) -> Result<Generation> {
    cache.clear();
    let mut sampler = Sampler::new(sampling)?;
    let mut seen = tokenizer.encode(prompt, SpecialTokens::Add)?;
    let prompt_tokens = seen.len();
    if prompt_tokens == 0 {
        return Err(Error::TooFew { figure: "a continuation", what: "prompt tokens", found: 0, least: 1 });
    }
    let mut words = Detokenizer::after(tokenizer, &seen)?;
    let most = model.config().max_position_embeddings;
    if prompt_tokens > most {
        let expected = format!("at most `max_position_embeddings`, {most}; shorten the prompt");
        return Err(taper_core::Error::bad_option("prompt tokens", prompt_tokens, expected).into());
    }
    let mut text = String::new();
    let mut stop = Stop::Limit;
    for _ in 0..limit {
        if seen.len() > most {
            stop = Stop::ContextFull;
            break;
        }
        let token = sampler.next(&next_logits(model, cache, &seen)?, &seen)?;
        if model.config().eos_token_ids.contains(&token) {
            stop = Stop::EndOfText;
            break;
        }
        seen.push(token);
        let piece = words.push(token)?;
        text.push_str(&piece);
        if !piece.is_empty() && on_text(&piece) == Flow::Cancel {
            stop = Stop::Asked;
            break;
        }
    }
    let rest = words.finish()?;
    if !rest.is_empty() {
        text.push_str(&rest);
        on_text(&rest);
    }
    Ok(Generation { text, tokens: seen.split_off(prompt_tokens), prompt_tokens, stop })
}

/// Logits after `seen`, of which the cache holds a beginning.
fn next_logits(model: &Llama, cache: &mut Cache, seen: &[u32]) -> Result<Vec<f32>> {
    let new = &seen[cache.len()..];
    let ids = Tensor::from_slice(new, (1, new.len()), model.device())?;
    Ok(model.forward_last(&ids, cache)?.squeeze(0)?.to_vec1()?)
}
