//! Records in memory, on their way to the store: a lane for each source, in it batches.
//!
//! Plain data under the lock of the actor; nothing here waits.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::source::Backpressure;
use crate::deadline::after;
use crate::metrics::MetricRecord;

/// When a batch is closed and goes to the store, and how much a lane holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) flush_records: usize,
    pub(super) flush_bytes: usize,
    pub(super) flush_interval: Duration,
    pub(super) memory_bytes_max: usize,
}

/// A part of a lane that is on its way to the store or the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) lane: usize,
    pub(super) records: u64,
    pub(super) bytes: usize,
}

/// Records to be written together.
#[derive(Debug)]
pub(super) struct Batch {
    /// The number of the oldest closed batch in it.
    pub(super) seq: u64,
    pub(super) since: Instant,
    pub(super) records: Vec<MetricRecord>,
    pub(super) parts: Vec<Part>,
}

/// The memory of one source.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) backpressure: Backpressure,
    open: Vec<MetricRecord>,
    open_bytes: usize,
    open_since: Option<Instant>,
    closed: VecDeque<Closed>,
    /// Open, closed and taken, until they are done with.
    pub(super) held_records: u64,
    pub(super) held_bytes: usize,
}

#[derive(Debug)]
struct Closed {
    seq: u64,
    since: Instant,
    records: Vec<MetricRecord>,
    bytes: usize,
}

/// What became of records that were pushed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// They are in; so many older ones were shed for them.
    In { shed: u64, overflows: bool },
    /// There is no room, and they are where they were.
    Full,
}

/// All lanes.
#[derive(Debug)]
pub(super) struct Buffer {
    bounds: Bounds,
    pub(super) lanes: Vec<Lane>,
    next_seq: u64,
}

impl Buffer {
    pub(super) fn new(bounds: Bounds, policies: impl IntoIterator<Item = Backpressure>) -> Self {
        let lanes = policies.into_iter().map(Lane::new).collect();
        Self { bounds, lanes, next_seq: 0 }
    }

    /// Adds records to a lane, and closes batches as they become full.
    pub(super) fn push(
        &mut self,
        lane: usize,
        records: &mut Vec<MetricRecord>,
        now: Instant,
    ) -> Pushed {
        let Self { bounds, lanes, next_seq } = self;
        let lane = &mut lanes[lane];
        if lane.backpressure == Backpressure::Wait && lane.held_bytes >= bounds.memory_bytes_max {
            lane.close(next_seq);
            return Pushed::Full;
        }
        for record in records.drain(..) {
            lane.add(record, now, bounds, next_seq);
        }
        let mut shed = 0;
        if lane.backpressure != Backpressure::Wait {
            while lane.held_bytes > bounds.memory_bytes_max {
                match lane.shed_some(lane.held_bytes - bounds.memory_bytes_max) {
                    0 => break,
                    some => shed += some,
                }
            }
        }
        let overflows = lane.backpressure == Backpressure::Spool
            && lane.held_bytes > bounds.memory_bytes_max / 2;
        Pushed::In { shed, overflows }
    }

    /// When the open batch of a lane is old enough to be closed.
    pub(super) fn due(&self, lane: usize) -> Option<Instant> {
        self.lanes[lane].open_since.map(|since| after(since, self.bounds.flush_interval))
    }

    /// Closes the open batch of a lane if there is one.
    pub(super) fn close(&mut self, lane: usize) {
        self.lanes[lane].close(&mut self.next_seq);
    }

    /// Takes the oldest closed batches of all lanes: one, and more up to `records_max` records.
    pub(super) fn take(&mut self, records_max: usize) -> Option<Batch> {
        let mut batch: Option<Batch> = None;
        loop {
            let seq_of = |lane: &Lane| lane.closed.front().map(|closed| closed.seq);
            let oldest = self.lanes.iter().enumerate();
            let oldest = oldest.filter_map(|(no, lane)| Some((seq_of(lane)?, no))).min();
            let Some((_, no)) = oldest else { return batch };
            let lane = &mut self.lanes[no].closed;
            let len = lane.front().map_or(0, |closed| closed.records.len());
            if batch.as_ref().is_some_and(|batch| batch.records.len() + len > records_max) {
                return batch;
            }
            let Some(closed) = lane.pop_front() else { return batch };
            let part = Part { lane: no, records: len as u64, bytes: closed.bytes };
            match &mut batch {
                None => {
                    let Closed { seq, since, records, .. } = closed;
                    batch = Some(Batch { seq, since, records, parts: vec![part] });
                }
                Some(batch) => {
                    batch.since = batch.since.min(closed.since);
                    batch.records.extend(closed.records);
                    batch.parts.push(part);
                }
            }
        }
    }

