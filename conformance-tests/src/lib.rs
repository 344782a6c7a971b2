//! The storage contract as named test cases that any backend can be run against.
//!
//! The contracts are the documentation of [`storage_core::StorageBackend`],
//! [`storage_core::RecordHistory`], [`storage_core::EventStore`] and [`storage_core::JobStore`]; here
//! is a case for every sentence of them. A backend supplies a [`Fixture`] (how to open a named
//! location, and how to destroy it), never a list of cases, and calls [`main`] from a test target with
//! `harness = false`:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use async_trait::async_trait;
//! use conformance_tests::Fixture;
//! use storage_core::{InMemory, Result, StorageBackend};
//!
//! struct Memory;
//!
//! #[async_trait]
//! impl Fixture for Memory {
//!     fn name(&self) -> &str {
//!         "memory"
//!     }
//!     async fn open(&self, location: &str) -> Result<Arc<dyn StorageBackend>> {
//!         Ok(Arc::new(InMemory::open(location)))
//!     }
//!     async fn destroy(&self, location: &str) -> Result<()> {
//!         InMemory::forget(location);
//!         Ok(())
//!     }
//! }
//!
//! fn main() {
//!     conformance_tests::main(Memory)
//! }
//! ```
//!
//! | module | what lives there |
//! |---|---|
//! | [`harness`] | [`Fixture`], the runner, what is skipped and what is required |
//! | [`cases`] | the table of cases, and the cases by theme |
//! | [`model_check`] | random operations, compared with the in-memory backend |
//! | [`composed`] | fixtures made of fixtures: tiers, rollups, mirrors, spools |
//! | [`crash`] | kill -9 tests, for backends that keep data on disk |
//! | [`power_cut`] | power-cut tests on a loop device, for the same |
//! | [`report`] | what passed where, as a Markdown table |
//!
//! Environment: `CONFORMANCE_REQUIRE` (fixtures that must be there: names, or `all`),
//! `CONFORMANCE_SEED` (replays one model check), `CONFORMANCE_REPORT` (a file for the report).

#[macro_use]
mod failure;

pub mod cases;
pub mod composed;
pub mod crash;
mod data;
pub mod harness;
pub mod model_check;
pub mod power_cut;
pub mod report;

pub use cases::{Case, table};
pub use failure::{CaseResult, Failure};
pub use harness::{Ctx, Fixture, Store, main, main_all};
