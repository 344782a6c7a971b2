//! One storage contract for metrics, record history, events and jobs, and what works over any
//! backend.
//!
//! | module | what lives there |
//! |---|---|
//! | [`metrics`] | the model ([`MetricRecord`], [`TimeRange`], [`MetricAggregation`] ...) and the contract, [`StorageBackend`] |
//! | [`history`] | JSON values by record name and time, and their contract, [`RecordHistory`] |
//! | [`events`] | the log of what happened and projections of it, and their contract, [`EventStore`] |
//! | [`jobs`] | jobs, pipelines and executions, and their contract, [`JobStore`] |
//! | [`store`] | [`Store`]: one location with all that it holds |
//! | [`limits`] | limits of names and JSON |
//! | [`error`] | [`Error`] with kind, outcome and retry advice |
//! | [`capabilities`] | what may differ between backends, as data |
//! | [`memory`] | [`InMemory`], the reference backend |
//! | [`layers`] | wrappers that are backends themselves: retry, timeout, observe, faulty |
//! | [`compose`] | backends made of several: tiered |
//! | [`pipeline`] | what moves records: the actor that ingests, the spool; copy, compare, archive |
//!
//! Each contract is stated in one place, the documentation of its trait; the crate
//! `conformance-tests` holds a case for every sentence of it. This crate knows no driver, no SQL
//! and no file format.
//!
//! ```
//! use chrono::{TimeZone, Utc};
//! use storage_core::{InMemory, MetricRecord, StorageBackend, TimeRange};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> storage_core::Result<()> {
//! let store = InMemory::new();
//! let noon = Utc.with_ymd_and_hms(2026, 1, 1, 12, 0, 0).unwrap();
//! store.write_batch(&[MetricRecord::new("web-1", noon, "cpu_usage", 42.5)]).await?;
//!
//! let day = TimeRange::new(noon, noon + chrono::Duration::days(1))?;
//! let cpu = store.aggregate("web-1", "cpu_usage", day).await?;
//! assert_eq!((cpu.count, cpu.max), (1, Some(42.5)));
//! # Ok(()) }
//! ```

pub mod capabilities;
pub mod compose;
mod control;
mod deadline;
pub mod error;
pub mod events;
pub mod history;
pub mod jobs;
pub mod layers;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod pipeline;
mod repeated;
pub mod store;

pub use capabilities::Capabilities;
pub use error::{Error, ErrorKind, Outcome, Result};
pub use events::{
    EventQuery, EventStore, EventStoreExt, Expectation, ExpectedVersion, LogExtent, NewEvent,
    Projection, ProjectionInfo, ProjectionStep, StoredEvent, StreamInfo,
};
pub use history::{
    HistoryQuery, PersistExt, PersistStreamExt, RecordHistory, RecordHistoryExt, RecordInfo,
    StoredValue,
};
pub use jobs::{
    Claim, Cursor, Ended, Execution, ExecutionPatch, ExecutionQuery, ExecutionStatus, Job,
    JobCounts, JobHealth, JobPatch, JobQuery, JobStore, JobStoreExt, LastRun, Lease, Listed,
    NewJob, NewPipeline, Page, Pipeline, PipelinePatch, Restored, RunResult, Schedule,
};
pub use memory::{InMemory, InMemoryEvents, InMemoryHistory, InMemoryJobs};
pub use metrics::{
    CheckReport, Health, HealthStatus, Matcher, MetricAggregation, MetricRecord, Sample,
    ScanStream, SeriesFilter, SeriesInfo, SeriesKey, SeriesSamples, SeriesWindows, StorageBackend,
    StorageBackendExt, StorageStats, TimeRange, Window,
};
pub use store::Store;
