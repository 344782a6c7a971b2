//! The format of a chunk of the log: events that follow each other, as one text. Pure computation.
//!
//! A JSON array with `[version, stream, id or null, type, milliseconds, payload]` for each event,
//! whose number is that of the chunk and its place in it. Text, so that SQL can read it, too.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use storage_core::events::group::{self, Place};
use storage_core::metrics::time::{floor_ms, from_ms};
use storage_core::{Error, NewEvent, Result, StoredEvent};

use crate::codec::corrupt;

/// The most events of a chunk. Whoever wants few of them reads all.
const EVENTS_MAX: usize = 256;

/// A chunk with so many bytes takes no further event.
const BYTES_MAX: usize = 256 << 10;

/// An event on its way into a chunk: its payload is all that follows the version there.
pub(super) type EventRow = group::EventRow<Box<str>>;

/// A row that is accepted, with its place.
pub(super) type Accepted<'a> = (&'a EventRow, Place);

/// A chunk to be stored.
#[derive(Debug, PartialEq)]
pub(super) struct NewChunk<'a> {
    pub(super) first: u64,
    pub(super) count: usize,
    pub(super) text: String,
    /// Its streams by name, with the version of the first event of each.
    pub(super) streams: Vec<(Cow<'a, str>, u64)>,
}

/// An event of a chunk whose payload is not looked at.
#[derive(Debug, Deserialize)]
pub(super) struct Part<'a>(
    pub(super) u64,
    #[serde(borrow)] pub(super) Cow<'a, str>,
    pub(super) Option<String>,
    #[serde(borrow)] Cow<'a, str>,
    i64,
    #[serde(borrow)] &'a RawValue,
);

impl Part<'_> {
    /// Bytes of its payload.
    pub(super) fn payload_bytes(&self) -> usize {
        self.5.get().len()
    }

    /// The event, with its number.
    pub(super) fn into_event(self, sequence: u64) -> Result<StoredEvent> {
        let Self(version, stream, event_id, event_type, ms, payload) = self;
        let payload = serde_json::from_str(payload.get())
            .map_err(|error| damaged(sequence).with_source(error))?;
        Ok(StoredEvent {
            sequence,
            stream: stream.into_owned(),
            version,
            event_id,
            event_type: event_type.into_owned(),
            stored_at: from_ms(ms),
            payload,
        })
    }
}

/// Writes what follows the version of an event.
pub(super) fn tail_of(event: &NewEvent) -> Result<Box<str>> {
    let NewEvent { stream, event_id, event_type, payload, .. } = event;
    let ms = floor_ms(event.stored_at);
    let json = serde_json::to_string(&(stream, event_id, event_type, ms, payload));
    json.map(String::into_boxed_str)
        .map_err(|error| Error::invalid("the event cannot be written as JSON").with_source(error))
}

