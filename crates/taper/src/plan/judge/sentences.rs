//! How far a sentence encoder has moved: mean of 1 − cos between a sentence's vectors, over sentences that calibration did not
//! see.
//!
//! For unit vectors this is half the squared distance, so small changes add up as errors do. Neighbours: [`super`] is the
//! same for language models.

use taper_core::{Checkpoint, Error};
use taper_models::SentenceEncoder;
use taper_quant::allocate::Judge;

/// Sentences, and what the original makes of them.
#[derive(Debug)]
pub struct OnSentences {
    sentences: Vec<String>,
    /// Unit vectors, one after the other.
    original: Vec<f32>,
}

impl OnSentences {
    /// Against the sentence encoder of `original`, over these sentences.
    ///
    /// # Errors
    /// Where the checkpoint holds no sentence encoder, or where there is no sentence.
    pub fn new(original: &Checkpoint, sentences: Vec<String>) -> Result<Self, taper_models::Error> {
        if sentences.is_empty() {
            return Err(taper_models::Error::TooFew {
                figure: "divergence",
                what: "sentences",
                found: 0,
                least: 1,
            });
        }
        let original = vectors(original, &sentences)?;
        Ok(Self { sentences, original })
    }

    /// How many sentences are read.
    #[must_use]
    pub fn sentences(&self) -> usize {
        self.sentences.len()
    }
}

/// Unit vectors of sentences, one after the other.
fn vectors(checkpoint: &Checkpoint, sentences: &[String]) -> Result<Vec<f32>, taper_models::Error> {
    let encoder = SentenceEncoder::new(crate::build(checkpoint)?.encoder()?, checkpoint)?;
    let sentences: Vec<&str> = sentences.iter().map(String::as_str).collect();
    Ok(encoder.embed(&sentences)?.flatten_all()?.to_vec1()?)
}

impl Judge for OnSentences {
    fn divergence(&self, checkpoint: &Checkpoint) -> taper_core::Result<f64> {
        let moved = vectors(checkpoint, &self.sentences).map_err(Error::other)?;
        let squared = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
        let distance: f64 = self.original.iter().zip(&moved).map(squared).sum();
        Ok(distance / 2.0 / self.sentences.len() as f64)
    }
}
