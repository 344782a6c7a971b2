//! Batches of a spool as samples, and back.
//!
//! JSON text instead of JSON values: a record's metadata may be as large and as deep as metadata
//! can be, so no record would fit into another one's. Text can be cut anywhere.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};
use crate::metrics::time::{floor_ms, from_ms};
use crate::metrics::{MetricRecord, StorageBackend, TimeRange};

/// The server that all samples of a spool stand under.
pub(super) const SERVER: &str = "spool";

/// Chunks: the value is the number of records of the batch at its first chunk, 0 at the others.
pub(super) const BATCH: &str = "batch";

/// Bytes of each chunk, so that a sum says how large the spool is.
pub(super) const BYTES: &str = "bytes";

/// The most bytes of a chunk as JSON: less than metadata may have, for what stands beside it.
const CHUNK_BYTES_MAX: usize = 60 * 1024;

/// A record as it is written down: half as long as with names of fields.
#[derive(Serialize)]
struct Row<'a>(&'a str, i64, &'a str, f64, Option<&'a Value>);

#[derive(Deserialize)]
struct OwnedRow(String, i64, String, f64, Option<Value>);

/// A part of a batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chunk {
    /// Its number in the spool.
    pub(super) seq: i64,
    /// How many records the batch has, if it is the first chunk of one.
    records: u64,
    /// When the batch was pushed.
    pub(super) at_ms: i64,
    /// How many chunks of the batch come behind it.
    rest: i64,
    text: String,
}

impl Chunk {
    /// Whether a batch starts with it.
    pub(super) const fn is_first(&self) -> bool {
        self.records > 0
    }
}

/// The oldest batches of a spool.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Front {
    pub(super) records: Vec<MetricRecord>,
    pub(super) bytes: u64,
    /// The number behind their last chunk.
    pub(super) end: i64,
    /// When the batch behind them was pushed, if it was read.
    pub(super) next_at_ms: Option<i64>,
}

/// Writes a batch down, in pieces.
pub(super) fn encode(records: &[MetricRecord]) -> Result<Vec<String>> {
    let rows: Vec<_> = records.iter().map(row_of).collect();
    let text = serde_json::to_string(&rows).map_err(|error| {
        Error::new(ErrorKind::Internal, "a batch cannot be written as JSON").with_source(error)
    })?;
    Ok(cut(&text))
}

fn row_of(record: &MetricRecord) -> Row<'_> {
    let MetricRecord { server_id, timestamp, metric_type, value, metadata } = record;
    Row(server_id, floor_ms(*timestamp), metric_type, *value, metadata.as_ref())
}

/// Cuts text so that each piece, as JSON, has at most [`CHUNK_BYTES_MAX`] bytes.
fn cut(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let (mut start, mut escaped_len) = (0, 0);
    for (index, character) in text.char_indices() {
        // The text is JSON itself: control characters are escaped already.
        let len = if matches!(character, '"' | '\\') { 2 } else { character.len_utf8() };
        if escaped_len + len > CHUNK_BYTES_MAX {
            pieces.push(text[start..index].to_owned());
            (start, escaped_len) = (index, 0);
        }
        escaped_len += len;
    }
    pieces.push(text[start..].to_owned());
    pieces
}

/// The samples of a batch whose first chunk has the number `start`.
pub(super) fn samples(
    chunks: Vec<String>,
    records: u64,
    start: i64,
    at_ms: i64,
) -> Vec<MetricRecord> {
    let count = chunks.len() as i64;
    let of = |(index, text): (i64, String)| {
        let time = from_ms(start + index);
        let value = if index == 0 { records as f64 } else { 0.0 };
        let bytes = MetricRecord::new(SERVER, time, BYTES, text.len() as f64);
        let metadata = json!({ "at": at_ms, "rest": count - index - 1, "text": text });
        [MetricRecord::new(SERVER, time, BATCH, value).with_metadata(metadata), bytes]
    };
    (0..).zip(chunks).flat_map(of).collect()
}

/// Reads the chunks with numbers from `start` to before `end`.
pub(super) async fn read(store: &dyn StorageBackend, start: i64, end: i64) -> Result<Vec<Chunk>> {
    let range = TimeRange::new(from_ms(start), from_ms(end))?;
    let found = store.query_range(SERVER, BATCH, range).await?;
    found.into_iter().map(|record| chunk_of(record).ok_or_else(corrupt)).collect()
}

