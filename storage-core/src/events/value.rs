//! Events and the rules that every one of them obeys, checked here, once, for all backends.

use std::collections::HashSet;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::type_name::event_type_name;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{check_json, check_name};
use crate::metrics::time::{floor_ms, from_ms, is_sample_ms};

/// The largest payload, in bytes of compact JSON.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

/// An event that is to be appended.
///
/// ```
/// use serde::Serialize;
/// use storage_core::NewEvent;
///
/// #[derive(Serialize)]
/// enum OrchestrationEvent {
///     ProjectCreated { title: String },
/// }
///
/// let created = OrchestrationEvent::ProjectCreated { title: "Atlas".into() };
/// let event = NewEvent::of("project-1", &created)?.with_id("command-7");
/// assert_eq!(event.event_type, "ProjectCreated");
/// assert!(event.validate().is_ok());
/// # Ok::<(), storage_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewEvent {
    /// What makes a repeated append harmless: 1 to 512 bytes, no NUL; no two events of a store have
    /// the same. Ids that grow with time, such as UUIDs of version 7, are stored fastest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// What it happened to, such as `thread-17`: 1 to 512 bytes, no NUL.
    pub stream: String,
    /// What happened, such as `TurnStarted`: 1 to 512 bytes, no NUL.
    pub event_type: String,
    /// When, years 0001 to 9999; stored in whole milliseconds, finer digits floored.
    #[serde(default = "Utc::now")]
    pub stored_at: DateTime<Utc>,
    /// Any JSON, `null` included: at most 1 MiB as compact text, nested at most 64 levels deep, no
    /// NUL in texts.
    pub payload: Value,
}

impl NewEvent {
    /// Creates an event of now, without an id. Nothing is checked before it is appended.
    pub fn new(stream: impl Into<String>, event_type: impl Into<String>, payload: Value) -> Self {
        let (stream, event_type) = (stream.into(), event_type.into());
        Self { event_id: None, stream, event_type, stored_at: Utc::now(), payload }
    }

    /// Creates an event of now out of a value of an `enum`, named after its variant; see
    /// [`event_type_name`].
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field` if the value has no variant's name or cannot be
    /// written as JSON.
    pub fn of<T: Serialize + ?Sized>(stream: impl Into<String>, event: &T) -> Result<Self> {
        let event_type = event_type_name(event)?;
        let payload = serde_json::to_value(event).map_err(|error| {
            Error::invalid("the event cannot be written as JSON")
                .with_context("field", "payload")
                .with_source(error)
        })?;
        Ok(Self::new(stream, event_type, payload))
    }

    /// Sets the id.
    #[must_use]
    pub fn with_id(mut self, event_id: impl Into<String>) -> Self {
        self.event_id = Some(event_id.into());
        self
    }

    /// Sets the time.
    #[must_use]
    pub fn at(mut self, stored_at: DateTime<Utc>) -> Self {
        self.stored_at = stored_at;
        self
    }

    /// Checks the event against the contract.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field` naming the first field that breaks a rule.
    pub fn validate(&self) -> Result<()> {
        if let Some(event_id) = &self.event_id {
            check_name("event_id", event_id)?;
        }
        check_name("stream", &self.stream)?;
        check_name("event_type", &self.event_type)?;
        if !is_sample_ms(floor_ms(self.stored_at)) {
            return Err(Error::invalid("the time is outside the years 0001 to 9999")
                .with_context("field", "stored_at"));
        }
        check_json("payload", &self.payload, PAYLOAD_BYTES_MAX)
    }

    /// Returns the event as every backend gives it back: its time in whole milliseconds.
    #[must_use]
    pub fn into_stored(self, sequence: u64, version: u64) -> StoredEvent {
        let Self { event_id, stream, event_type, stored_at, payload } = self;
        let stored_at = from_ms(floor_ms(stored_at));
        StoredEvent { sequence, stream, version, event_id, event_type, stored_at, payload }
    }

    /// Whether `stored` is this event: the same stream, type and payload. When it was made does
    /// not matter, because who repeats an append may make it anew.
    pub fn is_same(&self, stored: &StoredEvent) -> bool {
        (&self.stream, &self.event_type, &self.payload)
            == (&stored.stream, &stored.event_type, &stored.payload)
    }
}

