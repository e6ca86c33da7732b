//! How well cosines of sentence embeddings agree with people's scores.
//!
//! Spearman is Pearson of the ranks, equal values sharing the mean of their ranks. Pairs come from tab-separated
//! files: score, sentence, sentence.

use candle_core::{DType, Tensor};
use std::path::Path;
use taper_core::Progress;

use super::{influence::cosine, step};
use crate::{Error, Result, bert::SentenceEncoder};

/// Pairs embedded between two reports of progress: enough that sentences of like length find each other.
const PAIRS_PER_STEP: usize = 250;

/// Two sentences and how similar people found them.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The gold score.
    pub score: f64,
    /// One sentence.
    pub first: String,
    /// The other.
    pub second: String,
}

/// Something that embeds sentences.
///
/// Closures of that shape are encoders too.
pub trait Encoder {
    /// One embedding per sentence: `[sentences, dim]`.
    fn embed(&self, sentences: &[&str]) -> Result<Tensor>;
}

impl Encoder for SentenceEncoder {
    fn embed(&self, sentences: &[&str]) -> Result<Tensor> {
        SentenceEncoder::embed(self, sentences)
    }
}

impl<F: Fn(&[&str]) -> Result<Tensor>> Encoder for F {
    fn embed(&self, sentences: &[&str]) -> Result<Tensor> {
        self(sentences)
    }
}

/// The agreement of an encoder with gold scores.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Similarity {
    /// Rank correlation of cosine and score.
    pub spearman: f64,
    /// Linear correlation of cosine and score.
    pub pearson: f64,
    /// How many pairs were compared.
    pub pairs: usize,
}

/// Reads pairs from a tab-separated file; empty lines are skipped.
pub fn read_pairs(path: impl AsRef<Path>) -> Result<Vec<Pair>> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(taper_core::Error::io(path))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = |(i, line): (usize, &str)| {
        parse_pair(line).ok_or_else(|| {
            Error::bad_data(
                path,
                format!("line {}: expected a score, a sentence and a sentence, parted by tabs", i + 1),
            )
        })
    };
    lines.map(read).collect()
}

fn parse_pair(line: &str) -> Option<Pair> {
    let mut fields = line.split('\t');
    let score = fields.next()?.trim().parse::<f64>().ok().filter(|s| s.is_finite())?;
    let (first, second) = (fields.next()?.to_owned(), fields.next()?.to_owned());
    fields.next().is_none().then_some(Pair { score, first, second })
}

/// The agreement of `encoder` with the scores of `pairs`.
pub fn similarity(encoder: &impl Encoder, pairs: &[Pair], progress: &dyn Progress) -> Result<Similarity> {
    let mut cosines = Vec::with_capacity(pairs.len());
    for chunk in pairs.chunks(PAIRS_PER_STEP) {
        let sentences: Vec<&str> = chunk.iter().flat_map(|p| [p.first.as_str(), p.second.as_str()]).collect();
        let rows = embeddings(encoder, &sentences)?;
        cosines.extend(rows.chunks_exact(2).map(|pair| cosine(&pair[0], &pair[1])));
        if let Some(i) = cosines.iter().position(|c| !c.is_finite()) {
            return Err(Error::NotFinite { what: "embeddings", place: format!("pair {i}") });
        }
        step(progress, "pairs", cosines.len(), pairs.len())?;
    }
    let scores: Vec<f64> = pairs.iter().map(|p| p.score).collect();
    Ok(Similarity {
        spearman: spearman(&cosines, &scores)?,
        pearson: pearson(&cosines, &scores)?,
        pairs: pairs.len(),
    })
}

fn embeddings(encoder: &impl Encoder, sentences: &[&str]) -> Result<Vec<Vec<f32>>> {
    let embedded = encoder.embed(sentences)?;
    match *embedded.dims() {
        [n, _] if n == sentences.len() => Ok(embedded.to_dtype(DType::F32)?.to_vec2::<f32>()?),
        _ => Err(Error::BadOutput {
            what: "embeddings",
            expected: format!("[{}, dim]", sentences.len()),
            found: embedded.dims().to_vec(),
        }),
    }
}

