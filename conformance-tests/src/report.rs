//! What passed where, as a Markdown table.
//!
//! The report runs the cases itself instead of reading what a test run printed, so that it can
//! set several backends side by side and cannot be out of date.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use storage_core::Capabilities;

use crate::cases::{Capability, Case};
use crate::harness::{Fixture, Plan, Verdict, run_case};

/// Runs every case over each fixture, and returns what passed where as Markdown.
pub fn report(fixtures: &[Arc<dyn Fixture>]) -> String {
    render(&fixtures.iter().map(Column::of).collect::<Vec<_>>())
}

/// Takes the file for the report out of the arguments: `--report FILE` or `--report=FILE`, else
/// what `CONFORMANCE_REPORT` says.
pub(crate) fn take_file(arguments: &mut Vec<String>) -> Option<String> {
    let from_environment = std::env::var("CONFORMANCE_REPORT").ok();
    take_argument(arguments).or(from_environment).filter(|file| !file.is_empty())
}

fn take_argument(arguments: &mut Vec<String>) -> Option<String> {
    let at =
        arguments.iter().position(|word| word == "--report" || word.starts_with("--report="))?;
    let word = arguments.remove(at);
    match word.split_once('=') {
        Some((_, file)) => Some(file.to_owned()),
        None => (at < arguments.len()).then(|| arguments.remove(at)),
    }
}

/// Writes the report to `file`, and ends the process: well if no case failed.
pub(crate) fn write_and_exit(file: &str, fixtures: &[Arc<dyn Fixture>]) -> ! {
    let columns: Vec<_> = fixtures.iter().map(Column::of).collect();
    let mut ok = columns.iter().all(|column| column.count(Outcome::is_failed) == 0);
    let told = match std::fs::write(file, render(&columns)) {
        Ok(()) => columns.iter().map(|column| format!("{}\n", column.summary())).collect(),
        Err(error) => {
            ok = false;
            format!("{file}: {error}\n")
        }
    };
    // With nobody to tell there is still the exit code.
    let _ = std::io::stderr().write_all(told.as_bytes());
    std::process::exit(i32::from(!ok))
}

/// How a case came out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passed,
    Ignored(String),
    Failed(String),
}

impl Outcome {
    fn is_passed(&self) -> bool {
        matches!(self, Self::Passed)
    }

    fn is_ignored(&self) -> bool {
        matches!(self, Self::Ignored(_))
    }

    fn is_failed(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

/// How the cases came out over one fixture.
struct Column {
    name: String,
    capabilities: Option<Capabilities>,
    /// By the full name of the case, in the order of the contract.
    outcomes: Vec<(&'static str, Outcome)>,
}

impl Column {
    /// Runs the cases, as many at a time as there are processors.
    fn of(fixture: &Arc<dyn Fixture>) -> Self {
        let plan = Plan::of(fixture);
        let next = AtomicUsize::new(0);
        let outcomes = Mutex::new(BTreeMap::new());
        let run = || {
            loop {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                let Some((case, verdict)) = plan.verdicts.get(nth) else {
                    break;
                };
                let outcome = (case.name, outcome_of(fixture, case, verdict));
                outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(nth, outcome);
            }
        };
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(run);
            }
        });
        let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        Self {
            name: fixture.name().to_owned(),
            capabilities: plan.capabilities,
            outcomes: outcomes.into_values().collect(),
        }
    }

    fn count(&self, is: fn(&Outcome) -> bool) -> usize {
        self.outcomes.iter().filter(|(_, outcome)| is(outcome)).count()
    }

    fn summary(&self) -> String {
        let [passed, failed, ignored] =
            [Outcome::is_passed, Outcome::is_failed, Outcome::is_ignored].map(|is| self.count(is));
        format!("{}: {passed} passed, {failed} failed, {ignored} ignored", self.name)
    }

    /// The outcomes of one row, whatever the layout, in one cell.
    fn cell(&self, row: &str) -> String {
        let of_row: Vec<_> =
            self.outcomes.iter().filter(|(name, _)| split(name).row() == row).collect();
        let failed: Vec<_> = of_row
            .iter()
            .filter(|(_, outcome)| outcome.is_failed())
            .map(|(name, _)| split(name).layout)
            .collect();
        let ignored = of_row.iter().find_map(|(_, outcome)| match outcome {
            Outcome::Ignored(reason) => Some(reason),
            Outcome::Passed | Outcome::Failed(_) => None,
        });
        match (of_row.len(), failed.len(), ignored) {
            (0, _, _) => "not applicable".to_owned(),
            (all, failed, _) if all == failed => "FAILED".to_owned(),
            (_, 1.., _) => format!("FAILED ({})", failed.join(", ")),
            (_, _, Some(reason)) => format!("ignored ({})", escaped(reason)),
            (_, _, None) => "pass".to_owned(),
        }
    }
}

fn outcome_of(fixture: &Arc<dyn Fixture>, case: &Case, verdict: &Verdict) -> Outcome {
    match verdict {
        Verdict::Skip(reason) => Outcome::Ignored(reason.clone()),
        Verdict::Fail(reason) => Outcome::Failed(reason.clone()),
        Verdict::Run => match run_case(fixture, case, fixture.case_time_max()) {
            Ok(()) => Outcome::Passed,
            Err(failure) => Outcome::Failed(failure.to_string()),
        },
    }
}