/// Checks every event of a batch, and that no id comes twice.
///
/// # Errors
/// `InvalidArgument` with the details `event` (the index of the first bad one) and `field`.
pub fn validate_events(events: &[NewEvent]) -> Result<()> {
    let mut ids = HashSet::new();
    for (index, event) in events.iter().enumerate() {
        event.validate().map_err(|error| error.with_context("event", index))?;
        if event.event_id.as_ref().is_some_and(|id| !ids.insert(id)) {
            return Err(Error::invalid("two events of a batch have the same id")
                .with_context("field", "event_id")
                .with_context("event", index));
        }
    }
    Ok(())
}

/// Says whether a batch is stored already, given the stored event of the same id for each of its
/// events: all of it, and then the stored events; or nothing of it.
///
/// # Errors
/// `Conflict` with the details `event_id` and `sequence` if it is neither.
pub fn repeated(
    events: &[NewEvent],
    found: Vec<Option<StoredEvent>>,
) -> Result<Option<Vec<StoredEvent>>> {
    let other = |(event, stored): (&NewEvent, &Option<StoredEvent>)| {
        stored.as_ref().is_some_and(|stored| !event.is_same(stored))
    };
    let taken = events.iter().zip(&found).position(other);
    if taken.is_none() && found.iter().all(Option::is_some) {
        return Ok(Some(found.into_iter().flatten().collect()));
    }
    let taken = taken.or_else(|| found.iter().position(Option::is_some));
    let Some(stored) = taken.and_then(|index| found[index].as_ref()) else { return Ok(None) };
    Err(Error::new(ErrorKind::Conflict, "an event with this id is stored already")
        .with_context("event_id", stored.event_id.as_deref().unwrap_or_default())
        .with_context("sequence", stored.sequence))
}

/// An event of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredEvent {
    /// Its place in the log, from 1 on.
    pub sequence: u64,
    /// What it happened to.
    pub stream: String,
    /// Its place in its stream, from 1 on.
    pub version: u64,
    /// The id that it was appended with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// What happened.
    pub event_type: String,
    /// When, in whole milliseconds.
    pub stored_at: DateTime<Utc>,
    /// The payload.
    pub payload: Value,
}

impl StoredEvent {
    /// Reads the payload as a value of the program.
    ///
    /// # Errors
    /// `Corrupt` with the details `sequence` and `event_type` if it is of another type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.payload).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "a stored event is not of the type asked for")
                .with_context("sequence", self.sequence)
                .with_context("event_type", &self.event_type)
                .with_source(error)
        })
    }
}

/// What an append expects of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpectedVersion {
    /// Nothing.
    #[default]
    Any,
    /// That no event was ever appended to it.
    NoStream,
    /// That the last event that was appended to it has this version; 0 is `NoStream`.
    Exact(u64),
}

impl ExpectedVersion {
    /// Whether a stream with this version, 0 if there is none, is as expected.
    pub fn holds_for(self, version: u64) -> bool {
        match self {
            Self::Any => true,
            Self::NoStream => version == 0,
            Self::Exact(expected) => version == expected,
        }
    }
}

impl fmt::Display for ExpectedVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::NoStream => f.write_str("none"),
            Self::Exact(version) => version.fmt(f),
        }
    }
}

/// What an append expects, and of which stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// The stream; the batch need not hold an event of it.
    pub stream: String,
    /// What is expected of it.
    pub version: ExpectedVersion,
}

impl Expectation {
    /// Expects `version` of `stream`.
    pub fn new(stream: impl Into<String>, version: ExpectedVersion) -> Self {
        Self { stream: stream.into(), version }
    }

    /// Compares with the version that the stream has, 0 if there is none.
    ///
    /// # Errors
    /// `Conflict` with the details `stream`, `expected` and `version`.
    pub fn check(&self, version: u64) -> Result<()> {
        match self.version.holds_for(version) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Conflict, "the stream has another version")
                .with_context("stream", &self.stream)
                .with_context("expected", self.version)
                .with_context("version", version)),
        }
    }
}