fn chunk_of(record: MetricRecord) -> Option<Chunk> {
    let (seq, records) = (floor_ms(record.timestamp), record.value as u64);
    let mut metadata = record.metadata?;
    let (at_ms, rest) = (metadata["at"].as_i64()?, metadata["rest"].as_i64()?);
    let Value::String(text) = metadata["text"].take() else { return None };
    Some(Chunk { seq, records, at_ms, rest, text })
}

/// How many chunks of the first batch are not among `chunks`.
pub(super) fn chunks_missing(chunks: &[Chunk]) -> Result<i64> {
    let Some(first) = chunks.first() else { return Ok(0) };
    if first.rest < 0 {
        return Err(corrupt());
    }
    Ok((first.rest + 1 - chunks.len() as i64).max(0))
}

/// Puts together the first batch, and those behind it that are complete and not too many.
pub(super) fn front(chunks: &[Chunk], records_max: usize) -> Result<Front> {
    let mut front = Front::default();
    let mut rest = chunks;
    while let Some(first) = rest.first() {
        let len = usize::try_from(first.rest).map_err(|_| corrupt())? + 1;
        let Some((batch, behind)) = rest.split_at_checked(len) else { break };
        let records = decode(batch)?;
        if !front.records.is_empty() && front.records.len() + records.len() > records_max {
            break;
        }
        front.records.extend(records);
        front.bytes += batch.iter().map(|chunk| chunk.text.len() as u64).sum::<u64>();
        front.end = batch.last().map_or(front.end, |last| last.seq + 1);
        rest = behind;
    }
    if front.records.is_empty() {
        return Err(corrupt());
    }
    front.next_at_ms = rest.first().map(|chunk| chunk.at_ms);
    Ok(front)
}

fn decode(chunks: &[Chunk]) -> Result<Vec<MetricRecord>> {
    let text: String = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
    let rows: Vec<OwnedRow> =
        serde_json::from_str(&text).map_err(|error| corrupt().with_source(error))?;
    let record = |OwnedRow(server_id, ms, metric_type, value, metadata)| MetricRecord {
        server_id,
        timestamp: from_ms(ms),
        metric_type,
        value,
        metadata,
    };
    Ok(rows.into_iter().map(record).collect())
}

fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "a batch in the spool does not decode")
        .with_operation("drain_step")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks_of(records: &[MetricRecord], start: i64) -> Vec<Chunk> {
        let samples = samples(encode(records).unwrap(), records.len() as u64, start, 77);
        let batches = samples.into_iter().filter(|sample| sample.metric_type == BATCH);
        batches.inspect(|sample| sample.validate().unwrap()).map(|s| chunk_of(s).unwrap()).collect()
    }

    #[test]
    fn batches_come_back_as_they_were_whatever_they_hold() {
        let mut deep = json!("x\"\\\u{1f}é🦀");
        for _ in 0..64 {
            deep = json!([deep]);
        }
        let large = json!("\"".repeat(32_000));
        let records: Vec<_> = (0..3000)
            .map(|no| {
                let record =
                    MetricRecord::new("a\"\\\n\u{7f}é", from_ms(no), "m", no as f64 / 7.0 - 3.0);
                match no % 1000 {
                    0 => record.with_metadata(deep.clone()),
                    1 => record.with_metadata(large.clone()),
                    _ => record,
                }
            })
            .collect();
        let chunks = chunks_of(&records, 5);
        assert!(chunks.len() > 3);
        let front = front(&chunks, 10).unwrap();
        assert_eq!(front.records, records);
        assert_eq!(front.end, 5 + chunks.len() as i64);
    }

    #[test]
    fn small_batches_are_taken_together_up_to_the_bound_and_incomplete_ones_left() {
        let batch: Vec<_> =
            (0..10).map(|no| MetricRecord::new("a", from_ms(no), "m", 1.0)).collect();
        let mut chunks: Vec<_> = (0..5).flat_map(|no| chunks_of(&batch, no)).collect();
        let taken = front(&chunks, 35).unwrap();
        assert_eq!((taken.records.len(), taken.end, taken.next_at_ms), (30, 3, Some(77)));
        chunks[4].rest = 1;
        assert_eq!(front(&chunks, 100).unwrap().records.len(), 40);
        assert_eq!(chunks_missing(&chunks[4..]).unwrap(), 1);
    }

    #[test]
    fn text_that_was_damaged_is_no_batch() {
        let mut chunks = chunks_of(&[MetricRecord::new("a", from_ms(0), "m", 1.0)], 0);
        chunks[0].text.pop();
        assert_eq!(front(&chunks, 9).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(chunk_of(MetricRecord::new("a", from_ms(0), BATCH, 1.0)).is_none());
    }
}
