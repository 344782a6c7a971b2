//! Which series a question is about.

use std::fmt;

use super::record::{NAME_BYTES_MAX, SeriesKey};
use crate::error::{Error, Result};

/// Chooses series by server and by metric; both must match.
///
/// ```
/// use storage_core::SeriesFilter;
///
/// let filter = SeriesFilter::parse("web-*", "cpu")?;
/// assert!(filter.matches("web-1", "cpu"));
/// assert!(!filter.matches("db-1", "cpu"));
/// # Ok::<(), storage_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SeriesFilter {
    /// What the server must match.
    pub server_id: Matcher,
    /// What the metric must match.
    pub metric_type: Matcher,
}

impl SeriesFilter {
    /// Matches every series.
    pub fn any() -> Self {
        Self::default()
    }

    /// Matches one series by the exact text of its names.
    ///
    /// # Errors
    /// `InvalidArgument` by the rules of [`Matcher::exact`].
    pub fn exact(server_id: &str, metric_type: &str) -> Result<Self> {
        Ok(Self {
            server_id: Matcher::exact(server_id)?,
            metric_type: Matcher::exact(metric_type)?,
        })
    }

    /// Matches by exact text or, where a `*` stands, by glob.
    ///
    /// # Errors
    /// `InvalidArgument` by the rules of [`Matcher::parse`].
    pub fn parse(server_id: &str, metric_type: &str) -> Result<Self> {
        Ok(Self {
            server_id: Matcher::parse(server_id)?,
            metric_type: Matcher::parse(metric_type)?,
        })
    }

    /// Whether the series of these names is chosen.
    pub fn matches(&self, server_id: &str, metric_type: &str) -> bool {
        self.server_id.matches(server_id) && self.metric_type.matches(metric_type)
    }

    /// Whether `series` is chosen.
    pub fn matches_key(&self, series: &SeriesKey) -> bool {
        self.matches(&series.server_id, &series.metric_type)
    }

    /// Returns the one series that can match, if both names are given exactly.
    pub fn as_exact(&self) -> Option<(&str, &str)> {
        Some((self.server_id.as_exact()?, self.metric_type.as_exact()?))
    }
}

/// Matches a name: any, one of some exact texts, or a glob in which `*` stands for any run of
/// characters, none included, and every other character for itself, case included.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Matcher(Pattern);

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
enum Pattern {
    #[default]
    Any,
    /// In order, each once.
    Names(Vec<String>),
    Glob(String),
}

impl Matcher {
    /// Matches every name.
    pub fn any() -> Self {
        Self(Pattern::Any)
    }

    /// Matches `text` alone, also where it holds a `*`.
    ///
    /// # Errors
    /// `InvalidArgument` if `text` is empty, longer than 512 bytes or holds a NUL: no name does.
    pub fn exact(text: &str) -> Result<Self> {
        Self::any_of([text])
    }

    /// Matches each of `texts` alone, also where they hold a `*`. None matches nothing.
    ///
    /// ```
    /// use storage_core::Matcher;
    ///
    /// let matcher = Matcher::any_of(["cpu", "mem"])?;
    /// assert!(matcher.matches("mem") && !matcher.matches("disk"));
    /// # Ok::<(), storage_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidArgument` as for [`exact`](Self::exact), if it holds for any of them.
    pub fn any_of<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self> {
        let mut names = Vec::new();
        for text in texts {
            check(text.as_ref())?;
            names.push(text.as_ref().to_owned());
        }
        names.sort_unstable();
        names.dedup();
        Ok(Self(Pattern::Names(names)))
    }

    /// Matches by glob if `text` holds a `*`, else by exact text.
    ///
    /// # Errors
    /// `InvalidArgument` as for [`exact`](Self::exact).
    pub fn parse(text: &str) -> Result<Self> {
        check(text)?;
        Ok(Self(match text {
            "*" => Pattern::Any,
            glob if glob.contains('*') => Pattern::Glob(glob.to_owned()),
            exact => Pattern::Names(vec![exact.to_owned()]),
        }))
    }

