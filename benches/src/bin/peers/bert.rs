//! A whole sentence encoder: a batch of sentences, and one alone.
//!
//! The linear layers are packed. The peers are candle-transformers' `bert` in f32, and the same model on candle's
//! quantized matrices.

use candle_transformers::models::bert as theirs;
use serde_json::Value as Json;
use taper::{
    Architecture, Checkpoint, WeightBuilder,
    candle::{DType, Device, Tensor, quantized::GgmlDType},
    core::build::var_builder,
    models::{BertConfig, Tokenizer, tokenizer::SpecialTokens},
};

use crate::{
    Failed, candle_bert, check,
    clock::whole,
    job::{Contender, Cost, Race, Spec, Target},
    model::{self, Stored},
    products::{Format, INT8, MODES},
};

/// Sentences and tokens each: a batch as encoders of documents have it, and a query.
const SIZES: [(&str, usize, usize); 2] = [("batch", 8, 64), ("single", 1, 16)];
/// Rows and columns of the widest layer.
const SHAPE: [usize; 2] = [1536, 384];

/// Token vectors of ids and mask, `[texts, len]` each.
type Encode = Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor, Failed>>;

pub(crate) fn specs() -> Vec<Spec> {
    let packed = |bits, group, mode| Stored::Packed(Format::Int(bits, group), mode);
    let stored = [
        packed(4, 128, INT8),
        packed(4, 32, INT8),
        packed(4, 128, MODES[0]),
        packed(8, 0, INT8),
        Stored::F32,
    ];
    let both = |stored: Stored| {
        SIZES.map(|(name, texts, len)| {
            let job = format!("bert-{}-{name}", stored.name());
            Spec::new(job, SHAPE, texts * len, move |_| race(stored, texts, len))
        })
    };
    stored.into_iter().flat_map(both).collect()
}

fn race(stored: Stored, texts: usize, len: usize) -> Result<Race, Failed> {
    let dir = model::minilm()?;
    let checkpoint = taper::open(&dir)?;
    let text = std::fs::read_to_string(model::shared("data/novels-eval.txt")?)?;
    let start = text.char_indices().nth(16 * texts * len).map_or(text.len(), |(at, _)| at);
    let ids = Tokenizer::open(&dir)?.encode(&text[..start], SpecialTokens::LeaveOut)?;
    let ids = model::tensor(ids.get(..texts * len).ok_or("the text is too short")?, texts)?;
    let mask = ids.ones_like()?;
    let expected = dense(&checkpoint)?(&ids, &mask)?;
    let contender = |name: &str, encode: Encode, bound: f64| -> Result<Contender, Failed> {
        let (ids, mask) = (ids.clone(), mask.clone());
        let error = check::within(name, model::distance(&expected, &encode(&ids, &mask)?)?, bound)?;
        let work = whole(move || encode(&ids, &mask));
        Ok(Contender { name: name.into(), work, error })
    };
    let bound = |bits| if bits == 4 { 0.2 } else { 3e-3 };
    let allowed = match stored {
        // One scale for the activations of a whole row, outliers and all, as W8A8 has it: 6e-3 here.
        Stored::Packed(Format::Int(8, 0), _) => 1e-2,
        Stored::Packed(Format::Int(bits, _), _) => bound(bits),
        _ => 1e-8,
    };
    let packed = stored.of(&checkpoint, |name| name.contains("encoder.layer"))?;
    let quantized =
        |dtype| -> Result<Encode, Failed> { Ok(Box::new(candle_bert::quantized(&checkpoint, dtype)?)) };
    Ok(Race {
        ours: contender("taper", ours(&packed)?, allowed)?,
        peers: vec![
            contender("candle Q4_K", quantized(GgmlDType::Q4K)?, bound(4))?,
            contender("candle Q8_0", quantized(GgmlDType::Q8_0)?, bound(8))?,
            contender("candle f32", dense(&checkpoint)?, 1e-8)?,
        ],
        cost: Cost::NONE,
        reading: None,
        target: Target::Candle(1.0),
        extra: vec![("tokens", (texts * len) as f64)],
        steps: 1,
    })
}

fn ours(checkpoint: &Checkpoint) -> Result<Encode, Failed> {
    let config = BertConfig::of(checkpoint)?;
    let model = config.build(&WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu))?;
    Ok(Box::new(move |ids, mask| Ok(model.forward(ids, mask)?)))
}

fn dense(checkpoint: &Checkpoint) -> Result<Encode, Failed> {
    let config: theirs::Config = serde_json::from_value(Json::Object(checkpoint.config().clone()))?;
    let model = theirs::BertModel::load(var_builder(checkpoint, DType::F32, &Device::Cpu), &config)?;
    Ok(Box::new(move |ids, mask| Ok(model.forward(ids, &ids.zeros_like()?, Some(mask))?)))
}
