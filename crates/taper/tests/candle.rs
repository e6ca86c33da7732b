//! Other programs load what Taper writes: here candle-transformers' Llama, unmodified.

mod bundle;

use bundle::{Bundle, Tested, values};
use candle_transformers::models::llama::{Cache, Llama as Stock, LlamaConfig as StockConfig};
use std::path::Path;
use taper::{
    bundled::RECIPES,
    candle::{DType, Device, Tensor},
    prelude::*,
};

/// Logits at the last of `ids`, by candle-transformers over the `VarBuilder` bridge.
fn stock_logits(dir: &Path, ids: &[u32]) -> Tested<Vec<f32>> {
    let config: StockConfig = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    let config = config.into_config(false);
    let weights = taper::build::var_builder(&taper::open(dir)?, DType::F32, &Device::Cpu);
    let model = Stock::load(weights, &config)?;
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu)?;
    let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
    Ok(model.forward(&ids, 0, &mut cache)?.squeeze(0)?.to_vec1()?)
}

fn our_logits(dir: &Path, ids: &[u32]) -> Tested<Vec<f32>> {
    let model = taper::build(&taper::open(dir)?)?.language()?;
    let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
    let logits = model.forward(&ids)?.squeeze(0)?;
    Ok(logits.get(logits.dim(0)? - 1)?.to_vec1()?)
}

#[test]
fn an_unmodified_candle_llama_reads_every_recipe_with_our_logits() -> Tested {
    let bundle = Bundle::new()?;
    let ids = Tokenizer::open(bundle.at("model"))?.encode(
        "The old captain looked at the letter, and",
        taper::models::tokenizer::SpecialTokens::LeaveOut,
    )?;
    for (name, recipe) in RECIPES {
        let out = bundle.at(name);
        Recipe::parse(recipe)?.pipeline().run_to(bundle.open()?, &out, &Run::new())?;
        let (stock, ours) = (stock_logits(&out, &ids)?, our_logits(&out, &ids)?);
        assert_eq!(stock.len(), ours.len());
        let largest = stock.iter().fold(0f32, |m, v| m.max(v.abs()));
        let apart = stock.iter().zip(&ours).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(apart < 2e-5 * largest, "{name}: {apart} of {largest}");
    }
    Ok(())
}

#[test]
fn a_structured_cut_is_a_stock_checkpoint_without_taper() -> Tested {
    let bundle = Bundle::new()?;
    let out = bundle.at("cut");
    let recipe = "[[pass]]\nname = 'structured'\nfamily = 'feed-forward'\nratio = 0.25\nmultiple-of = 32";
    Recipe::parse(recipe)?.pipeline().run_to(bundle.open()?, &out, &Run::new())?;
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("config.json"))?)?;
    assert_eq!(config["intermediate_size"], 288);
    assert!(config.get("quantization_config").is_none());
    // Read by the safetensors crate alone: plain tensors of the cut shapes, and the values that we see.
    let file = std::fs::read(out.join("model.safetensors"))?;
    let arrays = safetensors::SafeTensors::deserialize(&file)?;
    let ours = taper::open(&out)?;
    assert_eq!(arrays.len(), ours.len());
    for (name, array) in arrays.tensors() {
        assert_eq!(array.shape(), ours.info(&name)?.shape, "{name}");
        assert_eq!(array.dtype(), safetensors::Dtype::BF16, "{name}");
        let plain: Vec<f32> = array
            .data()
            .chunks_exact(2)
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
            .collect();
        assert_eq!(plain, values(&ours, &name)?, "{name}");
    }
    assert_eq!(arrays.tensor("model.layers.2.mlp.gate_proj.weight")?.shape(), [288, 128]);
    assert_eq!(arrays.tensor("model.layers.2.mlp.down_proj.weight")?.shape(), [128, 288]);
    Ok(())
}
