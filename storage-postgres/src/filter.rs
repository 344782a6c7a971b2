//! A filter of series, or a matcher of names, as a condition of SQL.

use storage_core::SeriesFilter;
use storage_core::metrics::Matcher;

use crate::store::Parameter;

/// A condition, and the values of its parameters.
#[derive(Debug, PartialEq)]
pub(crate) struct Condition {
    pub(crate) sql: String,
    values: Vec<Value>,
    narrow: bool,
}

#[derive(Debug, PartialEq)]
enum Value {
    Text(String),
    Texts(Vec<String>),
}

impl Value {
    fn parameter(&self) -> Parameter<'_> {
        match self {
            Self::Text(text) => text,
            Self::Texts(texts) => texts,
        }
    }
}

/// Up to so many servers count as few.
const FEW_SERVERS_MAX: usize = 16;

impl Condition {
    /// Turns a filter into a condition on `series s` whose parameters are numbered from `first`.
    pub(crate) fn of(filter: &SeriesFilter, first: usize) -> Self {
        let mut condition = Self { sql: String::from("true"), values: Vec::new(), narrow: false };
        condition.and("s.server_id", &filter.server_id, first);
        condition.and("s.metric_type", &filter.metric_type, first);
        condition.narrow = names_of(&filter.server_id).is_some_and(|n| n <= FEW_SERVERS_MAX);
        condition
    }

    /// Turns a matcher of names into a condition on `column`.
    pub(crate) fn on(column: &str, matcher: &Matcher, first: usize) -> Self {
        let mut condition = Self { sql: String::from("true"), values: Vec::new(), narrow: false };
        condition.and(column, matcher, first);
        condition
    }

    fn and(&mut self, column: &str, matcher: &Matcher, first: usize) {
        let number = first + self.values.len();
        let (sql, value) = if let Some(exact) = matcher.as_exact() {
            (format!("= ${number}"), Value::Text(exact.to_owned()))
        } else if let Some(names) = matcher.names() {
            (format!("= ANY(${number})"), Value::Texts(names.to_vec()))
        } else {
            match &*matcher.to_string() {
                "*" => return,
                glob => (format!("LIKE ${number}"), Value::Text(like(glob))),
            }
        };
        self.sql += &format!(" AND {column} {sql}");
        self.values.push(value);
    }

    /// Whether few series can match: those of a few servers.
    pub(crate) fn is_narrow(&self) -> bool {
        self.narrow
    }

    pub(crate) fn parameters(&self) -> Vec<Parameter<'_>> {
        self.values.iter().map(Value::parameter).collect()
    }
}

/// How many names can match, if they are listed.
fn names_of(matcher: &Matcher) -> Option<usize> {
    matcher.as_exact().map(|_| 1).or_else(|| matcher.names().map(<[String]>::len))
}

/// What a filter looks like, whatever its names: filters of one shape choose about as many series.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Shape([Result<usize, String>; 2]);

impl Shape {
    pub(crate) fn of(filter: &SeriesFilter) -> Self {
        let of = |matcher: &Matcher| names_of(matcher).ok_or_else(|| matcher.to_string());
        Self([of(&filter.server_id), of(&filter.metric_type)])
    }
}

/// A glob as a pattern of LIKE, in which `%`, `_` and `\` are special.
fn like(glob: &str) -> String {
    let mut pattern = String::with_capacity(glob.len() + 8);
    for character in glob.chars() {
        match character {
            '*' => pattern.push('%'),
            '%' | '_' | '\\' => pattern.extend(['\\', character]),
            other => pattern.push(other),
        }
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_become_conditions() {
        let of = |server, metric, first| {
            let condition = Condition::of(&SeriesFilter::parse(server, metric).unwrap(), first);
            (condition.sql, condition.values, condition.narrow)
        };
        assert_eq!(of("*", "*", 1), ("true".to_owned(), vec![], false));
        assert_eq!(
            of("a", "b*", 2),
            (
                "true AND s.server_id = $2 AND s.metric_type LIKE $3".to_owned(),
                vec![Value::Text("a".to_owned()), Value::Text("b%".to_owned())],
                true
            )
        );
        assert_eq!(of("*", "c", 1).1, [Value::Text("c".to_owned())]);
    }

    #[test]
    fn several_names_are_one_parameter() {
        let servers = Matcher::any_of(["a", "b"]).unwrap();
        let filter = SeriesFilter { server_id: servers, metric_type: Matcher::any() };
        let condition = Condition::of(&filter, 3);
        assert_eq!(condition.sql, "true AND s.server_id = ANY($3)");
        assert_eq!((condition.parameters().len(), condition.is_narrow()), (1, true));
        assert_eq!(Shape::of(&filter), Shape([Ok(2), Err("*".to_owned())]));
    }

    #[test]
    fn what_is_special_to_like_is_escaped() {
        assert_eq!(like(r"a_*%\é"), r"a\_%\%\\é");
    }

    #[test]
    fn a_star_of_an_exact_name_stands_for_itself() {
        let filter = SeriesFilter::exact("*", "a*").unwrap();
        let condition = Condition::of(&filter, 1);
        let texts = ["*", "a*"].map(|text| Value::Text(text.to_owned()));
        assert_eq!(condition.values, texts);
        assert_eq!(condition.sql, "true AND s.server_id = $1 AND s.metric_type = $2");
    }
}