    /// Whether `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        match &self.0 {
            Pattern::Any => true,
            Pattern::Names(names) => names.binary_search_by(|text| text.as_str().cmp(name)).is_ok(),
            Pattern::Glob(glob) => glob_matches(glob, name),
        }
    }

    /// Returns the only name that matches, if there is only one.
    pub fn as_exact(&self) -> Option<&str> {
        match self.names()? {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Returns the names that match, in order, each once, if they were given exactly.
    pub fn names(&self) -> Option<&[String]> {
        match &self.0 {
            Pattern::Names(names) => Some(names),
            Pattern::Any | Pattern::Glob(_) => None,
        }
    }

    /// Returns what every matching name starts with; empty if nothing is known.
    pub fn literal_prefix(&self) -> &str {
        match &self.0 {
            Pattern::Any => "",
            Pattern::Names(_) => self.as_exact().unwrap_or_default(),
            Pattern::Glob(glob) => glob.split('*').next().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Pattern::Any => f.write_str("*"),
            Pattern::Names(names) => f.write_str(&names.join(" or ")),
            Pattern::Glob(text) => f.write_str(text),
        }
    }
}

fn check(text: &str) -> Result<()> {
    let problem = if text.is_empty() {
        "an empty pattern matches no name; use * for all"
    } else if text.len() > NAME_BYTES_MAX {
        "the pattern is longer than 512 bytes"
    } else if text.contains('\0') {
        "the pattern holds a NUL character"
    } else {
        return Ok(());
    };
    Err(Error::invalid(problem).with_context("field", "filter"))
}

/// Matches the pieces between the stars in turn, each at its first place: enough, because a
/// later place never helps what follows.
fn glob_matches(glob: &str, name: &str) -> bool {
    let mut pieces = glob.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = pieces.next_back() else {
        return rest.is_empty();
    };
    for piece in pieces {
        let Some(at) = rest.find(piece) else {
            return false;
        };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let table = [
            ("*", "anything", true),
            ("web-*", "web-", true),
            ("web-*", "web", false),
            ("*-1", "web-1", true),
            ("w*b*1", "web-1", true),
            ("w*b*1", "wb", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a*ab", "aab", true),
            ("**", "x", true),
            ("*é*", "caffé!", true),
            ("[a]?%_*", "[a]?%_x", true),
            ("[a]*", "a", false),
            ("Web*", "web-1", false),
        ];
        for (glob, name, expected) in table {
            assert_eq!(Matcher::parse(glob).unwrap().matches(name), expected, "{glob} {name}");
        }
    }

    #[test]
    fn exact_takes_a_star_literally() {
        let star = Matcher::exact("a*").unwrap();
        assert!(star.matches("a*") && !star.matches("ab"));
    }

    #[test]
    fn any_of_takes_each_name_once() {
        let matcher = Matcher::any_of(["b", "a*", "b"]).unwrap();
        assert_eq!(matcher.names().unwrap(), ["a*", "b"]);
        assert_eq!((matcher.as_exact(), matcher.literal_prefix()), (None, ""));
        assert!(matcher.matches("a*") && matcher.matches("b") && !matcher.matches("ab"));
        assert_eq!(matcher.to_string(), "a* or b");
        assert!(!Matcher::any_of::<&str>([]).unwrap().matches("a"));
        assert!(Matcher::any_of(["a", ""]).is_err());
    }

    #[test]
    fn prefixes_narrow() {
        assert_eq!(Matcher::parse("web-*-x").unwrap().literal_prefix(), "web-");
        assert_eq!(Matcher::any().literal_prefix(), "");
    }

    #[test]
    fn patterns_that_no_name_matches_are_refused() {
        for text in ["", "a\0", &"x".repeat(513)] {
            assert!(Matcher::parse(text).is_err());
        }
    }
}