    /// Lets go of what was taken: its memory is free.
    pub(super) fn done(&mut self, parts: &[Part]) {
        for part in parts {
            let lane = &mut self.lanes[part.lane];
            lane.held_records -= part.records;
            lane.held_bytes -= part.bytes;
        }
    }

    /// The number that the next closed batch will have.
    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The number of the oldest closed batch.
    pub(super) fn oldest_seq(&self) -> Option<u64> {
        self.lanes.iter().filter_map(|lane| Some(lane.closed.front()?.seq)).min()
    }

    /// When the oldest record came.
    pub(super) fn oldest_since(&self) -> Option<Instant> {
        let of = |lane: &Lane| match lane.closed.front() {
            Some(closed) => Some(closed.since),
            None => lane.open_since,
        };
        self.lanes.iter().filter_map(of).min()
    }
}

impl Lane {
    fn new(backpressure: Backpressure) -> Self {
        Self {
            backpressure,
            open: Vec::new(),
            open_bytes: 0,
            open_since: None,
            closed: VecDeque::new(),
            held_records: 0,
            held_bytes: 0,
        }
    }

    fn add(&mut self, record: MetricRecord, now: Instant, bounds: &Bounds, next_seq: &mut u64) {
        let bytes = record_bytes(&record);
        self.open_since.get_or_insert(now);
        if self.open.capacity() == 0 {
            self.open.reserve_exact(bounds.flush_records.min(1024));
        }
        self.open.push(record);
        self.open_bytes += bytes;
        self.held_records += 1;
        self.held_bytes += bytes;
        if self.open.len() >= bounds.flush_records || self.open_bytes >= bounds.flush_bytes {
            self.close(next_seq);
        }
    }

    fn close(&mut self, next_seq: &mut u64) {
        let Some(since) = self.open_since.take() else { return };
        let records = std::mem::take(&mut self.open);
        let bytes = std::mem::take(&mut self.open_bytes);
        self.closed.push_back(Closed { seq: *next_seq, since, records, bytes });
        *next_seq += 1;
    }

    /// Drops the oldest closed batch, or as many of the open one as free `bytes`; returns how many
    /// records that were. What is taken cannot be shed.
    fn shed_some(&mut self, bytes: usize) -> u64 {
        if let Some(closed) = self.closed.pop_front() {
            self.held_records -= closed.records.len() as u64;
            self.held_bytes -= closed.bytes;
            return closed.records.len() as u64;
        }
        let mut freed = 0;
        let mut enough = |record: &MetricRecord| {
            let before = freed;
            freed += record_bytes(record);
            before < bytes
        };
        let count = self.open.iter().take_while(|record| enough(record)).count();
        let freed: usize = self.open.drain(..count).map(|record| record_bytes(&record)).sum();
        self.open_bytes -= freed;
        self.held_bytes -= freed;
        self.held_records -= count as u64;
        if self.open.is_empty() {
            self.open_since = None;
        }
        count as u64
    }
}

/// The memory that a record takes, blocks of the allocator included.
pub(super) fn record_bytes(record: &MetricRecord) -> usize {
    let text = record.server_id.capacity() + record.metric_type.capacity();
    let metadata = record.metadata.as_ref().map_or(0, value_bytes);
    size_of::<MetricRecord>() + text + 2 * ALLOCATION_BYTES + metadata
}

/// What an allocation costs beside its content.
const ALLOCATION_BYTES: usize = 16;

