//! Statistics from an engine's own traffic: attach the observer, serve, take the `Stats`, compress with them.
//!
//! ```text
//! model with a Recorder ◀── requests of two threads ──▶ answers
//!          └─▶ Stats ─▶ file ─▶ GPTQ
//! ```
//!
//! `cargo run --release --example observe_traffic`

use std::sync::atomic::{AtomicUsize, Ordering};
use taper::{
    Needs, Recorder,
    candle::{DType, Device, Tensor},
    models::LlamaConfig,
    prelude::*,
    stats,
};

/// Tokens of a request.
const LENGTH: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("model");
    taper::bundled::write_to(&dir)?;
    let checkpoint = taper::open(&dir)?;

    // The engine's model, once more over the same weights, with a recorder attached to its layers.
    let recorder = Recorder::new(Needs::Gram);
    let weights = WeightBuilder::new(&checkpoint, DType::F32, &Device::Cpu).with_observer(recorder.clone());
    let model = LlamaConfig::of(&checkpoint)?.build(&weights)?;

    // Two threads take requests as they are free; one recorder watches both.
    let windows = Windows::of_text(&Tokenizer::of(&checkpoint)?, taper::bundled::TEXT, LENGTH)?.first(16);
    let requests: Vec<&[u32]> = windows.iter().collect();
    let next = AtomicUsize::new(0);
    let serve = || -> taper::Result<()> {
        while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let ids = Tensor::from_slice(request, (1, request.len()), &Device::Cpu)?;
            model.forward(&ids)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers = [scope.spawn(serve), scope.spawn(serve)];
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(served) => served,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;

    // Statistics are a value: keep them, and compress whenever you like.
    let path = scratch.path().join("traffic.safetensors");
    stats::file::save(&recorder.stats()?, &path)?;
    let traffic = stats::file::open(&path)?;
    let name = "model.layers.0.self_attn.q_proj.weight";
    let seen = traffic.get(name).map_or(0, |seen| seen.count);
    println!("{} layers observed, {seen} tokens at `{name}`", traffic.len());
    assert_eq!(seen as usize, requests.len() * LENGTH);

    let small = scratch.path().join("small");
    let report = Pipeline::new()
        .then(Gptq::new(RoundNearest::int4(32)?).on(Select::glob("model.layers.*_proj.weight")?))
        .run_to(checkpoint, &small, &Run::new().with_stats(&traffic))?;
    println!("{report}");
    Ok(())
}