/// The parts of the name of a case.
struct Name<'a> {
    theme: &'a str,
    clause: &'a str,
    layout: &'a str,
}

impl Name<'_> {
    /// The name of the case without its layout.
    fn row(&self) -> String {
        format!("{}::{}", self.theme, self.clause)
    }
}

fn split(name: &str) -> Name<'_> {
    let mut parts = name.split("::");
    let mut part = || parts.next();
    Name {
        theme: part().unwrap_or_default(),
        clause: part().unwrap_or_default(),
        layout: part().unwrap_or("as written"),
    }
}

fn render(columns: &[Column]) -> String {
    let mut text = String::from("# Conformance\n\n");
    for column in columns {
        let _ = writeln!(text, "- {}", column.summary());
    }
    text.push_str("\n## capabilities\n\n");
    push_row(&mut text, "capability", columns, |column| column.name.clone());
    push_row(&mut text, "---", columns, |_| "---".to_owned());
    for capability in Capability::ALL {
        push_row(&mut text, capability.as_str(), columns, |column| {
            let known = column.capabilities.map(|capabilities| capability.of(capabilities));
            known.map_or("unknown", |has| if has { "yes" } else { "no" }).to_owned()
        });
    }
    for (theme, clauses) in rows(columns) {
        let _ = writeln!(text, "\n## {theme}\n");
        push_row(&mut text, "case", columns, |column| column.name.clone());
        push_row(&mut text, "---", columns, |_| "---".to_owned());
        for clause in clauses {
            let row = format!("{theme}::{clause}");
            push_row(&mut text, clause, columns, |column| column.cell(&row));
        }
    }
    push_failures(&mut text, columns);
    text
}

/// The themes and the clauses of each, in the order of the contract, each once.
fn rows(columns: &[Column]) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut rows: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, _) in columns.iter().flat_map(|column| &column.outcomes) {
        let Name { theme, clause, .. } = split(name);
        match rows.iter_mut().find(|(known, _)| *known == theme) {
            Some((_, clauses)) if clauses.contains(&clause) => {}
            Some((_, clauses)) => clauses.push(clause),
            None => rows.push((theme, vec![clause])),
        }
    }
    rows
}

fn push_row(text: &mut String, first: &str, columns: &[Column], cell: impl Fn(&Column) -> String) {
    let cells: Vec<_> = columns.iter().map(cell).collect();
    let _ = writeln!(text, "| {first} | {} |", cells.join(" | "));
}

fn push_failures(text: &mut String, columns: &[Column]) {
    let mut headed = false;
    for column in columns {
        for (name, outcome) in &column.outcomes {
            let Outcome::Failed(reason) = outcome else {
                continue;
            };
            if !std::mem::replace(&mut headed, true) {
                text.push_str("\n## failures\n");
            }
            let _ = writeln!(text, "\n{}: {name}\n", column.name);
            reason.lines().for_each(|line| {
                let _ = writeln!(text, "    {line}");
            });
        }
    }
}

/// Returns `text` fit for a cell.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_file_is_taken_out_of_the_arguments() {
        let table = [
            ("exe --report out.md write", Some("out.md"), "exe write"),
            ("exe write --report=out.md", Some("out.md"), "exe write"),
            ("exe --report", None, "exe"),
            ("exe --report=", Some(""), "exe"),
            ("exe write --list", None, "exe write --list"),
        ];
        for (given, file, left) in table {
            let mut arguments = words(given);
            assert_eq!(take_argument(&mut arguments).as_deref(), file, "{given}");
            assert_eq!(arguments, words(left), "{given}");
        }
    }

    #[test]
    fn layouts_fold_into_one_row() {
        let failed = || Outcome::Failed("left: 1\nright: 2".to_owned());
        let memory = Column {
            name: "memory".to_owned(),
            capabilities: Some(Capabilities { series: true, check: false, close: true }),
            outcomes: vec![
                ("write::a", Outcome::Passed),
                ("write::a::compacted", Outcome::Passed),
                ("query::b", Outcome::Ignored("x|y".to_owned())),
            ],
        };
        let other = Column {
            name: "other".to_owned(),
            capabilities: None,
            outcomes: vec![
                ("write::a", Outcome::Passed),
                ("write::a::compacted", failed()),
                ("query::c", failed()),
            ],
        };
        let expected = "\
# Conformance

- memory: 2 passed, 0 failed, 1 ignored
- other: 1 passed, 2 failed, 0 ignored

## capabilities

| capability | memory | other |
| --- | --- | --- |
| series | yes | unknown |
| check | no | unknown |
| close | yes | unknown |

## write

| case | memory | other |
| --- | --- | --- |
| a | pass | FAILED (compacted) |

## query

| case | memory | other |
| --- | --- | --- |
| b | ignored (x\\|y) | not applicable |
| c | not applicable | FAILED |

## failures

other: write::a::compacted

    left: 1
    right: 2

other: query::c

    left: 1
    right: 2
";
        assert_eq!(render(&[memory, other]), expected);
    }
}
