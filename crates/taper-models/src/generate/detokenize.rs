//! Text out of tokens, one token at a time.
//!
//! A token may be part of a character (byte-level and byte-fallback vocabularies) and may look different at the start
//! of a text (sentencepiece drops the first space). So the new text is what a decoding with some context has more than
//! one without the new tokens, and it is held back while it ends in an incomplete character:
//!
//! ```text
//! ids  [ context | pending ]     shown = decode(context)     new = decode(context + pending) − shown
//! ```

use crate::{Result, tokenizer::Tokenizer};

/// What decoders put in place of bytes that are no character (yet).
const REPLACEMENT: char = '\u{FFFD}';
/// A UTF-8 character has at most four bytes: what is incomplete after as many tokens never will be complete.
const LONGEST_CHARACTER: usize = 4;
/// Tokens of a prompt that serve as context: enough to hold a whole character and the word it stands in.
const CONTEXT: usize = 8;

/// Turns a stream of tokens into a stream of text.
#[derive(Debug)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// How many of `ids` are context, whose text was shown already.
    context: usize,
    /// The text of the context.
    shown: String,
}

impl<'a> Detokenizer<'a> {
    /// Text that continues `prompt` (which is not shown again).
    pub fn after(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Result<Self> {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        let shown = tokenizer.decode(&ids)?;
        Ok(Self { tokenizer, context: ids.len(), ids, shown })
    }

    /// The text that a token completes; empty while a character is incomplete.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        let pending = self.ids.len() - self.context;
        if text.ends_with(REPLACEMENT) && pending < LONGEST_CHARACTER {
            return Ok(String::new());
        }
        self.take(&text)
    }

    /// The text of tokens still held back, at the end.
    pub fn finish(mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids)?;
        self.take(&text)
    }

    /// What `text`, the decoding of all `ids`, has more than was shown; pending tokens become the context.
    fn take(&mut self, text: &str) -> Result<String> {
        let new = match text.strip_prefix(&self.shown) {
            Some(new) => new.to_owned(),
            // Bytes that are no character can change how their neighbours decode; what was shown stays shown.
            None => self.tokenizer.decode(&self.ids[self.context..])?,
        };
        if !new.is_empty() {
            self.ids.drain(..self.context);
            self.shown = self.tokenizer.decode(&self.ids)?;
        }
        self.context = self.ids.len();
        Ok(new)
    }
}
