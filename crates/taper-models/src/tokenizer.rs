//! A model directory's `tokenizer.json`, through the `tokenizers` crate.
//!
//! Padding and truncation that the file asks for are switched off: a text is encoded whole unless
//! [`Tokenizer::with_limit`] says otherwise. [`Tokenizer::stated_limit`] tells what the file asked for.

use std::path::Path;
use taper_core::Checkpoint;
use tokenizers::TruncationParams;

use crate::{Error, Result};

/// Whether the tokens that the model's template puts around a text (`[CLS]`, `<s>`, …) are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// As the template says.
    Add,
    /// Only the text's own tokens; what perplexity is measured with.
    LeaveOut,
}

/// Encodes texts and decodes tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    stated_limit: Option<usize>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model directory.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join("tokenizer.json");
        let bad = |message: String| Error::Tokenizer { path: path.clone(), message };
        let bytes = std::fs::read(&path).map_err(|e| bad(e.to_string()))?;
        Self::from_bytes(&bytes).map_err(bad)
    }

    /// The tokenizer that lies beside a checkpoint's weights.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        match checkpoint.dir() {
            Some(dir) => Self::open(dir),
            None => Err(Error::Tokenizer {
                path: "tokenizer.json".into(),
                message: "the checkpoint was made in memory and has no directory".to_owned(),
            }),
        }
    }

    /// From the contents of a `tokenizer.json`.
    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| e.to_string())?;
        let stated_limit = inner.get_truncation().map(|t| t.max_length);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        Ok(Self { inner, stated_limit })
    }

    /// The length at which the file itself asks for truncation.
    #[must_use]
    pub fn stated_limit(&self) -> Option<usize> {
        self.stated_limit
    }

    /// The same tokenizer cutting every text to `tokens`, special ones among them.
    pub fn with_limit(mut self, tokens: usize) -> Result<Self> {
        let params = TruncationParams { max_length: tokens, ..TruncationParams::default() };
        self.inner
            .with_truncation(Some(params))
            .map_err(|e| Error::Tokenize { operation: "limiting the length", message: e.to_string() })?;
        Ok(self)
    }

    /// The tokens of a text.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>> {
        self.inner
            .encode_fast(text, special == SpecialTokens::Add)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|e| Error::Tokenize { operation: "encoding a text", message: e.to_string() })
    }

    /// The tokens of each text, special ones added.
    pub fn encode_all(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        texts.iter().map(|text| self.encode(text, SpecialTokens::Add)).collect()
    }

    /// The text of tokens, special ones left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, true)
            .map_err(|e| Error::Tokenize { operation: "decoding tokens", message: e.to_string() })
    }

    /// The id of a token by its exact name.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How many tokens there are, added ones among them.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}
