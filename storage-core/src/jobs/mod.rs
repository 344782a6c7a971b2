//! Jobs, pipelines and executions, and their contract.
//!
//! Values that obey their rules, what becomes of them (claimed, ended, lost) as functions that all
//! backends share, one trait ([`JobStore`]), and comforts over it ([`JobStoreExt`]).

pub mod backend;
pub mod claim;
pub mod execution;
pub mod ext;
pub mod health;
pub mod job;
pub mod listing;
pub mod pipeline;
pub mod refusal;
pub mod schedule;
pub mod stored;

pub use backend::JobStore;
pub use claim::Claim;
pub use execution::{Ended, Execution, ExecutionPatch, ExecutionStatus, RunResult};
pub use ext::{JobStoreExt, Restored};
pub use health::{JobCounts, JobHealth};
pub use job::{Job, JobPatch, LastRun, Lease, NewJob};
pub use listing::{Cursor, ExecutionQuery, JobQuery, Listed, Page};
pub use pipeline::{NewPipeline, Pipeline, PipelinePatch};
pub use schedule::Schedule;
