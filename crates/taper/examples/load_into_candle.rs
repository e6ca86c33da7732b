//! An unmodified candle-transformers Llama reads a Taper checkpoint and writes a few words.

use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use taper::{
    bundled,
    candle::{DType, Device, Tensor},
    models::tokenizer::SpecialTokens,
    prelude::{Run, Tokenizer},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    let (dir, small) = (scratch.path().join("model"), scratch.path().join("small"));
    bundled::write_to(&dir)?;
    taper::recipe::int4(32)?.run_to(taper::open(&dir)?, &small, &Run::new())?;

    // Everything from here on is candle; only the `VarBuilder` comes from Taper.
    let checkpoint = taper::open(&small)?;
    let config: LlamaConfig = serde_json::from_slice(&std::fs::read(small.join("config.json"))?)?;
    let config = config.into_config(false);
    let device = Device::Cpu;
    let model = Llama::load(taper::build::var_builder(&checkpoint, DType::F32, &device), &config)?;
    let mut cache = Cache::new(true, DType::F32, &config, &device)?;

    let tokenizer = Tokenizer::of(&checkpoint)?;
    let mut ids = tokenizer.encode("She opened the letter with", SpecialTokens::LeaveOut)?;
    let mut done = 0;
    let mut first = Vec::new();
    for _ in 0..24 {
        let new = Tensor::new(&ids[done..], &device)?.unsqueeze(0)?;
        let logits = model.forward(&new, done, &mut cache)?.squeeze(0)?;
        if first.is_empty() {
            first = logits.to_vec1::<f32>()?;
        }
        done = ids.len();
        ids.push(logits.argmax(0)?.to_scalar::<u32>()?);
    }
    println!("{}", tokenizer.decode(&ids)?);

    // The same weights, packed, in Taper's own Llama: the same logits.
    let ours = taper::build(&checkpoint)?.language()?;
    let prompt = Tensor::new(&ids[..ids.len() - 24], &device)?.unsqueeze(0)?;
    let logits = ours.forward(&prompt)?.squeeze(0)?;
    let last: Vec<f32> = logits.get(logits.dim(0)? - 1)?.to_vec1()?;
    let apart = first.iter().zip(&last).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    println!("largest difference of {} logits: {apart:.1e}", last.len());
    assert!(apart < 1e-3);
    Ok(())
}
