//! Numbers of bytes on the command line and in tables.

/// Whole bytes, with K, M or G for their thousands: `500M`, `8G`.
///
/// # Errors
/// What would be right, for the parser of the command line.
pub fn parse(text: &str) -> Result<u64, String> {
    let unit = match text.as_bytes().last() {
        Some(b'K' | b'k') => 1_000,
        Some(b'M' | b'm') => 1_000_000,
        Some(b'G' | b'g') => 1_000_000_000,
        _ => 1,
    };
    let digits = if unit == 1 { text } else { &text[..text.len() - 1] };
    let number: Option<u64> = digits.parse().ok().filter(|n| *n > 0);
    number.and_then(|n| n.checked_mul(unit)).ok_or_else(|| "expected bytes, such as 500M or 8G".to_owned())
}

/// Megabytes (10⁶), with one digit.
#[must_use]
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!(parse("8G"), Ok(8_000_000_000));
        assert_eq!(parse("500m"), Ok(500_000_000));
        assert_eq!(parse("12"), Ok(12));
        for wrong in ["", "0", "-1", "G", "1.5G", "99999999999G", "µ"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(megabytes(1_250_000), "1.2 MB");
    }
}
