//! Deciding about appends of several callers that one transaction serves, for backends.
//!
//! A backend takes the batches that wait, reads what [`Desk::new`] asks for in the transaction
//! that will store them, asks [`Desk::decide`] about each in turn, and inserts what is accepted. No
//! constraint of a table is ever met, so that one caller's conflict touches no other.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::value::{Expectation, NewEvent, StoredEvent, repeated};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::time::floor_ms;

/// Bytes of JSON that cost as much as storing one sample.
const BYTES_PER_WEIGHT: usize = 256;

/// What a row takes beside its payload, roughly.
const ROW_BYTES: usize = 64;

/// Sequence number and version of an event.
pub type Place = (u64, u64);

/// An event on its way into a table, with its payload as the backend writes it.
#[derive(Debug)]
pub struct EventRow<J> {
    /// Its id.
    pub event_id: Option<Arc<str>>,
    /// Its stream.
    pub stream: Arc<str>,
    /// Its type.
    pub event_type: Arc<str>,
    /// Its time, in milliseconds since 1970.
    pub ms: i64,
    /// Its payload, or more of it, as the backend writes it.
    pub json: J,
}

/// A batch on its way into a table, with what it expects and the place for its verdict.
#[derive(Debug)]
pub struct Append<J> {
    /// Its events, in their order.
    pub rows: Vec<EventRow<J>>,
    expected: Vec<Expectation>,
    verdict: Slot,
    bytes: usize,
    weight: usize,
}

impl<J> Append<J> {
    /// Takes a batch that is valid, and says where its verdict will be. `to_json` gives what the
    /// backend writes of an event as JSON, and its length in bytes.
    ///
    /// # Errors
    /// Those of `to_json`.
    pub fn new(
        events: &[NewEvent],
        expected: &[Expectation],
        to_json: impl Fn(&NewEvent) -> Result<(J, usize)>,
    ) -> Result<(Self, Slot)> {
        let (mut stream, mut event_type) = (Arc::from(""), Arc::from(""));
        let (mut bytes, mut weight) = (0, 0);
        let row = |event: &NewEvent| {
            let (json, json_bytes) = to_json(event)?;
            bytes += ROW_BYTES + json_bytes;
            weight += 1 + json_bytes / BYTES_PER_WEIGHT;
            Ok(EventRow {
                event_id: event.event_id.as_deref().map(Arc::from),
                stream: shared(&mut stream, &event.stream),
                event_type: shared(&mut event_type, &event.event_type),
                ms: floor_ms(event.stored_at),
                json,
            })
        };
        let rows = events.iter().map(row).collect::<Result<_>>()?;
        let (verdict, expected) = (Slot::default(), expected.to_vec());
        Ok((Self { rows, expected, verdict: verdict.clone(), bytes, weight }, verdict))
    }

    /// What it writes, in bytes, roughly.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// What it costs, in samples.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// The ids of its events.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().filter_map(|row| row.event_id.as_deref())
    }

    /// Says that it is stored already: `stored` are the events that have its ids, in any order.
    pub fn found(&self, stored: Vec<StoredEvent>) {
        let by_id: HashMap<_, _> =
            stored.into_iter().filter_map(|event| Some((event.event_id.clone()?, event))).collect();
        let find = |row: &EventRow<J>| by_id.get(row.event_id.as_deref()?).cloned();
        self.verdict.put(Ok(Verdict::Found(self.rows.iter().map(find).collect())));
    }

    /// Says that it is stored already, and that what is stored cannot be read.
    pub fn failed(&self, error: Error) {
        self.verdict.put(Err(error));
    }
}

/// Names mostly come in runs: then they share their bytes.
fn shared(last: &mut Arc<str>, name: &str) -> Arc<str> {
    if **last != *name {
        *last = name.into();
    }
    Arc::clone(last)
}

/// The streams that batches touch or expect something of, in order, each once.
pub fn streams_of<J>(appends: &[Append<J>]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for append in appends {
        for row in &append.rows {
            if names.last() != Some(&&*row.stream) {
                names.push(&row.stream);
            }
        }
        names.extend(append.expected.iter().map(|expected| &*expected.stream));
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// What becomes of a batch, if the transaction is committed.
#[derive(Debug)]
enum Verdict {
    /// It was appended, in these places.
    Appended(Vec<Place>),
    /// Nothing was: these events, each in the place of the one that has its id, are stored already.
    Found(Vec<Option<StoredEvent>>),
}

/// Where the verdict is put, and found by the caller.
#[derive(Debug, Clone, Default)]
pub struct Slot(Arc<Mutex<Option<Result<Verdict>>>>);

impl Slot {
    fn put(&self, verdict: Result<Verdict>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
    }

    /// Waits for `commit`, which commits these events, and returns the answer to their append.
    ///
    /// # Errors
    /// Those of `commit`; `Conflict` as [`EventStore::append`](super::EventStore::append) says.
    pub async fn answer(
        &self,
        events: &[NewEvent],
        commit: impl Future<Output = Result<()>>,
    ) -> Result<Vec<StoredEvent>> {
        // Copied while the commit is under way: that takes a good part of its time.
        let (committed, events) = tokio::join!(commit, async { events.to_vec() });
        committed?;
        self.take(events)
    }

    fn take(&self, events: Vec<NewEvent>) -> Result<Vec<StoredEvent>> {
        let verdict = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match verdict.unwrap_or_else(|| Err(undecided()))? {
            Verdict::Appended(places) => {
                let stored = events.into_iter().zip(places);
                Ok(stored.map(|(event, (at, version))| event.into_stored(at, version)).collect())
            }
            Verdict::Found(found) => repeated(&events, found)?.ok_or_else(undecided),
        }
    }
}

fn undecided() -> Error {
    Error::new(ErrorKind::Internal, "an append was not decided")
}

/// What was decided.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is to be inserted, in these places.
    Accepted(Vec<Place>),
    /// Its caller is told why not.
    Refused,
    /// Some of its events are stored already, or will be once what was accepted is inserted: look
    /// them up then, and call [`Append::found`].
    Known,
}

/// The log as a transaction found it, and as what was accepted makes it.
#[derive(Debug)]
pub struct Desk<'a> {
    last: u64,
    versions: HashMap<&'a str, u64>,
    stored: HashSet<String>,
    accepted: HashSet<&'a str>,
}