fn value_bytes(value: &Value) -> usize {
    let inner: usize = match value {
        Value::String(text) => text.capacity() + ALLOCATION_BYTES,
        Value::Array(items) => {
            ALLOCATION_BYTES
                + items.iter().map(|item| size_of::<Value>() + value_bytes(item)).sum::<usize>()
        }
        Value::Object(fields) => {
            let field = |(name, field): (&String, &Value)| {
                // A node of the tree holds up to eleven fields and is half full at worst.
                2 * (size_of::<String>() + size_of::<Value>())
                    + name.capacity()
                    + ALLOCATION_BYTES
                    + value_bytes(field)
            };
            fields.iter().map(field).sum()
        }
        _ => 0,
    };
    inner
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::time::from_ms;
    use serde_json::json;

    fn record(no: i64) -> MetricRecord {
        MetricRecord::new("a", from_ms(no), "m", no as f64)
    }

    fn buffer(policies: &[Backpressure], memory_records: usize) -> Buffer {
        let bounds = Bounds {
            flush_records: 10,
            flush_bytes: usize::MAX,
            flush_interval: Duration::from_secs(30),
            memory_bytes_max: memory_records * record_bytes(&record(0)),
        };
        Buffer::new(bounds, policies.iter().copied())
    }

    fn push(buffer: &mut Buffer, lane: usize, numbers: std::ops::Range<i64>) -> Pushed {
        let mut records = numbers.map(record).collect();
        buffer.push(lane, &mut records, Instant::now())
    }

    fn numbers(batch: &Batch) -> Vec<i64> {
        batch.records.iter().map(|record| record.value as i64).collect()
    }

    #[tokio::test]
    async fn batches_are_taken_in_the_order_in_which_they_were_closed() {
        let mut buffer = buffer(&[Backpressure::Wait; 2], 1000);
        push(&mut buffer, 0, 0..5);
        push(&mut buffer, 1, 100..110);
        push(&mut buffer, 0, 5..25);
        assert_eq!(numbers(&buffer.take(1).unwrap()), (100..110).collect::<Vec<_>>());
        let both = buffer.take(25).unwrap();
        assert_eq!(numbers(&both), (0..20).collect::<Vec<_>>());
        assert!(buffer.take(25).is_none());
        assert_eq!(buffer.lanes[0].held_records, 25);
        buffer.done(&both.parts);
        assert_eq!(buffer.lanes[0].held_records, 5);
        buffer.close(0);
        assert_eq!(numbers(&buffer.take(25).unwrap()), (20..25).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn the_oldest_are_shed_and_what_is_taken_is_not() {
        let mut buffer = buffer(&[Backpressure::ShedOldest], 25);
        push(&mut buffer, 0, 0..20);
        let taken = buffer.take(10).unwrap();
        assert_eq!(push(&mut buffer, 0, 20..29), Pushed::In { shed: 10, overflows: false });
        assert_eq!(push(&mut buffer, 0, 29..39), Pushed::In { shed: 10, overflows: false });
        assert_eq!(numbers(&taken), (0..10).collect::<Vec<_>>());
        buffer.close(0);
        assert_eq!(numbers(&buffer.take(99).unwrap()), (30..39).collect::<Vec<_>>());
        // One that is larger than all of it sheds of itself.
        buffer.done(&taken.parts);
        let mut few = self::buffer(&[Backpressure::ShedOldest], 5);
        assert_eq!(push(&mut few, 0, 0..8), Pushed::In { shed: 3, overflows: false });
        few.close(0);
        assert_eq!(numbers(&few.take(99).unwrap()), (3..8).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_full_lane_waits_and_a_half_full_one_spools() {
        let mut buffer = buffer(&[Backpressure::Wait, Backpressure::Spool], 12);
        assert!(matches!(push(&mut buffer, 0, 0..12), Pushed::In { shed: 0, .. }));
        let mut more = vec![record(12)];
        assert_eq!(buffer.push(0, &mut more, Instant::now()), Pushed::Full);
        assert_eq!(more.len(), 1);
        assert_eq!(push(&mut buffer, 1, 0..6), Pushed::In { shed: 0, overflows: false });
        assert_eq!(push(&mut buffer, 1, 6..7), Pushed::In { shed: 0, overflows: true });
    }

    #[test]
    fn metadata_takes_memory() {
        let plain = record_bytes(&record(0));
        let with = |metadata| record_bytes(&record(0).with_metadata(metadata)) - plain;
        assert!(with(json!("x".repeat(1000))) >= 1000);
        assert!(with(json!([1, 2, 3])) >= 3 * size_of::<Value>());
        assert!(with(json!({ "a": "b" })) > 50);
    }
}
