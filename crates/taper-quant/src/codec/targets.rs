//! Naming sets of modules in a few lines.
//!
//! ```text
//! model.layers.0.mlp.up_proj … model.layers.31.mlp.up_proj   →   re:^model\.layers\.\d+\.mlp\.up_proj$
//! ```
//!
//! A pattern stands for its members only if it matches nobody else; otherwise the members are listed. Patterns use what
//! Rust's and Python's expressions have in common.

use regex::Regex;
use std::collections::BTreeMap;

/// Targets that match exactly `members` among `members` and `others`: expressions (`re:…`) where a run of layers is
/// complete, names where it is not.
#[must_use]
pub fn targets(members: &[&str], others: &[&str]) -> Vec<String> {
    let mut families: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for member in members {
        families.entry(pattern(member)).or_default().push(member);
    }
    let mut targets = Vec::new();
    for (pattern, names) in families {
        let exact = |regex: &Regex| !others.iter().any(|name| regex.is_match(name));
        match names.as_slice() {
            [one] => targets.push((*one).to_owned()),
            _ if Regex::new(&pattern).as_ref().is_ok_and(exact) => targets.push(format!("re:{pattern}")),
            _ => targets.extend(names.into_iter().map(str::to_owned)),
        }
    }
    targets
}

/// The expression of a name in which every part that is a number may be any number.
fn pattern(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<String> = name
        .split('.')
        .map(|part| if is_number(part) { "[0-9]+".to_owned() } else { regex::escape(part) })
        .collect();
    format!("^{}$", parts.join(r"\."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_runs_become_one_expression() {
        let members = ["layers.0.q_proj", "layers.1.q_proj", "layers.10.q_proj", "head"];
        assert_eq!(targets(&members, &["layers.0.o_proj"]), ["head", r"re:^layers\.[0-9]+\.q_proj$"]);
    }

    #[test]
    fn a_run_with_a_gap_is_listed() {
        let members = ["layers.0.fc1", "layers.2.fc1"];
        assert_eq!(targets(&members, &["layers.1.fc1"]), ["layers.0.fc1", "layers.2.fc1"]);
        // Numbers within a part are part of its name.
        assert_eq!(targets(&members, &["layers.1.fc2"]), [r"re:^layers\.[0-9]+\.fc1$"]);
    }
}
