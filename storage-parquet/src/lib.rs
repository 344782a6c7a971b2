//! Parquet backend: an open archive in a directory or an object store.
//!
//! # When to choose it
//! For data that is kept long and read by others: DuckDB, pandas, Spark and everything else that
//! knows Parquet open the files as they are. Half a byte to seven bytes per sample; a question about
//! one hour of one series out of years reads one file. For the fastest single writes, and questions
//! in microseconds, choose SQLite.
//!
//! # Durability
//! An acknowledged batch survives a power cut: it is a file of its own, synced before it gets its
//! name. Any number of processes may write to one location; the number in the name decides.
//!
//! # How it works
//! `write` makes a batch a file of the `log`, whose number is its place in the order of all changes.
//! `manifest` is the state that the log leads to; rows that are not merged yet are held in memory.
//! `rewrite` merges them in the background into files by day and hour, sorted by series, then time;
//! `maintenance` says when. `read` looks into the files that the manifest names, at the places that
//! the index in each footer names; `plan` cuts large questions into pieces. `schema` is what others see.
//!
//! # Limits
//! Names, metadata and times as the contract has them. Without the feature `cloud` a location is a
//! local directory, on a file system with hard links.

mod backend;
mod check;
mod config;
mod convert;
mod encode;
mod error;
mod exchange;
mod file;
mod files;
mod index;
mod log;
mod maintenance;
mod manifest;
mod plan;
mod read;
mod rewrite;
mod rows;
mod schema;
mod store;
mod write;

pub use backend::{ParquetBackend, ReadCounts};
pub use config::ParquetOptions;
pub use exchange::{ParquetFileWriter, read_parquet_file};
