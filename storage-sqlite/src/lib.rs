//! SQLite backend: columnar blocks in one ordinary database file, nothing to install.
//!
//! # When to choose it
//! The data of one machine: up to millions of samples a second into a file, questions answered in
//! well under a millisecond, a byte or less on disk for most samples. Several processes on that
//! machine may share the file. For data of many machines, or on a network file system, choose
//! PostgreSQL.
//!
//! # Durability
//! With `synchronous=full`, the default, an acknowledged batch survives a power cut; the table
//! of [`Synchronous`] has the alternative.
//!
//! # How it works
//! `commit` gathers what concurrent callers want stored. `write` puts their samples into the journal
//! as one row; by way of the `backlog` they are kept decoded in the `head`. `seal` turns the journal
//! into compressed blocks per series in the background, `maintenance` stores them. `read` answers
//! from blocks, their summaries and the head. The tables are in `src/sql/schema.sql`, the bytes
//! inside them in `codec`. `history` keeps record history, `events` the event store, as chunks of
//! JSON, and `jobs` the jobs beside all that, as plain rows.
//!
//! # Limits
//! Names, metadata and times as the contract has them. The decoded unsealed samples take about 24
//! bytes each, at most `seal_samples` of them in the usual course.

mod backend;
mod backlog;
mod check;
mod codec;
mod commit;
mod config;
mod convert;
mod dictionary;
mod error;
mod events;
mod gathered;
mod head;
mod history;
mod insert;
mod jobs;
mod list;
mod maintenance;
mod read;
mod schema;
mod seal;
mod slice;
mod store;
mod tails;
mod write;
mod writer;

pub use backend::SqliteBackend;
pub use config::{SqliteOptions, Synchronous};
pub use events::SqliteEvents;
pub use history::SqliteHistory;
pub use jobs::SqliteJobs;
