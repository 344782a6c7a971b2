//! One storage contract for metrics, record history, events and jobs, many backends behind it.
//!
//! [`connect`] turns a URL into a [`StorageBackend`], [`open`] into a [`Store`] with everything that the
//! location holds; a Cargo feature decides which backends are
//! built in. Everything of the contract is re-exported from [`storage_core`].

mod beside;
#[cfg(feature = "config")]
pub mod config;
mod mirrors;
mod registry;
mod rollups;
mod tiers;

pub use mirrors::MirrorUrls;
pub use registry::{Scheme, connect, connect_existing, open, open_existing, schemes};
pub use rollups::RollupUrls;
pub use storage_core::*;
#[cfg(feature = "parquet")]
pub use storage_parquet as parquet;
#[cfg(feature = "postgres")]
pub use storage_postgres as postgres;
#[cfg(feature = "sqlite")]
pub use storage_sqlite as sqlite;
pub use tiers::TierUrls;
