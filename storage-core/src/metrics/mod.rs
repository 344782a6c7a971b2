//! The metrics model and its contract.
//!
//! Values that cannot be invalid, one trait ([`StorageBackend`]), and comforts over it
//! ([`StorageBackendExt`]).

pub mod aggregation;
pub mod backend;
pub mod ext;
pub mod filter;
pub mod range;
pub mod record;
pub mod stats;
pub mod time;

pub use aggregation::{Accumulator, MetricAggregation, SeriesWindows, Window, WindowBuilder};
pub use backend::{ScanStream, StorageBackend};
pub use ext::StorageBackendExt;
pub use filter::{Matcher, SeriesFilter};
pub use range::TimeRange;
pub use record::{MetricRecord, Sample, SeriesKey, SeriesSamples};
pub use stats::{CheckReport, Health, HealthStatus, SeriesInfo, StorageStats};
