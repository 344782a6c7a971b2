//! Numbers, times and sizes as text.

use chrono::{DateTime, SecondsFormat, Utc};

/// Returns the shortest text that reads back as `value`, bit for bit.
pub(crate) fn float(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 || (1e-5..1e16).contains(&magnitude) {
        format!("{value}")
    } else {
        format!("{value:e}")
    }
}

/// Returns `value` with at most 7 significant digits.
pub(crate) fn rounded(value: f64) -> String {
    if !value.is_finite() || value == 0.0 {
        return float(value);
    }
    let digits = 6 - value.abs().log10().floor() as i32;
    if !(-9..=12).contains(&digits) {
        return float(format!("{value:.6e}").parse().unwrap_or(value));
    }
    let decimals = usize::try_from(digits.max(0)).unwrap_or_default();
    float(format!("{value:.decimals$}").parse().unwrap_or(value))
}

/// Returns `time` as RFC 3339 in UTC with milliseconds.
pub(crate) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Returns `count` with its digits in groups of three.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Returns "1 sample", "2 samples": `count` and `noun`, in the plural where it takes one.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(number))
}

/// Returns `text` as it can be shown in a line, whoever it comes from: control characters replaced,
/// cut after `chars_max` characters.
pub(crate) fn printable(text: &str, chars_max: usize) -> String {
    let replaced = |char: char| if char.is_control() { '\u{fffd}' } else { char };
    let mut chars = text.chars().map(replaced);
    let mut shown: String = chars.by_ref().take(chars_max).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

/// Returns `bytes` in the unit that suits them.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut scaled = bytes as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if scaled < 1023.95 {
            break;
        }
        scaled /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{scaled:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_back_and_are_short() {
        for (value, expected) in [
            (0.1, "0.1"),
            (1.0, "1"),
            (-2.5e-7, "-2.5e-7"),
            (1e300, "1e300"),
            (9_007_199_254_740_993.0, "9007199254740992"),
            (0.0, "0"),
        ] {
            assert_eq!(float(value), expected);
        }
        for bits in [1, 0x3FB9_9999_9999_999A, 0x7FEF_FFFF_FFFF_FFFF, 0x4340_0000_0000_0001] {
            let value = f64::from_bits(bits);
            assert_eq!(float(value).parse::<f64>().unwrap().to_bits(), bits);
        }
    }

    #[test]
    fn computed_values_are_rounded() {
        for (value, expected) in [
            (0.126_334_821_428_571_43, "0.1263348"),
            (67_740.0, "67740"),
            (123_456_789.25, "123456789"),
            (1.0 / 3.0, "0.3333333"),
            (f64::INFINITY, "inf"),
            (1.234_567_89e-20, "1.234568e-20"),
        ] {
            assert_eq!(rounded(value), expected);
        }
    }

    #[test]
    fn what_others_wrote_is_shown_in_a_line() {
        assert_eq!(printable("a\r\nb\u{9b}é", 9), "a\u{fffd}\u{fffd}b\u{fffd}é");
        assert_eq!(printable("äöü", 3), "äöü");
        assert_eq!(printable("äöü", 2), "äö…");
    }

    #[test]
    fn counts_and_bytes() {
        assert_eq!(["0", "999", "1,000", "67,740"], [0, 999, 1000, 67_740].map(count));
        assert_eq!(counted(1, "sample"), "1 sample");
        assert_eq!(["1023 B", "1.0 KiB", "1.5 MiB"], [1023, 1024, 3 << 19].map(bytes));
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }
}
