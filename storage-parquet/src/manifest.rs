//! What the store consists of at one version: files, totals of series, and rows not merged yet.
//!
//! A version is an entry of the log, applied to the state before it; a checkpoint is a state
//! written out, so that nobody has to start from the first entry. Both are JSON, the entries in the
//! footers of the files of the log.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use storage_core::{Error, ErrorKind, Result, SeriesKey};

use crate::error::corrupt;
use crate::file::DataFile;
use crate::files::Stamp;
use crate::rows::Rows;
use crate::schema::FORMAT;

/// The largest checkpoint that is unpacked.
const CHECKPOINT_BYTES_MAX: u64 = 4 << 30;

/// A file of merged rows. Those of one day or hour hold different series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileEntry {
    pub(crate) path: String,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    /// The day or hour that all its samples lie in: first millisecond, and first after.
    pub(crate) start_ms: i64,
    pub(crate) end_ms: i64,
    /// The earliest and the latest sample.
    pub(crate) min_ms: i64,
    pub(crate) max_ms: i64,
    /// The first and the last series.
    pub(crate) first: SeriesKey,
    pub(crate) last: SeriesKey,
}

/// What the merged files hold of one series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Total {
    pub(crate) count: u64,
    pub(crate) oldest_ms: i64,
    pub(crate) newest_ms: i64,
}

/// A series and its total, as JSON has it; a count of 0 means that the series is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SeriesTotal {
    pub(crate) server_id: String,
    pub(crate) metric_type: String,
    pub(crate) count: u64,
    pub(crate) oldest_ms: i64,
    pub(crate) newest_ms: i64,
}

/// An entry of the log: what one commit changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) format: u32,
    /// Tells the commits of all writers apart.
    pub(crate) id: String,
    pub(crate) change: Change,
}

/// What a commit changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Change {
    /// The first entry: the store comes into being.
    Create,
    /// The rows of the entry's own file are added.
    Write,
    /// Files take the place of others and of all rows written up to an entry.
    Rewrite { consumed: u64, added: Vec<FileEntry>, removed: Vec<String>, series: Vec<SeriesTotal> },
}

impl Entry {
    pub(crate) fn new(change: Change) -> Self {
        let id = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        Self { format: FORMAT, id, change }
    }

    /// The JSON of the entry, its checksum in front.
    pub(crate) fn to_text(&self) -> Result<String> {
        let json = serde_json::to_string(self).map_err(|error| {
            Error::new(ErrorKind::Internal, "an entry cannot be written").with_source(error)
        })?;
        Ok(format!("{:08x}{json}", crc32fast::hash(json.as_bytes())))
    }

    /// Reads the entry of the file at `path`.
    ///
    /// # Errors
    /// `VersionMismatch` if a newer version wrote it, `Corrupt` if it does not decode.
    pub(crate) fn parse(text: &str, path: &str) -> Result<Self> {
        let (checksum, json) =
            text.split_at_checked(8).ok_or_else(|| corrupt(path, "the entry is cut"))?;
        if u32::from_str_radix(checksum, 16).ok() != Some(crc32fast::hash(json.as_bytes())) {
            return Err(corrupt(path, "the checksum of the entry does not match"));
        }
        check_format(json.as_bytes(), path)?;
        serde_json::from_str(json)
            .map_err(|error| corrupt(path, "the entry does not decode").with_source(error))
    }
}

/// Refuses what a newer version wrote, before anything else of it is looked at.
fn check_format(json: &[u8], path: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let found: Version = serde_json::from_slice(json)
        .map_err(|error| corrupt(path, "the format is not stated").with_source(error))?;
    if found.format <= FORMAT {
        return Ok(());
    }
    Err(Error::new(ErrorKind::VersionMismatch, "a newer version of this library wrote the store")
        .with_context(crate::error::FILE, path)
        .with_context("found", found.format)
        .with_context("supported", FORMAT))
}

/// Rows of entries of the log that follow each other and are not merged into files yet.
#[derive(Debug, Clone)]
pub(crate) struct Fresh {
    /// The first and the last entry.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) min_ms: i64,
    pub(crate) max_ms: i64,
    pub(crate) rows: FreshRows,
}

