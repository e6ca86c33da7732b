//! A bit budget for a sentence encoder: judged by cosines, on sentences that calibration did not see.

mod bundle;

use bundle::Tested;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{path::Path, sync::Arc};
use taper::{
    bundled,
    candle::{Device, Tensor},
    models::{calibration, eval::Encoder},
    plan::{OnText, Surveyed},
    prelude::*,
    quant::allocate::{Budget, Judge},
};

const WIDTH: usize = 64;
const WORDS: usize = 4096;

/// A small encoder of random weights with the bundled tokenizer.
fn write_encoder(dir: &Path) -> Tested {
    let config = serde_json::json!({
        "model_type": "bert", "hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": WORDS, "max_position_embeddings": 64, "type_vocab_size": 2,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0
    });
    let mut checkpoint = Checkpoint::new(config.as_object().cloned().unwrap_or_default());
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut put = |name: String, shape: &[usize], centre: f32, spread: f32| -> Tested {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| centre + spread * rng.random_range(-1f32..1.0)).collect();
        checkpoint.insert(name, Arc::new(Tensor::from_vec(values, shape, &Device::Cpu)?));
        Ok(())
    };
    for (table, rows) in [("word", WORDS), ("position", 64), ("token_type", 2)] {
        put(format!("embeddings.{table}_embeddings.weight"), &[rows, WIDTH], 0.0, 1.0)?;
    }
    let norms = ["attention.output.LayerNorm", "output.LayerNorm"];
    let linears = [
        ("attention.self.query", WIDTH, WIDTH),
        ("attention.self.key", WIDTH, WIDTH),
        ("attention.self.value", WIDTH, WIDTH),
        ("attention.output.dense", WIDTH, WIDTH),
        ("intermediate.dense", 128, WIDTH),
        ("output.dense", WIDTH, 128),
    ];
    put("embeddings.LayerNorm.weight".into(), &[WIDTH], 1.0, 0.1)?;
    put("embeddings.LayerNorm.bias".into(), &[WIDTH], 0.0, 0.1)?;
    for layer in 0..2 {
        let at = |name: &str, part: &str| format!("encoder.layer.{layer}.{name}.{part}");
        for name in norms {
            put(at(name, "weight"), &[WIDTH], 1.0, 0.1)?;
            put(at(name, "bias"), &[WIDTH], 0.0, 0.1)?;
        }
        for (name, out, inputs) in linears {
            put(at(name, "weight"), &[out, inputs], 0.0, 1.7 / (inputs as f32).sqrt())?;
            put(at(name, "bias"), &[out], 0.0, 0.1)?;
        }
    }
    checkpoint.save(dir)?;
    for (name, bytes) in bundled::FILES.iter().filter(|(name, _)| name.starts_with("tokenizer")) {
        std::fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}

/// The bundled text, a sentence a line.
fn sentences() -> String {
    bundled::TEXT.split(". ").map(|s| s.replace('\n', " ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn an_encoder_is_planned_by_the_cosines_of_its_vectors() -> Tested {
    let scratch = tempfile::tempdir()?;
    let model = scratch.path().join("model");
    write_encoder(&model)?;
    let original = taper::open(&model)?;
    let text = sentences();
    let calibration = calibration::on_text(&original, &text, 64, 40)?;
    let judge = OnText::after(&original, &text, 64, 40, Some(20))?.ok_or("too short")?;
    assert_eq!(judge.judged(), (20, "sentences"));
    assert!(judge.divergence(&original)? < 1e-9);
    assert!(OnText::after(&original, &text, 64, 4000, None)?.is_none());

    let recipe = Recipe::parse(
        "[budget]\nselect = '*.layer.*'\n[[candidate]]\nname = 'gptq'\nbits = 3\ngroup = 32\n\
         [[candidate]]\nname = 'gptq'\nbits = 4\ngroup = 32\n[[candidate]]\nname = 'gptq'\nbits = 6\ngroup = 32\n",
    )?;
    let run = Run::new().with_calibration(&calibration);
    let surveyed = Surveyed::new(recipe.budgeted().ok_or("none")?, &original, &run, &judge, &Silent)?;
    let plan = surveyed.plan(Budget::Bits(4.6))?;
    let (compressed, report) = plan.pipeline()?.run(original.clone(), &run)?;
    assert_eq!(report.output.bytes, plan.expected().total_bytes);
    let moved = judge.judge(&compressed)?;
    // Random weights and twelve matrices: errors add up less evenly than in a trained model.
    let ratio = plan.expected().divergence / moved.divergence;
    assert!((0.5..2.0).contains(&ratio), "{} {moved:?}", plan.expected().divergence);

    // The figure is that of the vectors.
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).skip(40).take(20).collect();
    let vectors = |checkpoint: &Checkpoint| -> Tested<Vec<Vec<f32>>> {
        let encoder = SentenceEncoder::new(taper::build(checkpoint)?.encoder()?, checkpoint)?;
        Ok(Encoder::embed(&encoder, &lines)?.to_vec2()?)
    };
    let (a, b) = (vectors(&original)?, vectors(&compressed)?);
    let cosine = |a: &[f32], b: &[f32]| -> f64 {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let mean = a.iter().zip(&b).map(|(a, b)| 1.0 - cosine(a, b)).sum::<f64>() / 20.0;
    assert!((moved.divergence / mean - 1.0).abs() < 1e-3, "{moved:?} {mean}");
    Ok(())
}