/// Divides events that follow each other over chunks.
pub(super) fn chunks_of<'a>(accepted: &'a [Accepted<'a>]) -> Vec<NewChunk<'a>> {
    let (mut chunks, mut rest) = (Vec::new(), accepted);
    while !rest.is_empty() {
        let chunk = next_chunk(rest);
        rest = &rest[chunk.count..];
        chunks.push(chunk);
    }
    chunks
}

fn next_chunk<'a>(accepted: &'a [Accepted<'a>]) -> NewChunk<'a> {
    let first = accepted[0].1.0;
    let mut chunk = NewChunk { first, count: 0, text: String::from("["), streams: Vec::new() };
    for (row, (_, version)) in accepted {
        if chunk.count == EVENTS_MAX || chunk.text.len() >= BYTES_MAX {
            break;
        }
        if chunk.streams.last().is_none_or(|(stream, _)| *stream != *row.stream) {
            chunk.streams.push((Cow::Borrowed(&row.stream), *version));
        }
        let comma = if chunk.count == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(chunk.text, "{comma}[{version},");
        // What is there is an array, too, whose bracket the version has taken.
        chunk.text.push_str(&row.json[1..]);
        chunk.count += 1;
    }
    chunk.text.push(']');
    keep_first(&mut chunk.streams);
    chunk
}

/// Returns what a chunk holds from a number on that it holds.
pub(super) fn rest(first: u64, from: u64, text: &str) -> Result<NewChunk<'_>> {
    let left_out = (from - first) as usize;
    let parts = parts(first, text)?.into_iter().skip(left_out);
    let parse_error = |error| damaged(first).with_source(error);
    let texts: Vec<&RawValue> = serde_json::from_str(text).map_err(parse_error)?;
    let texts: Vec<&str> = texts.into_iter().skip(left_out).map(RawValue::get).collect();
    let mut streams = parts.map(|Part(version, stream, ..)| (stream, version)).collect();
    keep_first(&mut streams);
    let (count, text) = (texts.len(), format!("[{}]", texts.join(",")));
    Ok(NewChunk { first: from, count, text, streams })
}

/// Keeps of each stream its first event.
fn keep_first(streams: &mut Vec<(Cow<'_, str>, u64)>) {
    streams.sort_unstable();
    streams.dedup_by(|later, first| later.0 == first.0);
}

/// Takes a chunk apart without its payloads.
///
/// # Errors
/// `Corrupt` with the number of the first event that is damaged.
pub(super) fn parts(first: u64, text: &str) -> Result<Vec<Part<'_>>> {
    serde_json::from_str(text).map_err(|error| damaged(first + undamaged(text)).with_source(error))
}

/// Returns how many events of a chunk come before the first one that is damaged.
fn undamaged(text: &str) -> u64 {
    let (mut rest, mut count) = (text.strip_prefix('[').unwrap_or(text), 0);
    loop {
        let mut event = serde_json::Deserializer::from_str(rest).into_iter::<Part<'_>>();
        if !matches!(event.next(), Some(Ok(_))) {
            return count;
        }
        count += 1;
        rest = rest[event.byte_offset()..].trim_start_matches(',');
    }
}

/// Returns every event of chunks that follow each other from `first` to before `end`; their texts stand
/// one behind the other.
pub(super) fn events(first: u64, end: u64, text: &str) -> Result<Vec<StoredEvent>> {
    type Whole = (u64, String, Option<String>, String, i64, Value);
    let expected = end.saturating_sub(first);
    let mut events = Vec::with_capacity(usize::try_from(expected).unwrap_or(0).min(4096));
    for chunk in serde_json::Deserializer::from_str(text).into_iter::<Vec<Whole>>() {
        let chunk = chunk.map_err(|error| damaged(first).with_source(error))?;
        for (version, stream, event_id, event_type, ms, payload) in chunk {
            let (sequence, stored_at) = (first + events.len() as u64, from_ms(ms));
            let event =
                StoredEvent { sequence, stream, version, event_id, event_type, stored_at, payload };
            events.push(event);
        }
    }
    match events.len() as u64 == expected {
        true => Ok(events),
        false => Err(damaged(first)),
    }
}

pub(super) fn damaged(sequence: u64) -> Error {
    corrupt("a chunk of events is damaged").with_context("sequence", sequence)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::json;

    fn rows(events: &[NewEvent]) -> Vec<EventRow> {
        let row = |event: &NewEvent| EventRow {
            event_id: event.event_id.as_deref().map(Arc::from),
            stream: event.stream.as_str().into(),
            event_type: event.event_type.as_str().into(),
            ms: floor_ms(event.stored_at),
            json: tail_of(event).unwrap(),
        };
        events.iter().map(row).collect()
    }

    fn accepted(rows: &[EventRow], first: u64) -> Vec<Accepted<'_>> {
        rows.iter().zip(first..).map(|(row, sequence)| (row, (sequence, sequence * 2))).collect()
    }

    #[test]
    fn a_chunk_is_what_it_was_made_of() {
        let new = [
            NewEvent::new("b", "T \"\\", json!({"x": [1.5, "]"]})).at(from_ms(-5)),
            NewEvent::new("a", "T", json!(null)).with_id("i\n"),
            NewEvent::new("b", "T", json!("é")),
        ];
        let rows = rows(&new);
        let accepted = accepted(&rows, 7);
        let chunks = chunks_of(&accepted);
        let [chunk] = chunks.as_slice() else { panic!("{chunks:?}") };
        assert_eq!((chunk.first, chunk.count), (7, 3));
        assert_eq!(chunk.streams, [("a".into(), 16), ("b".into(), 14)]);
        let rest = rest(7, 8, &chunk.text).unwrap();
        assert_eq!((rest.first, rest.count), (8, 2));
        assert_eq!(rest.streams, [("a".into(), 16), ("b".into(), 18)]);
        let left = chunk.text.find(",[16").unwrap();
        assert_eq!(rest.text[1..], chunk.text[left + 1..]);
        let place = |(event, sequence): (&NewEvent, u64)| {
            let mut stored = event.clone().into_stored(sequence, sequence * 2);
            stored.stored_at = from_ms(floor_ms(stored.stored_at));
            stored
        };
        let expected: Vec<_> = new.iter().zip(7..).map(place).collect();
        assert_eq!(events(7, 10, &chunk.text).unwrap(), expected);
        let parts = parts(7, &chunk.text).unwrap().into_iter().zip(7..);
        let found: Result<Vec<_>> = parts.map(|(part, at)| part.into_event(at)).collect();
        assert_eq!(found.unwrap(), expected);
        let twice = [chunk.text.as_str(), chunk.text.as_str()].concat();
        assert_eq!(events(7, 13, &twice).unwrap().len(), 6);
        assert!(events(7, 11, &chunk.text).is_err() && events(7, 10, "[[1]]").is_err());
        let damaged = chunk.text.replace("null]", "nul]");
        let error = super::parts(7, &damaged).unwrap_err();
        assert_eq!(error.context("sequence"), Some("8"));
    }

    #[test]
    fn chunks_are_neither_long_nor_large() {
        let small: Vec<_> = (0..600).map(|n| NewEvent::new("s", "T", json!(n))).collect();
        let small = rows(&small);
        let counts = |rows: &[EventRow]| {
            let accepted = accepted(rows, 1);
            let chunks = chunks_of(&accepted);
            assert!(chunks.iter().map(|chunk| chunk.first).is_sorted());
            chunks.iter().map(|chunk| chunk.count).collect::<Vec<_>>()
        };
        assert_eq!(counts(&small), [256, 256, 88]);
        let large = json!("x".repeat(BYTES_MAX / 2));
        let large: Vec<_> = (0..5).map(|_| NewEvent::new("s", "T", large.clone())).collect();
        assert_eq!(counts(&rows(&large)), [2, 2, 1]);
        assert_eq!(counts(&[]), [0; 0]);
    }
}
