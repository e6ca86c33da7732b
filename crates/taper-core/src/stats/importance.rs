//! Importance matrices: E\[x²\] per input, as llama.cpp's `imatrix` writes them (the `.dat` form).
//!
//! ```text
//! i32 entries
//! entry    i32 length, name, i32 calls, i32 inputs, f32 [inputs] = E[x²] · calls
//! i32 last chunk; i32 length, path of the data set                     absent in the oldest files
//! ```
//!
//! All little-endian. Names are those of the program that wrote the file; who reads it says what they are called here.
//! Only squares are in such a file, so statistics made of it have no means and ranges.

use std::{path::Path, sync::Arc};

use super::{InputStats, Stats};
use crate::{Error, Result, store::mmap::Mapped};

/// Longer names and paths are no names.
const LONGEST_TEXT: usize = 1 << 16;

/// What was seen at the input of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The tensor's name.
    pub name: String,
    /// How often it was counted, at least 1; what the squares are multiplied by.
    pub calls: i32,
    /// E\[x²\] · calls, per input.
    pub squares: Vec<f32>,
}

/// An importance matrix.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Importance {
    /// One entry per tensor.
    pub entries: Vec<Entry>,
    /// Chunks of text that were read.
    pub chunks: i32,
    /// The text's path.
    pub data: String,
}

impl Importance {
    /// Of statistics, under the names that `rename` gives; layers that it gives none are left out.
    #[must_use]
    pub fn of(stats: &Stats, rename: impl Fn(&str) -> Option<String>) -> Self {
        let entry = |(name, seen): (&str, &Arc<InputStats>)| {
            // Counts beyond an i32 lose nothing: only the quotient matters.
            let calls = i32::try_from(seen.count).unwrap_or(i32::MAX);
            let scale = f64::from(calls) / seen.count as f64;
            let squares = seen.sum_squares.iter().map(|s| (s * scale) as f32).collect();
            Some(Entry { name: rename(name)?, calls, squares })
        };
        Self { entries: stats.iter().filter_map(entry).collect(), chunks: 1, data: String::new() }
    }

    /// As statistics, under the names that `rename` gives; entries that it gives none are left out.
    ///
    /// Means and ranges are empty: the file has none.
    #[must_use]
    pub fn stats(&self, rename: impl Fn(&str) -> Option<String>) -> Stats {
        let one = |entry: &Entry| {
            let (mean, mean_abs, min, max) = Default::default();
            let sum_squares = entry.squares.iter().map(|&s| f64::from(s)).collect();
            let count = u64::from(entry.calls.unsigned_abs());
            let seen = InputStats { count, mean, min, max, mean_abs, sum_squares, gram: None, cross: None };
            Some((rename(&entry.name)?, Arc::new(seen)))
        };
        self.entries.iter().filter_map(one).collect()
    }

    /// Reads a file. Errors say what is wrong with it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mapped = Mapped::open(path)?;
        Self::read(mapped.bytes())
            .map_err(|message| Error::Stats { site: path.display().to_string(), message })
    }

    /// Reads the bytes of a file.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut rest = Rest(bytes);
        let count = rest.count("the number of entries")?;
        let mut entries = Vec::new();
        for index in 0..count {
            let entry = rest.entry().map_err(|message| format!("entry {index}: {message}"))?;
            entries.push(entry);
        }
        if entries.is_empty() {
            return Err("it has no entries; expected an importance matrix".to_owned());
        }
        let (mut chunks, mut data) = (0, String::new());
        if !rest.0.is_empty() {
            chunks = rest.number("the last chunk")?;
            data = if rest.0.is_empty() { data } else { rest.text("the data set")? };
        }
        if rest.0.is_empty() {
            Ok(Self { entries, chunks, data })
        } else {
            Err(format!("{} bytes follow its end", rest.0.len()))
        }
    }

    /// The bytes of a file. Errors where a name or an entry is longer than the format can say.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let length = |bytes: &mut Vec<u8>, n: usize| {
            let n = i32::try_from(n).map_err(|_| format!("{n} is more than the format can say"))?;
            bytes.extend(n.to_le_bytes());
            Ok::<(), String>(())
        };
        length(&mut bytes, self.entries.len())?;
        for entry in &self.entries {
            length(&mut bytes, entry.name.len())?;
            bytes.extend(entry.name.as_bytes());
            bytes.extend(entry.calls.to_le_bytes());
            length(&mut bytes, entry.squares.len())?;
            bytes.extend(entry.squares.iter().flat_map(|s| s.to_le_bytes()));
        }
        bytes.extend(self.chunks.to_le_bytes());
        length(&mut bytes, self.data.len())?;
        bytes.extend(self.data.as_bytes());
        Ok(bytes)
    }
}

