//! What GGUF files call the weights of the Llama family, importance matrices among them.
//!
//! ```text
//! model.layers.3.self_attn.q_proj.weight  ↔  blk.3.attn_q.weight
//! ```

/// Names inside a layer: ours and GGUF's.
const INSIDE: [(&str, &str); 11] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// Names outside the layers.
const OUTSIDE: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// GGUF's name of a weight; none where it has none.
#[must_use]
pub fn from_hugging_face(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    let stem = match stem.strip_prefix("model.layers.").and_then(|s| s.split_once('.')) {
        Some((layer, inside)) => format!("blk.{}.{}", layer.parse::<u32>().ok()?, there(&INSIDE, inside)?),
        None => there(&OUTSIDE, stem)?.to_owned(),
    };
    Some(format!("{stem}.{kind}"))
}

/// The name of one of GGUF's weights; none where it is no weight of a Llama.
#[must_use]
pub fn to_hugging_face(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    let stem = match stem.strip_prefix("blk.").and_then(|s| s.split_once('.')) {
        Some((layer, inside)) => {
            format!("model.layers.{}.{}", layer.parse::<u32>().ok()?, back(&INSIDE, inside)?)
        }
        None => back(&OUTSIDE, stem)?.to_owned(),
    };
    Some(format!("{stem}.{kind}"))
}

fn there(names: &[(&'static str, &'static str)], ours: &str) -> Option<&'static str> {
    names.iter().find(|(o, _)| *o == ours).map(|(_, g)| *g)
}

fn back(names: &[(&'static str, &'static str)], theirs: &str) -> Option<&'static str> {
    names.iter().find(|(_, g)| *g == theirs).map(|(o, _)| *o)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (ours, theirs) in [
            ("model.layers.31.self_attn.q_proj.weight", "blk.31.attn_q.weight"),
            ("model.layers.0.mlp.down_proj.bias", "blk.0.ffn_down.bias"),
            ("model.layers.2.post_attention_layernorm.weight", "blk.2.ffn_norm.weight"),
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
        ] {
            assert_eq!(from_hugging_face(ours).as_deref(), Some(theirs));
            assert_eq!(to_hugging_face(theirs).as_deref(), Some(ours));
        }
        for wrong in ["", "weight", "blk.x.attn_q.weight", "blk.1.attn_z.weight", "model.layers.1.mlp.weight"]
        {
            assert_eq!(to_hugging_face(wrong), None, "{wrong}");
        }
    }
}