/// Where they are.
#[derive(Debug, Clone)]
pub(crate) enum FreshRows {
    /// In memory, one sample per series and millisecond.
    Memory(Arc<Rows>),
    /// In the file of the log: a batch too large to be held.
    File(Arc<DataFile>),
}

impl Fresh {
    pub(crate) fn len(&self) -> u64 {
        match &self.rows {
            FreshRows::Memory(rows) => rows.len() as u64,
            FreshRows::File(file) => file.rows(),
        }
    }

    pub(crate) fn overlaps(&self, start_ms: i64, end_ms: i64) -> bool {
        self.min_ms < end_ms && self.max_ms >= start_ms
    }
}

/// The state of a store after an entry of its log.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// The entry.
    pub(crate) version: u64,
    /// Which file that was, so that it cannot be mistaken for another in its place.
    pub(crate) stamp: Stamp,
    /// The last entry whose rows are all in files.
    pub(crate) consumed: u64,
    /// By time, then by series; different times or different series, always.
    pub(crate) files: Arc<Vec<Arc<FileEntry>>>,
    /// What the files hold of each series.
    pub(crate) totals: Arc<BTreeMap<Arc<SeriesKey>, Total>>,
    /// What was written later, oldest first.
    pub(crate) fresh: Vec<Fresh>,
    /// The entries whose rows those are.
    pub(crate) fresh_entries: Vec<FreshEntry>,
    /// The last entry that rewrote files.
    pub(crate) rewritten: u64,
}

/// An entry of the log whose rows are not in files yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FreshEntry {
    pub(crate) version: u64,
    pub(crate) min_ms: i64,
}

/// Rows that are merged in memory into one piece at most; two neighbours of similar size become one,
/// so that a question has few pieces to look into.
const PIECE_ROWS_MAX: usize = 262_144;

impl State {
    /// The state in which there is nothing, at the first entry.
    pub(crate) fn empty(stamp: Stamp) -> Self {
        Self {
            version: 0,
            stamp,
            consumed: 0,
            files: Arc::default(),
            totals: Arc::default(),
            fresh: Vec::new(),
            fresh_entries: Vec::new(),
            rewritten: 0,
        }
    }

    /// The state of a checkpoint, whose entry of the log has this stamp.
    pub(crate) fn of_checkpoint(
        checkpoint: Checkpoint,
        stamp: Stamp,
        intern: &mut impl FnMut(&str, &str) -> Arc<SeriesKey>,
    ) -> Self {
        let mut state = Self::empty(stamp.clone());
        let Checkpoint { version, consumed, files, series, .. } = checkpoint;
        let change = Rewritten { consumed, added: files, removed: Default::default(), series };
        state.apply_rewrite(version, stamp, change, intern);
        state
    }

    /// Rows that are not in files yet.
    pub(crate) fn fresh_rows(&self) -> u64 {
        self.fresh.iter().map(Fresh::len).sum()
    }

    /// The merged files whose day or hour overlaps a range, by time, then by series.
    pub(crate) fn files_between(&self, start_ms: i64, end_ms: i64) -> &[Arc<FileEntry>] {
        let from = self.files.partition_point(|file| file.end_ms <= start_ms);
        let to = from + self.files[from..].partition_point(|file| file.start_ms < end_ms);
        &self.files[from..to]
    }

    /// Applies rows written by the next entry.
    pub(crate) fn apply_write(&mut self, version: u64, stamp: Stamp, fresh: Option<Fresh>) {
        (self.version, self.stamp) = (version, stamp);
        if let Some(fresh) = fresh {
            self.apply_fresh(version, fresh);
        }
    }

    /// Adds the rows of an entry, which are newer than all others.
    pub(crate) fn apply_fresh(&mut self, version: u64, fresh: Fresh) {
        self.fresh_entries.push(FreshEntry { version, min_ms: fresh.min_ms });
        self.add(fresh);
    }