/// What of a file is still to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], String> {
        let (taken, rest) =
            self.0.split_at_checked(n).ok_or_else(|| format!("the file ends within {what}"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, what: &str) -> Result<i32, String> {
        let bytes = self.take(4, what)?;
        Ok(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn count(&mut self, what: &str) -> Result<usize, String> {
        let n = self.number(what)?;
        usize::try_from(n).map_err(|_| format!("{what} is {n}; expected at least 0"))
    }

    fn text(&mut self, what: &str) -> Result<String, String> {
        let length = self.count(what)?;
        if length > LONGEST_TEXT {
            return Err(format!("{what} has {length} bytes; expected at most {LONGEST_TEXT}"));
        }
        let bytes = self.take(length, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format!("{what} is not UTF-8"))
    }

    fn entry(&mut self) -> Result<Entry, String> {
        let name = self.text("the name")?;
        let calls = self.number("the number of calls")?;
        if calls < 1 {
            return Err(format!("`{name}` was called {calls} times; expected at least 1"));
        }
        let inputs = self.count("the number of inputs")?;
        let bytes = inputs.checked_mul(4).ok_or("more inputs than can be")?;
        let squares: Vec<f32> = self
            .take(bytes, &format!("the values of `{name}`"))?
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        match squares.iter().position(|s| !(s.is_finite() && *s >= 0.0)) {
            None if inputs > 0 => Ok(Entry { name, calls, squares }),
            None => Err(format!("`{name}` has no inputs")),
            Some(at) => Err(format!("value {at} of `{name}` is {}, no sum of squares", squares[at])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One entry `ab` of two inputs, counted four times, as the layout says byte by byte.
    const FILE: [u8; 39] = [
        1, 0, 0, 0, 2, 0, 0, 0, b'a', b'b', 4, 0, 0, 0, 2, 0, 0, 0, 0, 0, 128, 63, 0, 0, 0, 64, 7, 0, 0, 0,
        5, 0, 0, 0, b't', b'.', b't', b'x', b't',
    ];

    #[test]
    fn the_layout_is_read_and_written_byte_by_byte() {
        let read = Importance::read(&FILE).unwrap();
        let entry = Entry { name: "ab".into(), calls: 4, squares: vec![1.0, 2.0] };
        assert_eq!(read, Importance { entries: vec![entry], chunks: 7, data: "t.txt".into() });
        assert_eq!(read.to_bytes().unwrap(), FILE);
        assert_eq!(Importance::read(&FILE[..26]).unwrap().entries, read.entries, "the oldest form");
        let stats = read.stats(|name| Some(format!("layer.{name}")));
        assert_eq!(stats.get("layer.ab").unwrap().mean_squares(), [0.25, 0.5]);
        assert_eq!(
            Importance::of(&stats, |n| n.strip_prefix("layer.").map(Into::into)).entries,
            read.entries
        );
    }

    #[test]
    fn every_cut_and_every_wrong_number_is_an_error() {
        for end in (0..FILE.len()).filter(|end| ![26, 30].contains(end)) {
            assert!(Importance::read(&FILE[..end]).is_err(), "{end}");
        }
        let changed = |at: usize, byte: u8| {
            let mut file = FILE;
            file[at] = byte;
            Importance::read(&file).unwrap_err()
        };
        assert!(changed(3, 255).contains("the number of entries is -"));
        assert!(changed(0, 2).contains("entry 1"));
        assert!(changed(7, 127).contains("expected at most"));
        assert!(changed(8, 255).contains("UTF-8"));
        assert!(changed(10, 0).contains("called 0 times"));
        assert!(changed(17, 127).contains("ends within the values"));
        assert!(changed(14, 0).contains("no inputs"));
        assert!(changed(21, 191).contains("no sum of squares"));
        assert!(Importance::read(&[FILE.as_slice(), &[0]].concat()).unwrap_err().contains("follow its end"));
    }
}
