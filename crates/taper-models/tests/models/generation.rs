//! Generating text and turning tokens back into it.

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use taper_core::{Checkpoint, Flow};
use taper_models::{
    Error,
    generate::{Detokenizer, Generation, Sampling, Stop, generate},
    llama::Llama,
    tokenizer::{SpecialTokens, Tokenizer},
};

use crate::shelf::shared;

/// Characters of one to four bytes, spaces in odd places, a line end.
const HARD: &str = "The naïve “café”… 3 € — 日本 😀 end.  Two spaces\nand a line, 👩‍👩‍👧!";

fn novels() -> Option<(Llama, Tokenizer)> {
    let dir = shared("models/novels-1m")?;
    Some((Llama::open(&Checkpoint::open(&dir).unwrap()).unwrap(), Tokenizer::open(&dir).unwrap()))
}

fn continued(sampling: Sampling, limit: usize) -> Option<(Generation, String)> {
    let (model, tokenizer) = novels()?;
    let mut streamed = String::new();
    let made = generate(&model, &tokenizer, "It was a dark and", limit, sampling, |piece| {
        streamed.push_str(piece);
        Flow::Continue
    });
    Some((made.unwrap(), streamed))
}

#[test]
fn a_seed_gives_the_same_text_and_streams_it_whole() {
    let sampling = Sampling::at_temperature(0.9).with_top_k(50).with_top_p(0.95).with_seed(5);
    let (Some((a, streamed)), Some((b, _))) = (continued(sampling, 40), continued(sampling, 40)) else {
        return;
    };
    assert_eq!(a, b);
    assert_eq!(a.text, streamed);
    assert!(a.tokens.len() == 40 || a.stop == Stop::EndOfText);
    let (other, _) = continued(sampling.with_seed(6), 40).unwrap();
    assert_ne!(a.text, other.text);
}

#[test]
fn greedy_text_is_that_of_whole_forwards() {
    let Some((made, _)) = continued(Sampling::greedy(), 12) else { return };
    let (model, tokenizer) = novels().unwrap();
    let mut ids = tokenizer.encode("It was a dark and", SpecialTokens::Add).unwrap();
    let prompt = ids.len();
    for _ in 0..made.tokens.len() {
        let input = Tensor::from_slice(&ids, (1, ids.len()), &Device::Cpu).unwrap();
        let logits = model.forward(&input).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        let last = &logits[ids.len() - 1];
        let best = (0..last.len()).rev().max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
        ids.push(best as u32);
    }
    assert_eq!(made.tokens, ids[prompt..]);
}

#[test]
fn the_receiver_and_the_context_stop_a_text() {
    let Some((model, tokenizer)) = novels() else { return };
    let made = generate(&model, &tokenizer, "Once", 50, Sampling::greedy(), |_| Flow::Cancel).unwrap();
    assert_eq!((made.stop, made.tokens.len()), (Stop::Asked, 1));
    let error = generate(&model, &tokenizer, "", 5, Sampling::greedy(), |_| Flow::Continue).unwrap_err();
    assert!(matches!(error, Error::TooFew { .. }), "{error}");
    let Some(dir) = shared("models/stories260k") else { return };
    let (model, tokenizer) =
        (Llama::open(&Checkpoint::open(&dir).unwrap()).unwrap(), Tokenizer::open(&dir).unwrap());
    let mut checkpoint = Checkpoint::open(&dir).unwrap();
    checkpoint.config_mut().insert("max_position_embeddings".into(), 20.into());
    checkpoint.config_mut().remove("eos_token_id");
    let short = Llama::open(&checkpoint).unwrap();
    let made =
        generate(&short, &tokenizer, "Once upon a time", 50, Sampling::greedy(), |_| Flow::Continue).unwrap();
    assert_eq!(made.stop, Stop::ContextFull);
    // The last token is made from a full context, and is not itself read.
    assert_eq!(made.prompt_tokens + made.tokens.len(), 21);
    let whole =
        generate(&model, &tokenizer, "Once upon a time", 17, Sampling::greedy(), |_| Flow::Continue).unwrap();
    assert!(whole.text.starts_with(&made.text[..made.text.len().min(whole.text.len())]));
}

