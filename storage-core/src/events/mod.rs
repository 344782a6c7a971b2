//! The event store: what happened, in one order that never changes, and what is derived from it.
//!
//! Values that cannot be invalid, one trait ([`EventStore`]), comforts over it
//! ([`EventStoreExt`]): typed events, replay and subscription as streams; and [`Projection`]s,
//! which keep rows in step with the log.

pub mod backend;
pub mod ext;
pub mod group;
pub mod projection;
pub mod rows;
pub mod type_name;
pub mod value;

pub use backend::EventStore;
pub use ext::{EventStoreExt, EventStream, ParsedEvent};
pub use projection::{CaughtUp, Projection};
pub use rows::{ProjectionInfo, ProjectionStep, Row, RowChange, Rows};
pub use type_name::event_type_name;
pub use value::{
    EventQuery, Expectation, ExpectedVersion, LogExtent, NewEvent, StoredEvent, StreamInfo,
};