impl<'a> Desk<'a> {
    /// Takes the last sequence number, the versions of [`streams_of`] the batches as far as there
    /// are such streams, and those of their ids that are stored.
    pub fn new(last: u64, versions: HashMap<&'a str, u64>, stored: HashSet<String>) -> Self {
        Self { last, versions, stored, accepted: HashSet::new() }
    }

    /// The last sequence number, with what was accepted.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The version of a stream, with what was accepted; 0 if there is none.
    pub fn version(&self, stream: &str) -> u64 {
        self.versions.get(stream).copied().unwrap_or(0)
    }

    /// Decides about a batch, and remembers its verdict.
    pub fn decide<J>(&mut self, append: &'a Append<J>) -> Decision {
        if append.ids().any(|id| self.stored.contains(id) || self.accepted.contains(id)) {
            return Decision::Known;
        }
        let holds = |expected: &Expectation| expected.check(self.version(&expected.stream));
        if let Err(refused) = append.expected.iter().try_for_each(holds) {
            append.verdict.put(Err(refused));
            return Decision::Refused;
        }
        self.accepted.extend(append.ids());
        let place = |row: &'a EventRow<J>| {
            let version = self.versions.entry(&row.stream).or_default();
            *version += 1;
            self.last += 1;
            (self.last, *version)
        };
        let places: Vec<Place> = append.rows.iter().map(place).collect();
        append.verdict.put(Ok(Verdict::Appended(places.clone())));
        Decision::Accepted(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::ExpectedVersion;
    use serde_json::json;

    fn append(events: &[NewEvent], expected: &[Expectation]) -> (Append<String>, Slot) {
        Append::new(events, expected, |event| Ok((event.payload.to_string(), 1))).unwrap()
    }

    #[test]
    fn each_batch_is_decided_on_what_was_accepted_before() {
        let event = |stream: &str| NewEvent::new(stream, "T", json!(1));
        let exact =
            |stream: &str, version| [Expectation::new(stream, ExpectedVersion::Exact(version))];
        let batches = [
            append(&[event("a"), event("b")], &exact("a", 2)),
            append(&[event("a")], &exact("a", 2)),
            append(&[event("a").with_id("x")], &exact("a", 3)),
            append(&[event("a").with_id("x")], &[]),
            append(&[event("c").with_id("old")], &[]),
        ];
        let appends: Vec<_> = batches.iter().map(|(append, _)| append).collect();
        let mut desk = Desk::new(10, HashMap::from([("a", 2)]), HashSet::from(["old".to_owned()]));
        let decided: Vec<_> = appends.into_iter().map(|append| desk.decide(append)).collect();
        let expected = [
            Decision::Accepted(vec![(11, 3), (12, 1)]),
            Decision::Refused,
            Decision::Accepted(vec![(13, 4)]),
            Decision::Known,
            Decision::Known,
        ];
        assert_eq!(decided, expected);
        assert_eq!((desk.last(), desk.version("a"), desk.version("c")), (13, 4, 0));
        let refused = batches[1].1.take(vec![event("a")]).unwrap_err();
        assert_eq!((refused.kind(), refused.context("version")), (ErrorKind::Conflict, Some("3")));
        let stored = batches[2].1.take(vec![event("a").with_id("x")]).unwrap();
        batches[3].0.found(stored.clone());
        assert_eq!(batches[3].1.take(vec![event("a").with_id("x")]).unwrap(), stored);
    }

    #[test]
    fn streams_are_asked_for_once() {
        let event = |stream: &str| NewEvent::new(stream, "T", json!(1));
        let expected = [Expectation::new("c", ExpectedVersion::Any)];
        let (one, _) = append(&[event("b"), event("b"), event("a")], &expected);
        let (two, _) = append(&[event("a")], &[]);
        assert_eq!(streams_of(&[one, two]), ["a", "b", "c"]);
    }
}