#[test]
fn streamed_pieces_join_to_the_text_of_byte_level_and_byte_fallback_tokens() {
    for name in ["models/novels-7m", "models/stories260k"] {
        let Some(dir) = shared(name) else { return };
        let tokenizer = Tokenizer::open(dir).unwrap();
        let prompt = tokenizer.encode("Say:", SpecialTokens::LeaveOut).unwrap();
        let all = tokenizer.encode(&format!("Say: {HARD}"), SpecialTokens::LeaveOut).unwrap();
        assert_eq!(all[..prompt.len()], prompt, "{name}");
        let mut words = Detokenizer::after(&tokenizer, &prompt).unwrap();
        let mut pieces = Vec::new();
        for &id in &all[prompt.len()..] {
            pieces.push(words.push(id).unwrap());
        }
        pieces.push(words.finish().unwrap());
        assert!(pieces.iter().all(|p| !p.contains('\u{FFFD}')), "{name}: {pieces:?}");
        assert_eq!(pieces.concat(), format!(" {HARD}"), "{name}");
        assert!(pieces.iter().filter(|p| !p.is_empty()).count() > 20, "{name} does not stream");
    }
}

#[test]
fn any_tokens_at_all_can_be_streamed() {
    for name in ["models/novels-7m", "models/stories260k"] {
        let Some(dir) = shared(name) else { return };
        let tokenizer = Tokenizer::open(dir).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for _ in 0..50 {
            // Mostly bytes, so that broken characters are common.
            let ids: Vec<u32> = (0..60).map(|_| rng.random_range(3..300)).collect();
            let mut words = Detokenizer::after(&tokenizer, &[]).unwrap();
            let mut text: String = ids.iter().map(|&id| words.push(id).unwrap()).collect();
            text.push_str(&words.finish().unwrap());
            // A run of bytes that turns out to be no text is marked as a whole by a late decoding; streaming has shown
            // its good beginning by then. So nothing may be missing, and only letters of such runs may be added.
            let mut letters = text.chars().filter(char::is_ascii_alphabetic);
            let whole = tokenizer.decode(&ids).unwrap();
            assert!(
                whole.chars().filter(char::is_ascii_alphabetic).all(|c| letters.any(|l| l == c)),
                "{name}"
            );
            assert!(text.chars().count() <= 4 * ids.len());
        }
    }
}

#[test]
fn a_tokenizer_that_is_missing_or_broken_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(matches!(Tokenizer::open(dir.path()), Err(Error::Tokenizer { .. })));
    let error = Tokenizer::of(&Checkpoint::new(serde_json::Map::new())).unwrap_err().to_string();
    assert!(error.contains("no directory"), "{error}");
}

#[test]
fn a_limit_cuts_texts_and_keeps_special_tokens() {
    let Some(dir) = crate::shelf::minilm() else { return };
    let tokenizer = Tokenizer::open(dir).unwrap();
    assert_eq!(tokenizer.stated_limit(), Some(128));
    let long = "word ".repeat(300);
    assert_eq!(tokenizer.encode(&long, SpecialTokens::Add).unwrap().len(), 302);
    let cut = tokenizer.clone().with_limit(16).unwrap().encode(&long, SpecialTokens::Add).unwrap();
    assert_eq!((cut.len(), cut[0], cut[15]), (16, 101, 102));
    assert_eq!(tokenizer.encode_all(&["a b", "c"]).unwrap().len(), 2);
    assert_eq!(tokenizer.token_id("[PAD]"), Some(0));
    assert_eq!(tokenizer.vocab_size(), 30_522);
}