/// Spearman's rank correlation; ties share the mean of their ranks.
pub fn spearman(x: &[f64], y: &[f64]) -> Result<f64> {
    pearson(&ranks(x), &ranks(y))
}

/// Pearson's correlation of as many values of `x` as of `y`, at least two; 0 where one of them does not vary.
pub fn pearson(x: &[f64], y: &[f64]) -> Result<f64> {
    let n = x.len().min(y.len());
    if n < 2 || x.len() != y.len() {
        return Err(Error::TooFew {
            figure: "a correlation",
            what: "pairs",
            found: n,
            least: 2.max(x.len().max(y.len())),
        });
    }
    let mean = |v: &[f64]| v.iter().sum::<f64>() / n as f64;
    let (mx, my) = (mean(x), mean(y));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (a, b) in x.iter().zip(y) {
        xy += (a - mx) * (b - my);
        xx += (a - mx).powi(2);
        yy += (b - my).powi(2);
    }
    Ok(if xx == 0.0 || yy == 0.0 { 0.0 } else { xy / (xx * yy).sqrt() })
}

/// Ranks from 1, equal values sharing the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for group in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let mean = start as f64 + (group.len() as f64 + 1.0) / 2.0;
        group.iter().for_each(|&i| ranks[i] = mean);
        start += group.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use taper_core::Silent;

    #[test]
    fn ties_share_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), [4.0, 1.0, 4.0, 2.0, 4.0]);
        assert_eq!(ranks(&[0.0, -0.0]), [1.5, 1.5]);
    }

    #[test]
    fn spearman_with_ties_equals_the_hand_computed_value() {
        // Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: covariance 4.5, squares 4.5 and 5.
        let found = spearman(&[1.0, 2.0, 2.0, 3.0], &[10.0, 30.0, 20.0, 40.0]).unwrap();
        assert!((found - 4.5 / (4.5f64 * 5.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn a_monotone_curve_has_full_rank_correlation_and_less_linear() {
        let x: Vec<f64> = (0..10).map(f64::from).collect();
        let y: Vec<f64> = x.iter().map(|v| v.exp()).collect();
        assert!((spearman(&x, &y).unwrap() - 1.0).abs() < 1e-15);
        assert!(pearson(&x, &y).unwrap() < 0.8);
        assert_eq!(pearson(&x, &[2.0; 10]).unwrap(), 0.0);
        assert!(pearson(&x, &y[..5]).is_err() && pearson(&[1.0], &[1.0]).is_err());
    }

    #[test]
    fn an_encoder_of_angles_agrees_with_cosines() {
        let encoder = |sentences: &[&str]| -> Result<Tensor> {
            let rows = sentences.iter().flat_map(|s| {
                let angle: f32 = s.parse().unwrap();
                [angle.cos(), angle.sin()]
            });
            Ok(Tensor::from_vec(rows.collect::<Vec<_>>(), (sentences.len(), 2), &Device::Cpu)?)
        };
        let pair = |score: f64, angle: &str| Pair { score, first: "0".into(), second: angle.into() };
        let pairs = [pair(5.0, "0.1"), pair(1.0, "1.5"), pair(3.0, "0.7"), pair(0.0, "3")];
        let found = similarity(&encoder, &pairs, &Silent).unwrap();
        assert!((found.spearman - 1.0).abs() < 1e-12);
        assert_eq!(found.pairs, 4);
    }

    #[test]
    fn lines_that_are_no_pair_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairs.tsv");
        std::fs::write(&path, "1.5\ta\tb\n\nx\ta\tb\n").unwrap();
        assert!(read_pairs(&path).unwrap_err().to_string().contains("line 3"));
        std::fs::write(&path, "1.5\ta\tb\n").unwrap();
        assert_eq!(read_pairs(&path).unwrap(), [Pair { score: 1.5, first: "a".into(), second: "b".into() }]);
    }
}
