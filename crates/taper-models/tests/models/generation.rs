//! Generating text and turning tokens back into it.

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use taper_core::{Checkpoint, Flow};
use taper_models::{
    Error,
    generate::{Detokenizer, Generation, Sampling, Stop, generate, generate_in},
    llama::{Cache, CacheFormat, Llama},
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

#[test]
fn a_prompt_that_does_not_fit_the_model_is_refused() {
    let Some((model, tokenizer)) = novels() else { return };
    let prompt = "It was a dark and stormy night. ".repeat(400);
    let tokens = tokenizer.encode(&prompt, SpecialTokens::Add).unwrap().len();
    assert!(tokens > model.config().max_position_embeddings);
    let made = generate(&model, &tokenizer, &prompt, 4, Sampling::greedy(), |_| Flow::Continue);
    let message = made.unwrap_err().to_string();
    for word in ["`prompt tokens`", &tokens.to_string(), "max_position_embeddings"] {
        assert!(message.contains(word), "{message}");
    }
}

/// Logits at every position of a text, its tokens given `step` at a time.
fn cached(model: &Llama, ids: &[u32], format: CacheFormat, step: usize) -> (Vec<f32>, usize) {
    let mut cache = Cache::with_format(model.config(), format);
    let mut logits = Vec::new();
    for part in ids.chunks(step) {
        let part = Tensor::from_slice(part, (1, part.len()), &Device::Cpu).unwrap();
        let here = model.forward_cached(&part, &mut cache).unwrap();
        logits.extend(here.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
    assert_eq!((cache.len(), cache.format()), (ids.len(), format));
    (logits, cache.nbytes())
}

fn rms(a: &[f32], b: &[f32]) -> f64 {
    let square: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (square / a.len() as f64).sqrt()
}

#[test]
fn packed_caches_are_small_and_near_and_do_not_mind_how_tokens_arrive() {
    let Some((model, tokenizer)) = novels() else { return };
    let text = "It was a dark and stormy night, and the old captain looked at the letter. ".repeat(30);
    let ids = &tokenizer.encode(&text, SpecialTokens::Add).unwrap()[..256];
    let whole = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap();
    let plain = model.forward(&whole).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (full, bytes) = cached(&model, ids, CacheFormat::Full, 256);
    assert!(rms(&full, &plain) < 1e-4);
    let spread = rms(&plain, &vec![0.0; plain.len()]);
    // Two f16 for 32 codes of head sizes that 32 divides; 256 tokens are whole blocks.
    for (format, share, error) in
        [(CacheFormat::Int8, 9.0 / 32.0, 0.002), (CacheFormat::Int4, 5.0 / 32.0, 0.03)]
    {
        let (packed, held) = cached(&model, ids, format, 256);
        assert!(held as f64 <= share * bytes as f64 * 1.001, "{format:?}: {held} of {bytes}");
        assert!(rms(&packed, &plain) < error * spread, "{format:?}: {} of {spread}", rms(&packed, &plain));
        assert!(rms(&packed, &plain) > 1e-6 * spread);
        for step in [1, 50] {
            let (pieces, _) = cached(&model, ids, format, step);
            // Products of one row and of many are summed in another order, so that a code may differ here and there.
            assert!(rms(&packed, &pieces) < 0.25 * rms(&packed, &plain), "{format:?} {step}");
        }
    }
}

#[test]
fn packed_caches_give_the_same_text_with_any_number_of_threads() {
    let Some((model, tokenizer)) = novels() else { return };
    for format in [CacheFormat::Int8, CacheFormat::Int4] {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut cache = Cache::with_format(model.config(), format);
                let (prompt, sampling) = ("It was a dark and stormy night. ".repeat(9), Sampling::greedy());
                generate_in(&mut cache, &model, &tokenizer, &prompt, 40, sampling, |_| Flow::Continue)
                    .unwrap()
            })
        };
        assert_eq!(run(1), run(2));
    }
}