    /// Adds rows that are newer than all others.
    pub(crate) fn add(&mut self, fresh: Fresh) {
        self.fresh.push(fresh);
        while let [.., before, last] = self.fresh.as_slice() {
            let (FreshRows::Memory(old), FreshRows::Memory(new)) = (&before.rows, &last.rows)
            else {
                break;
            };
            if old.len() > 2 * new.len() || old.len() + new.len() > PIECE_ROWS_MAX {
                break;
            }
            let joined = Fresh {
                first: before.first,
                last: last.last,
                min_ms: before.min_ms.min(last.min_ms),
                max_ms: before.max_ms.max(last.max_ms),
                rows: FreshRows::Memory(Arc::new(crate::rows::merge(&[&**old, &**new]))),
            };
            self.fresh.truncate(self.fresh.len() - 2);
            self.fresh.push(joined);
        }
    }

    /// Applies the next entry, which puts files in the place of others and of fresh rows. Pieces of
    /// fresh rows that were merged in part are gone whole: the entries that have to be read
    /// again are returned, from the first to the last.
    pub(crate) fn apply_rewrite(
        &mut self,
        version: u64,
        stamp: Stamp,
        change: Rewritten,
        intern: &mut impl FnMut(&str, &str) -> Arc<SeriesKey>,
    ) -> Vec<(u64, u64)> {
        (self.version, self.stamp) = (version, stamp);
        let Rewritten { consumed, added, removed, series } = change;
        (self.consumed, self.rewritten) = (consumed, version);
        self.fresh_entries.retain(|entry| entry.version > consumed);
        let mut again = Vec::new();
        self.fresh.retain(|piece| {
            if piece.first <= consumed && piece.last > consumed {
                again.push((consumed + 1, piece.last));
            }
            piece.first > consumed
        });
        let files = Arc::make_mut(&mut self.files);
        files.retain(|file| !removed.contains(&file.path));
        files.extend(added.into_iter().map(Arc::new));
        files.sort_by(|one, other| (one.start_ms, &one.first).cmp(&(other.start_ms, &other.first)));
        let totals = Arc::make_mut(&mut self.totals);
        for SeriesTotal { server_id, metric_type, count, oldest_ms, newest_ms } in series {
            let key = intern(&server_id, &metric_type);
            match count {
                0 => totals.remove(&key),
                count => totals.insert(key, Total { count, oldest_ms, newest_ms }),
            };
        }
        again
    }
}

/// The parts of [`Change::Rewrite`].
#[derive(Debug)]
pub(crate) struct Rewritten {
    pub(crate) consumed: u64,
    pub(crate) added: Vec<FileEntry>,
    pub(crate) removed: rustc_hash::FxHashSet<String>,
    pub(crate) series: Vec<SeriesTotal>,
}

/// A state as it is written out.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Checkpoint {
    pub(crate) format: u32,
    pub(crate) version: u64,
    pub(crate) consumed: u64,
    pub(crate) files: Vec<FileEntry>,
    pub(crate) series: Vec<SeriesTotal>,
}

impl Checkpoint {
    pub(crate) fn of(state: &State) -> Self {
        let series = state.totals.iter().map(|(key, total)| series_total(key, *total));
        Self {
            format: FORMAT,
            version: state.version,
            consumed: state.consumed,
            files: state.files.iter().map(|file| FileEntry::clone(file)).collect(),
            series: series.collect(),
        }
    }

