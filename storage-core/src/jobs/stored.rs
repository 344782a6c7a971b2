//! What backends keep in several columns, put together again: the same words in every backend about
//! what is damaged.

use chrono::{DateTime, Utc};

use super::execution::{Ended, ExecutionStatus};
use super::job::{LastRun, Lease};
use super::schedule::Schedule;
use crate::error::{Error, ErrorKind, Result};

/// Reads the schedule of a job.
///
/// # Errors
/// `Corrupt` if it is no cron expression.
pub fn schedule(text: &str) -> Result<Schedule> {
    Schedule::parse(text)
        .map_err(|error| corrupt("a stored schedule is no cron expression").with_source(error))
}

/// Reads the last run of a job; none where a part of it is missing.
///
/// # Errors
/// `Corrupt` if the result is none.
pub fn last_run(
    started_at: Option<DateTime<Utc>>,
    result: Option<&str>,
) -> Result<Option<LastRun>> {
    let (Some(started_at), Some(result)) = (started_at, result) else { return Ok(None) };
    let result = result.parse().map_err(|_| corrupt("a stored result is none"))?;
    Ok(Some(LastRun { started_at, result }))
}

/// Reads the lease of a job; none where a part of it is missing.
pub fn lease(
    execution_id: Option<String>,
    worker: Option<String>,
    until: Option<DateTime<Utc>>,
) -> Option<Lease> {
    Some(Lease { execution_id: execution_id?, worker: worker?, until: until? })
}

/// Reads the end of an execution; none while it is under way.
///
/// # Errors
/// `Corrupt` if the status is none, or if it has ended and does not say when.
pub fn ended(
    status: &str,
    at: Option<DateTime<Utc>>,
    error: Option<String>,
) -> Result<Option<Ended>> {
    match (status.parse().map_err(|_| corrupt("a stored status is none"))?, at) {
        (ExecutionStatus::Running, _) => Ok(None),
        (ExecutionStatus::Ended(_), None) => {
            Err(corrupt("an execution has ended and does not say when"))
        }
        (ExecutionStatus::Ended(result), Some(at)) => Ok(Some(Ended { at, result, error })),
    }
}

fn corrupt(problem: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunResult;

    #[test]
    fn what_is_damaged_is_said() {
        let kind = |error: Error| error.kind();
        assert_eq!(schedule("whenever").map_err(kind).unwrap_err(), ErrorKind::Corrupt);
        let at = Some(DateTime::UNIX_EPOCH);
        assert_eq!(last_run(at, Some("odd")).map_err(kind).unwrap_err(), ErrorKind::Corrupt);
        assert_eq!(ended("odd", at, None).map_err(kind).unwrap_err(), ErrorKind::Corrupt);
        let succeeded = RunResult::Succeeded.as_str();
        assert_eq!(ended(succeeded, None, None).map_err(kind).unwrap_err(), ErrorKind::Corrupt);
    }

    #[test]
    fn what_is_not_there_whole_is_not_there() {
        let at = Some(DateTime::UNIX_EPOCH);
        assert_eq!(last_run(None, Some("odd")).unwrap(), None);
        assert_eq!(lease(Some("run".to_owned()), None, at), None);
        let running = ExecutionStatus::Running.as_str();
        assert_eq!(ended(running, at, None).unwrap(), None);
    }
}
