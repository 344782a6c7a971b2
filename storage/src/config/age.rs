//! Lengths of time as people write them: "30s", "1h", "7d", "1y".

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A length of time, written as numbers with units: `30s`, `5m`, `1h`, `7d`, `4w`, `1y`, `1h 30m`.
/// A month is 30.44 days and a year 365.25.
///
/// ```
/// use storage::config::Age;
///
/// let week: Age = "7d".parse().unwrap();
/// assert_eq!((week.0.as_secs(), week.to_string()), (604_800, "7d".to_owned()));
/// assert_eq!("1y".parse::<Age>().unwrap().to_string(), "1y");
/// assert!("soon".parse::<Age>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Age(pub Duration);

impl Age {
    /// So many days.
    pub const fn days(days: u64) -> Self {
        Self(Duration::from_secs(days.saturating_mul(86_400)))
    }
}

impl FromStr for Age {
    type Err = humantime::DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text.trim()).map(Self)
    }
}

impl TryFrom<String> for Age {
    type Error = humantime::DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Age> for String {
    fn from(age: Age) -> Self {
        age.to_string()
    }
}

/// Units from the longest on, in seconds.
const UNITS: [(&str, u64); 5] =
    [("y", 31_557_600), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

impl fmt::Display for Age {
    /// Writes the longest unit that fits without a rest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let whole = self.0.subsec_nanos() == 0 && seconds > 0;
        match UNITS.iter().find(|(_, unit)| whole && seconds.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", seconds / unit),
            None => write!(f, "{}", humantime::format_duration(self.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["7d", "30d", "1y", "1h", "90s", "1500ms", "365d", "36h", "0s", "1m"] {
            let age: Age = text.parse().unwrap();
            assert_eq!(age.to_string().parse::<Age>().unwrap(), age, "{text}: {age}");
        }
        assert_eq!("36h".parse::<Age>().unwrap().to_string(), "36h");
        assert_eq!(Age::days(365).to_string(), "365d");
        assert!("".parse::<Age>().is_err() && "7".parse::<Age>().is_err());
    }
}
