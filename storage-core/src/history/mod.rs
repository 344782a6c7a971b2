//! Record history: JSON values by record name and time, and their contract.
//!
//! Values that cannot be invalid, one trait ([`RecordHistory`]), comforts over it
//! ([`RecordHistoryExt`]), and two tasks: [`Persist`] stores what a channel or stream gives,
//! [`Retention`] removes what is old.

pub mod backend;
pub mod ext;
pub mod persist;
pub mod query;
pub mod retention;
pub mod source;
pub mod value;

pub use backend::RecordHistory;
pub use ext::{ParsedRow, ParsedRows, RecordHistoryExt, UnparsedRow};
pub use persist::{Persist, PersistCounts, PersistExt, PersistStreamExt, PersistTask};
pub use query::HistoryQuery;
pub use retention::{Retention, RetentionCounts, RetentionTask};
pub use source::{Next, Source};
pub use value::{RecordInfo, StoredValue};
