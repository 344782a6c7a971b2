//! Answers of many items, page by page.

use std::fmt;

use chrono::{DateTime, Utc};

use super::execution::{Execution, ExecutionStatus};
use super::refusal::check_time;
use crate::error::{Error, Result};
use crate::limits::check_name;
use crate::metrics::time::{floor_ms, from_ms, is_sample_ms};

/// The most items of one page.
pub const PAGE_ITEMS_MAX: usize = 1000;

/// Where a page ends: what the next one begins after. A text without spaces of its own that can be
/// handed on; what it says is the store's business.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cursor(String);

impl Cursor {
    /// A cursor that was handed on as text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The cursor after an execution.
    pub fn after_execution(execution: &Execution) -> Self {
        Self(format!("{}:{}", floor_ms(execution.started_at), execution.id))
    }

    fn bad() -> Error {
        Error::invalid("the cursor is none of this listing").with_context("field", "after")
    }

    /// The start and the id of the execution that the page begins after.
    fn execution(&self) -> Result<(DateTime<Utc>, &str)> {
        let (ms, id) = self.0.split_once(':').ok_or_else(Self::bad)?;
        let ms = ms.parse().ok().filter(|ms| is_sample_ms(*ms)).ok_or_else(Self::bad)?;
        check_name("after", id).map_err(|_| Self::bad())?;
        Ok((from_ms(ms), id))
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A part of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The most items: 1 to 1000. Default: 100.
    pub limit: usize,
    /// Begin after this; at the beginning if there is none.
    pub after: Option<Cursor>,
}

impl Default for Page {
    fn default() -> Self {
        Self { limit: 100, after: None }
    }
}

impl Page {
    /// The first page.
    pub fn first(limit: usize) -> Self {
        Self { limit, after: None }
    }

    /// Checks the page against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`.
    pub fn validate(&self) -> Result<()> {
        if !(1..=PAGE_ITEMS_MAX).contains(&self.limit) {
            return Err(Error::invalid("a page holds 1 to 1000 items")
                .with_context("field", "limit")
                .with_context("limit", self.limit));
        }
        Ok(())
    }

    /// The id or name that a page of jobs or pipelines begins after.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`.
    pub fn after_name(&self) -> Result<Option<&str>> {
        let name = self.after.as_ref().map(Cursor::as_str);
        name.map_or(Ok(()), |name| check_name("after", name).map_err(|_| Cursor::bad()))?;
        Ok(name)
    }

    /// The start and the id of the execution that a page begins after.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`.
    pub fn after_execution(&self) -> Result<Option<(DateTime<Utc>, &str)>> {
        self.after.as_ref().map(Cursor::execution).transpose()
    }

    /// Makes an answer of the items from the beginning of this page on: of one more than its limit
    /// the last is cut off and says that another page follows.
    pub fn answer<T>(&self, mut items: Vec<T>, cursor: impl Fn(&T) -> Cursor) -> Listed<T> {
        let more = items.len() > self.limit;
        items.truncate(self.limit);
        let next = items.last().filter(|_| more).map(cursor);
        Listed { items, next }
    }
}

/// A page of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Listed<T> {
    /// The items, in the order of the listing.
    pub items: Vec<T>,
    /// Where the next page begins; none if there were no more.
    pub next: Option<Cursor>,
}

/// Chooses jobs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobQuery {
    /// Only jobs that run this pipeline.
    pub pipeline: Option<String>,
    /// Only jobs that are, or are not, enabled.
    pub enabled: Option<bool>,
    /// Only jobs that could be claimed at this time.
    pub due_at: Option<DateTime<Utc>>,
    /// Which part of the answer.
    pub page: Page,
}

impl JobQuery {
    /// The jobs that could be claimed at `at`.
    pub fn due(at: DateTime<Utc>) -> Self {
        Self { due_at: Some(at), ..Self::default() }
    }

    /// Asks for another part of the answer.
    #[must_use]
    pub fn page(mut self, page: Page) -> Self {
        self.page = page;
        self
    }

    /// Checks the query against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`.
    pub fn validate(&self) -> Result<()> {
        self.page.validate()?;
        self.page.after_name()?;
        self.pipeline.as_ref().map_or(Ok(()), |name| check_name("pipeline", name))?;
        self.due_at.map_or(Ok(()), |time| check_time("due_at", time))
    }
}

/// Chooses executions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecutionQuery {
    /// Only executions of this job.
    pub job_id: Option<String>,
    /// Only executions in this state.
    pub status: Option<ExecutionStatus>,
    /// Which part of the answer.
    pub page: Page,
}

impl ExecutionQuery {
    /// The executions of one job.
    pub fn of_job(job_id: impl Into<String>) -> Self {
        Self { job_id: Some(job_id.into()), ..Self::default() }
    }

    /// Asks for executions in one state alone.
    #[must_use]
    pub fn status(mut self, status: ExecutionStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// Asks for another part of the answer.
    #[must_use]
    pub fn page(mut self, page: Page) -> Self {
        self.page = page;
        self
    }

    /// Checks the query against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`.
    pub fn validate(&self) -> Result<()> {
        self.page.validate()?;
        self.page.after_execution()?;
        self.job_id.as_ref().map_or(Ok(()), |name| check_name("job_id", name))
    }
}
