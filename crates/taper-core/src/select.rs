//! Which weights a pass is for.
//!
//! A pattern is a glob over the whole name: `*` stands for any run of characters (dots too), `?` for one, `{a,b}` for
//! either. `re:…` is a regular expression over the whole name. A selection is the union of its patterns less its
//! exclusions; [`Select::matrices`] is every weight of two or more dimensions.

use regex::Regex;
use std::fmt;

use crate::{Error, Result};

/// One compiled pattern.
#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    fn new(text: &str) -> Result<Self> {
        let bad = |message: String| Error::BadPattern { pattern: text.to_owned(), message };
        if text.is_empty() {
            return Err(bad("is empty; `*` matches every name".into()));
        }
        let source = match text.strip_prefix("re:") {
            Some(regex) => format!("^(?:{regex})$"),
            None => glob_to_regex(text).map_err(&bad)?,
        };
        // The regex crate draws the place over several lines and ends with the reason.
        let reason = |e: regex::Error| e.to_string().lines().last().unwrap_or_default().trim().to_owned();
        let regex = Regex::new(&source).map_err(|e| bad(reason(e)))?;
        Ok(Self { text: text.to_owned(), regex })
    }
}

fn glob_to_regex(glob: &str) -> std::result::Result<String, String> {
    let mut out = String::from("^");
    let mut depth = 0usize;
    for c in glob.chars() {
        match c {
            '*' => out.push_str(".*"),
            '?' => out.push('.'),
            '{' => {
                depth += 1;
                out.push_str("(?:");
            }
            '}' if depth > 0 => {
                depth -= 1;
                out.push(')');
            }
            ',' if depth > 0 => out.push('|'),
            other => out.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    if depth > 0 {
        return Err("has a `{` without its `}`".into());
    }
    out.push('$');
    Ok(out)
}

/// Which weights a pass is for.
#[derive(Debug, Clone)]
pub struct Select {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
    matrices_only: bool,
}

impl Select {
    /// Every weight of two or more dimensions: the linear, embedding and convolution weights, not norms and biases.
    #[must_use]
    pub fn matrices() -> Self {
        Self { include: Vec::new(), exclude: Vec::new(), matrices_only: true }
    }

    /// Weights whose name matches a pattern.
    pub fn glob(pattern: &str) -> Result<Self> {
        Self::any([pattern])
    }

    /// Weights whose name matches one of the patterns.
    pub fn any<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let include = patterns.into_iter().map(Pattern::new).collect::<Result<Vec<_>>>()?;
        if include.is_empty() {
            return Err(Error::BadPattern { pattern: String::new(), message: "no pattern given".into() });
        }
        Ok(Self { include, exclude: Vec::new(), matrices_only: false })
    }

    /// Leaves out names that match a pattern.
    pub fn except(mut self, pattern: &str) -> Result<Self> {
        self.exclude.push(Pattern::new(pattern)?);
        Ok(self)
    }

    /// The exclusions that match none of these names.
    pub(crate) fn idle_exclusions(&self, names: &[String]) -> impl Iterator<Item = &str> {
        let idle = |p: &&Pattern| !names.iter().any(|name| p.regex.is_match(name));
        self.exclude.iter().filter(idle).map(|p| p.text.as_str())
    }

    /// True where a weight of this name and shape is selected.
    #[must_use]
    pub fn matches(&self, name: &str, shape: &[usize]) -> bool {
        let included = if self.include.is_empty() {
            !self.matrices_only || shape.len() >= 2
        } else {
            self.include.iter().any(|p| p.regex.is_match(name))
        };
        included && !self.exclude.iter().any(|p| p.regex.is_match(name))
    }
}

impl fmt::Display for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |patterns: &[Pattern]| {
            patterns.iter().map(|p| format!("`{}`", p.text)).collect::<Vec<_>>().join(", ")
        };
        if self.include.is_empty() {
            f.write_str("all matrices")?;
        } else {
            f.write_str(&list(&self.include))?;
        }
        if !self.exclude.is_empty() {
            write!(f, " except {}", list(&self.exclude))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Select::glob(pattern).is_ok_and(|s| s.matches(name, &[1]))
    }

    #[test]
    fn a_star_spans_dots_and_the_rest_is_literal() {
        assert!(matches("model.layers.*", "model.layers.3.mlp.up_proj.weight"));
        assert!(matches("model.layers.1.*", "model.layers.1.x"));
        assert!(!matches("model.layers.1.*", "model.layers.10.x"));
        assert!(!matches("a.b", "a.bc") && !matches("a.b", "aXb"));
        assert!(matches("*.{q,k}_proj.?eight", "l.q_proj.weight"));
        assert!(!matches("*.{q,k}_proj.weight", "l.v_proj.weight"));
        assert!(matches("re:.*\\.[0-3]\\.w", "a.2.w") && !matches("re:.*\\.[0-3]\\.w", "a.4.w"));
    }

    #[test]
    fn exclusions_win_and_matrices_are_the_default() {
        let select = Select::matrices().except("*head*").expect("a pattern");
        assert!(select.matches("a.weight", &[2, 2]));
        assert!(!select.matches("a.norm", &[2]) && !select.matches("lm_head.weight", &[2, 2]));
        assert_eq!(select.to_string(), "all matrices except `*head*`");
    }

    #[test]
    fn patterns_that_do_not_parse_say_why() {
        for (pattern, why) in [("", "is empty"), ("a.{b", "without its `}`"), ("re:(", "unclosed")] {
            let message = Select::glob(pattern).map(|_| ()).expect_err("refused").to_string();
            assert!(message.contains(why), "{message}");
        }
    }
}
