//! What may be scaled and turned in a Llama without changing what it computes.
//!
//! ```text
//! scaled   attention norm ─▶ q, k, v      v ─▶ o (each value for all of its query heads)
//!          feed-forward norm ─▶ gate, up  up ─▶ down (the product with act(gate) is linear in up)
//! turned   the residual stream: embedding, o and down write it; q, k, v, gate, up and the head read it behind a norm,
//!          whose mean square does not care for directions and whose gain moves into the readers
//!          the values of each head: v writes them, attention averages them, o reads them
//! ```
//!
//! Queries and keys are left alone: positions turn them in pairs, and qwen3 norms them.

use taper_core::{
    Checkpoint,
    coupling::{Carrier, Gain, Rotation, Scaling, Side, Space, Tied},
};

use crate::llama::LlamaConfig;

fn layer(index: usize) -> String {
    format!("model.layers.{index}")
}

/// `{base}.weight`, and `{base}.bias` where there is one.
fn with_bias(base: &str, bias: bool) -> impl Iterator<Item = String> {
    let bias = bias.then(|| format!("{base}.bias"));
    std::iter::once(format!("{base}.weight")).chain(bias)
}

/// The channels of one layer that may be scaled.
pub(super) fn scalings(config: &LlamaConfig, index: usize) -> [Scaling; 4] {
    let at = layer(index);
    let read = |names: &[&str]| names.iter().map(|n| Carrier::new(format!("{at}.{n}.weight"), 1)).collect();
    let norm = |name: &str, readers: &[&str]| Scaling {
        name: format!("{at}.{name}"),
        channels: config.hidden_size,
        producers: vec![Carrier::new(format!("{at}.{name}.weight"), 0)],
        consumers: read(readers),
    };
    let made = |name: &str, bias| {
        with_bias(&format!("{at}.{name}"), bias).map(|weight| Carrier::new(weight, 0)).collect()
    };
    let (dim, repeats) = (config.head_dim, config.queries_per_group());
    let attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
    [
        norm("input_layernorm", &attention),
        Scaling {
            name: format!("{at}.self_attn.o_proj"),
            channels: config.num_key_value_heads * dim,
            producers: made("self_attn.v_proj", config.qkv_bias),
            consumers: vec![Carrier::new(format!("{at}.self_attn.o_proj.weight"), 1).spread(dim, repeats)],
        },
        norm("post_attention_layernorm", &["mlp.gate_proj", "mlp.up_proj"]),
        Scaling {
            name: format!("{at}.mlp.down_proj"),
            channels: config.intermediate_size,
            producers: made("mlp.up_proj", config.mlp_bias),
            consumers: read(&["mlp.down_proj"]),
        },
    ]
}

/// The values of one layer's heads.
pub(super) fn heads(config: &LlamaConfig, index: usize) -> Rotation {
    let at = format!("{}.self_attn", layer(index));
    Rotation {
        space: Space::Heads,
        width: config.head_dim,
        writers: with_bias(&format!("{at}.v_proj"), config.qkv_bias).map(|w| Side::new(w, 0)).collect(),
        readers: vec![Side::new(format!("{at}.o_proj.weight"), 1)],
        gains: Vec::new(),
        tied: None,
        name: at,
    }
}

/// The residual stream.
pub(super) fn stream(config: &LlamaConfig, checkpoint: &Checkpoint) -> Rotation {
    const TABLE: &str = "model.embed_tokens.weight";
    const HEAD: &str = "lm_head.weight";
    let mut writers = vec![Side::new(TABLE, 1)];
    let mut gains = Vec::new();
    for at in (0..config.layers.len()).map(layer) {
        let outputs = [("self_attn.o_proj", config.output_bias), ("mlp.down_proj", config.mlp_bias)];
        for (name, bias) in outputs {
            writers.extend(with_bias(&format!("{at}.{name}"), bias).map(|w| Side::new(w, 0)));
        }
        let inputs: [(&str, &[&str]); 2] = [
            ("input_layernorm", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            ("post_attention_layernorm", &["mlp.gate_proj", "mlp.up_proj"]),
        ];
        gains.extend(inputs.map(|(norm, readers)| Gain {
            weight: format!("{at}.{norm}.weight"),
            readers: readers.iter().map(|r| format!("{at}.{r}.weight")).collect(),
        }));
    }
    gains.push(Gain { weight: "model.norm.weight".to_owned(), readers: vec![HEAD.to_owned()] });
    let readers = gains.iter().flat_map(|g| &g.readers).map(|name| Side::new(name, 1)).collect();
    let tied = config.is_tied(checkpoint.contains(HEAD)).then(|| Tied {
        table: TABLE.to_owned(),
        head: HEAD.to_owned(),
        config: "tie_word_embeddings".to_owned(),
    });
    Rotation {
        name: "model".to_owned(),
        space: Space::Stream,
        width: config.hidden_size,
        writers,
        readers,
        gains,
        tied,
    }
}