    /// The bytes of the checkpoint's file, checksum included.
    pub(crate) fn to_bytes(&self) -> Result<Bytes> {
        let failed = |error: String| {
            Error::new(ErrorKind::Internal, "a checkpoint cannot be written").with_source(error)
        };
        let json = serde_json::to_vec(self).map_err(|error| failed(error.to_string()))?;
        let pack = || -> std::io::Result<Vec<u8>> {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3)?;
            encoder.include_checksum(true)?;
            std::io::Write::write_all(&mut encoder, &json)?;
            encoder.finish()
        };
        Ok(Bytes::from(pack().map_err(|error| failed(error.to_string()))?))
    }

    /// Reads the checkpoint at `path`.
    ///
    /// # Errors
    /// `VersionMismatch` if a newer version wrote it, `Corrupt` if it does not decode.
    pub(crate) fn parse(bytes: &[u8], path: &str) -> Result<Self> {
        Self::decode(bytes, path)
    }

    /// Reads of the checkpoint at `path` which entry is the last whose rows are all in files.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub(crate) fn consumed(bytes: &[u8], path: &str) -> Result<u64> {
        #[derive(Deserialize)]
        struct Consumed {
            consumed: u64,
        }
        Ok(Self::decode::<Consumed>(bytes, path)?.consumed)
    }

    fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8], path: &str) -> Result<T> {
        let mut json = Vec::new();
        let unpacked = zstd::stream::read::Decoder::new(bytes)
            .and_then(|decoder| decoder.take(CHECKPOINT_BYTES_MAX).read_to_end(&mut json));
        unpacked.map_err(|error| corrupt(path, "the checkpoint is damaged").with_source(error))?;
        check_format(&json, path)?;
        serde_json::from_slice(&json)
            .map_err(|error| corrupt(path, "the checkpoint does not decode").with_source(error))
    }
}

/// The total of a series as JSON has it.
pub(crate) fn series_total(key: &SeriesKey, total: Total) -> SeriesTotal {
    let Total { count, oldest_ms, newest_ms } = total;
    SeriesTotal {
        server_id: key.server_id.clone(),
        metric_type: key.metric_type.clone(),
        count,
        oldest_ms,
        newest_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite() -> Entry {
        let file = FileEntry {
            path: "data/x".to_owned(),
            rows: 1,
            bytes: 2,
            start_ms: 0,
            end_ms: 10,
            min_ms: 1,
            max_ms: 1,
            first: SeriesKey::new("a", "b"),
            last: SeriesKey::new("a", "b"),
        };
        let total = Total { count: 1, oldest_ms: 1, newest_ms: 1 };
        let series = vec![series_total(&SeriesKey::new("a", "b"), total)];
        Entry::new(Change::Rewrite { consumed: 3, added: vec![file], removed: vec![], series })
    }

    #[test]
    fn entries_round_trip_and_every_flipped_bit_is_noticed() {
        for entry in [rewrite(), Entry::new(Change::Write), Entry::new(Change::Create)] {
            let text = entry.to_text().unwrap();
            assert_eq!(Entry::parse(&text, "log/1").unwrap(), entry);
            for bit in 0..text.len() * 8 {
                let mut broken = text.clone().into_bytes();
                broken[bit / 8] ^= 1 << (bit % 8);
                let Ok(broken) = String::from_utf8(broken) else { continue };
                // The case of a digit of the checksum is no difference.
                if broken.eq_ignore_ascii_case(&text) {
                    continue;
                }
                let error = Entry::parse(&broken, "log/1").unwrap_err();
                assert_eq!(error.context("file"), Some("log/1"));
            }
        }
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let json = r#"{"format":99,"id":"x","change":"unheard_of"}"#;
        let text = format!("{:08x}{json}", crc32fast::hash(json.as_bytes()));
        let error = Entry::parse(&text, "log/1").unwrap_err();
        assert_eq!(
            (error.kind(), error.context("found")),
            (ErrorKind::VersionMismatch, Some("99"))
        );
    }

    #[test]
    fn a_checkpoint_torn_at_any_byte_is_noticed() {
        let Change::Rewrite { added, series, .. } = rewrite().change else { panic!() };
        let checkpoint =
            Checkpoint { format: FORMAT, version: 7, consumed: 3, files: added, series };
        let bytes = checkpoint.to_bytes().unwrap();
        assert_eq!(Checkpoint::parse(&bytes, "c").unwrap().version, 7);
        for length in 0..bytes.len() {
            assert!(Checkpoint::parse(&bytes[..length], "c").is_err(), "{length} bytes");
        }
        for byte in 0..bytes.len() {
            let mut broken = bytes.to_vec();
            broken[byte] ^= 0x40;
            if let Ok(parsed) = Checkpoint::parse(&broken, "c") {
                assert_eq!(parsed.version, 7, "byte {byte}");
            }
        }
    }
}
