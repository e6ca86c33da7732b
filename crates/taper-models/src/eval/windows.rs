//! A text cut into windows that do not overlap; the incomplete last one is dropped.

use candle_core::{Device, Tensor};

use crate::{
    Error, Result,
    eval::LanguageModel,
    tokenizer::{SpecialTokens, Tokenizer},
};

/// Windows of equal length over a text's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    tokens: Vec<u32>,
    size: usize,
    count: usize,
}

impl Windows {
    /// All whole windows of `size` tokens. Errors where there is none, or where a window predicts nothing.
    pub fn new(tokens: Vec<u32>, size: usize) -> Result<Self> {
        if size < 2 {
            return Err(taper_core::Error::bad_option(
                "window",
                size,
                "at least 2 tokens, of which one is predicted",
            )
            .into());
        }
        let count = tokens.len() / size;
        if count == 0 {
            return Err(Error::TextTooShort { tokens: tokens.len(), window: size });
        }
        Ok(Self { tokens, size, count })
    }

    /// The windows of a text, encoded as a whole and without special tokens.
    pub fn of_text(tokenizer: &Tokenizer, text: &str, size: usize) -> Result<Self> {
        Self::new(tokenizer.encode(text, SpecialTokens::LeaveOut)?, size)
    }

    /// Only the first `count` of them, or all where there are fewer.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.count = self.count.min(count);
        self
    }

    /// Only those after the first `count`; none where there are no more.
    #[must_use]
    pub fn after(mut self, count: usize) -> Self {
        let left = count.min(self.count);
        self.tokens.drain(..left * self.size);
        self.count -= left;
        self
    }

    /// Tokens per window.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many windows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// True where [`Windows::first`] left none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The tokens of each window.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.tokens.chunks_exact(self.size).take(self.count)
    }

    /// The windows as model inputs `[1, size]`, for calibration too.
    pub fn batches(&self) -> impl ExactSizeIterator<Item = Result<Tensor>> {
        self.iter().map(batch)
    }
}

/// A window as a model's input, `[1, size]`.
pub(super) fn batch(window: &[u32]) -> Result<Tensor> {
    Ok(Tensor::from_slice(window, (1, window.len()), &Device::Cpu)?)
}

/// A model's logits over one window: row-major values and the size of the vocabulary.
pub(super) fn window_logits(model: &impl LanguageModel, window: &[u32]) -> Result<(Vec<f32>, usize)> {
    let logits = model.logits(&batch(window)?)?;
    match *logits.dims() {
        [1, len, vocabulary] if len == window.len() && vocabulary > 0 => {
            let values = logits.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1()?;
            Ok((values, vocabulary))
        }
        _ => Err(Error::BadOutput {
            what: "logits",
            expected: format!("[1, {}, vocabulary]", window.len()),
            found: logits.dims().to_vec(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_incomplete_last_window_is_dropped() {
        let windows = Windows::new((0..10).collect(), 4).unwrap();
        assert_eq!(windows.iter().collect::<Vec<_>>(), [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!(windows.clone().first(1).len(), 1);
        assert_eq!(windows.clone().after(1).iter().collect::<Vec<_>>(), [[4, 5, 6, 7]]);
        assert_eq!(windows.clone().first(1).after(1).len(), 0);
        assert!(windows.clone().after(9).is_empty());
        assert_eq!(windows.first(9).len(), 2);
    }

    #[test]
    fn windows_that_predict_nothing_are_refused() {
        assert!(Windows::new(vec![1, 2, 3], 1).unwrap_err().to_string().contains("at least 2"));
        assert!(Windows::new(vec![1, 2, 3], 4).unwrap_err().to_string().contains("3 tokens"));
    }
}
