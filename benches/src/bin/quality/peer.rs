//! What published tools make of `novels-7m` on the same texts, windows and layers: the figures beside ours.
//!
//! Measured once, with the tools' own compressors, decoded in torch and judged in f32: llm-compressor 0.14 (GPTQ, AWQ), hqq 0.2,
//! bitsandbytes 0.50, AutoRound 0.16 with 200 iterations, ggml with an importance matrix of the same windows. Bits count codes, scales and
//! zero points.

/// A published tool's result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// The row that it stands beside.
    row: &'static str,
    /// The tool.
    pub(crate) tool: &'static str,
    /// Bits per weight.
    pub(crate) bits: f64,
    /// Perplexity on the evaluation text.
    pub(crate) perplexity: f64,
    /// Mean KL against the original, nats per token.
    pub(crate) kl: f64,
}

const fn peer(row: &'static str, tool: &'static str, bits: f64, perplexity: f64, kl: f64) -> Peer {
    Peer { row, tool, bits, perplexity, kl }
}

const PEERS: [Peer; 24] = [
    peer("rtn-int4-g128", "llm-compressor, symmetric", 4.125, 41.322, 0.01076),
    peer("rtn-int4-g32", "llm-compressor, symmetric", 4.5, 41.248, 0.00762),
    peer("rtn-int3-g128", "llm-compressor, symmetric", 3.125, 42.577, 0.04997),
    peer("rtn-int2-g64", "llm-compressor, symmetric", 2.25, 53.723, 0.31183),
    peer("hqq-int4-g128", "hqq", 4.25, 41.352, 0.00813),
    peer("hqq-int4-g32", "hqq, groups of 64", 4.5, 41.268, 0.00653),
    peer("hqq-int3-g128", "hqq", 3.25, 42.112, 0.03862),
    peer("hqq-int2-g64", "hqq", 2.5, 47.893, 0.17934),
    peer("awq-int4-g128", "llm-compressor, asymmetric", 4.156, 41.313, 0.0086),
    peer("gptq-natural-order-int4-g128", "llm-compressor, no order", 4.125, 41.19, 0.00684),
    peer("gptq-int4-g128", "llm-compressor, symmetric", 4.125, 41.21, 0.006),
    peer("gptq-int4-g32", "llm-compressor, symmetric", 4.5, 41.137, 0.00441),
    peer("gptq-int3-g128", "llm-compressor, symmetric", 3.125, 41.873, 0.02832),
    peer("gptq-int2-g64", "llm-compressor, symmetric", 2.25, 47.195, 0.16972),
    peer("tuned-int4-g128", "AutoRound", 4.125, 41.036, 0.00407),
    peer("tuned-int3-g128", "AutoRound", 3.125, 41.338, 0.01623),
    peer("tuned-int2-g64", "AutoRound", 2.25, 42.744, 0.06898),
    peer("tuned-int4-g32", "ggml Q4_K, importance matrix", 4.5, 41.093, 0.00407),
    peer("rtn-nf4", "bitsandbytes", 4.5, 41.241, 0.00747),
    peer("best-4bit", "AutoRound", 4.125, 41.036, 0.00407),
    peer("best-3bit", "AutoRound", 3.125, 41.338, 0.01623),
    peer("best-2bit", "AutoRound", 2.25, 42.744, 0.06898),
    peer("search-int4-g32", "ggml Q4_0", 4.5, 41.223, 0.0063),
    peer("weighted-search-int4-g32", "ggml Q4_0, importance matrix", 4.5, 41.204, 0.00568),
];

/// The tool that does what a row does, at about its bits.
pub(crate) fn of(row: &str) -> Option<&'static Peer> {
    PEERS.iter().find(|peer| peer.row == row)
}
