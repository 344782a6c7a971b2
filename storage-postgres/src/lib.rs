//! PostgreSQL backend: rows that SQL can see, for the data of many machines.
//!
//! # When to choose it
//! Many machines write, people look at the samples with SQL or Grafana, and a server is there
//! anyway. No extension is needed; with TimescaleDB its hypertables keep the samples.
//!
//! # Durability
//! With `synchronous_commit=on`, the default, an acknowledged batch survives a power cut of the
//! server; the table of [`SynchronousCommit`] has the alternatives.
//!
//! # How it works
//! A schema holds a dictionary `series`, the table `samples`, partitioned by time, and the views
//! `metrics` and `servers` for people. `write` gathers the batches of concurrent callers, `commit`
//! stores them by one binary COPY (`copy` encodes it) in one transaction; where samples are
//! replaced it goes by way of a temporary table. `partitions` makes partitions ahead and on demand.
//! `read` and `windows` answer each question with one statement; where that turns out to be the
//! wrong one for so much, another one is asked the whole question. `maintenance` drops partitions
//! and keeps the counts exact. `history` keeps record history beside all that. The tables are in
//! `src/sql`.
//!
//! # Limits
//! Names, metadata and times as the contract has them. A sample takes about 95 bytes, index
//! included.

mod backend;
mod check;
mod commit;
mod config;
mod connect;
mod convert;
mod copy;
mod dictionary;
mod error;
mod events;
mod filter;
mod history;
mod hosts;
mod jobs;
mod maintenance;
mod partitions;
mod read;
mod rewrite;
mod schema;
mod store;
mod timescale;
mod tls;
mod windows;
mod write;

pub use backend::PostgresBackend;
pub use config::{PostgresOptions, SslMode, SynchronousCommit, UseTimescale};
pub use events::PostgresEvents;
pub use history::PostgresHistory;
pub use jobs::PostgresJobs;
pub use timescale::Tier;