/// Checks the names in expectations.
///
/// # Errors
/// `InvalidArgument` with the detail `field`.
pub fn validate_expectations(expected: &[Expectation]) -> Result<()> {
    expected.iter().try_for_each(|expected| check_name("stream", &expected.stream))
}

/// The version of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamInfo {
    /// Which stream.
    pub stream: String,
    /// The version of the last event that was appended to it, at least 1.
    pub version: u64,
}

/// What the log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LogExtent {
    /// The first event that was not pruned; one after `last` if there is none.
    pub first: u64,
    /// The last event that was appended, also if it was pruned; 0 if none ever was.
    pub last: u64,
}

impl LogExtent {
    /// How many events there are.
    pub fn count(&self) -> u64 {
        self.last + 1 - self.first
    }
}

/// Chooses events: from where on, of which stream, and how many at most.
///
/// ```
/// use storage_core::EventQuery;
///
/// let query = EventQuery::from(1).stream("thread-17").limit(100);
/// assert_eq!((query.from, query.limit), (1, 100));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventQuery {
    /// The first sequence number, included; 0 and 1 are the beginning.
    pub from: u64,
    /// Only events of this stream, byte by byte; of all, if none is given.
    pub stream: Option<String>,
    /// At most so many.
    pub limit: usize,
}

impl EventQuery {
    /// Asks for every event from `sequence` on, itself included.
    pub fn from(sequence: u64) -> Self {
        Self { from: sequence, stream: None, limit: usize::MAX }
    }

    /// Asks for events of one stream alone.
    #[must_use]
    pub fn stream(mut self, stream: impl Into<String>) -> Self {
        self.stream = Some(stream.into());
        self
    }

    /// Asks for so many at most.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Checks the name of the stream.
    ///
    /// # Errors
    /// `InvalidArgument` with the detail `field`.
    pub fn validate(&self) -> Result<()> {
        self.stream.as_ref().map_or(Ok(()), |stream| check_name("stream", stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::time::{END_MS, MIN_MS};
    use serde_json::json;

    fn field_of(event: &NewEvent) -> Option<String> {
        event.validate().err()?.context("field").map(str::to_owned)
    }

    #[test]
    fn every_field_has_its_limits() {
        let good = NewEvent::new("s", "T", json!(null)).with_id("1");
        assert_eq!(field_of(&good), None);
        for name in ["", "a\0", &"x".repeat(513)] {
            let bad = [
                (NewEvent { stream: name.to_owned(), ..good.clone() }, "stream"),
                (NewEvent { event_type: name.to_owned(), ..good.clone() }, "event_type"),
                (NewEvent { event_id: Some(name.to_owned()), ..good.clone() }, "event_id"),
            ];
            for (bad, field) in bad {
                assert_eq!(field_of(&bad).as_deref(), Some(field));
            }
        }
        let outside = |ms| DateTime::from_timestamp_millis(ms).unwrap();
        for stored_at in [outside(MIN_MS - 1), outside(END_MS)] {
            assert_eq!(field_of(&good.clone().at(stored_at)).as_deref(), Some("stored_at"));
        }
        let large = NewEvent { payload: json!("x".repeat(PAYLOAD_BYTES_MAX - 1)), ..good.clone() };
        assert_eq!(field_of(&large).as_deref(), Some("payload"));
        let twice = validate_events(&[good.clone(), good]).unwrap_err();
        assert_eq!((twice.context("field"), twice.context("event")), (Some("event_id"), Some("1")));
    }

    #[test]
    fn expectations_compare_versions() {
        let holds = |expected: ExpectedVersion, version| expected.holds_for(version);
        assert!(holds(ExpectedVersion::Any, 7) && holds(ExpectedVersion::Exact(0), 0));
        assert!(holds(ExpectedVersion::NoStream, 0) && !holds(ExpectedVersion::NoStream, 1));
        let error = Expectation::new("s", ExpectedVersion::Exact(2)).check(3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!((error.context("expected"), error.context("version")), (Some("2"), Some("3")));
    }
}
