//! Reads a Parquet file of the store: footer and index once, then the rows that are asked for.
//!
//! Only pages that hold such rows are read, each checked against its checksum before it is
//! decoded; what says where they lie has a checksum of its own. Whatever the file holds, reading gives
//! rows or an error that names the file.

use std::io::{self, Read};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use rustc_hash::FxHashMap;
use storage_core::metrics::time::is_sample_ms;
use storage_core::{Result, SeriesKey};

use crate::encode::{layout_of, pages_of};
use crate::error::{corrupt, from_parquet};
use crate::files::Source;
use crate::index::{IndexEntry, decode_index, decode_pages};
use crate::rows::{Names, Samples};
use crate::schema::{
    KEY_ENTRY, KEY_INDEX, KEY_LAYOUT, KEY_PAGES, METADATA, METRIC, SERVER, TIMESTAMP, VALUE,
    message,
};

/// Series with fewer rows in a file are not narrowed down to pages by time.
const NARROW_ROWS_MIN: u64 = 4_096;

/// Which columns a question needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Columns {
    All,
    /// Times and values.
    Numbers,
}

/// A file whose footer was read.
#[derive(Debug)]
pub(crate) struct DataFile {
    pub(crate) path: Arc<str>,
    pub(crate) index: Vec<IndexEntry>,
    metadata: ParquetMetaData,
    checksums: Arc<Checksums>,
    entry: String,
}

/// Length and checksum of each page, by its place.
type Checksums = FxHashMap<u64, (u64, u32)>;

impl DataFile {
    /// Reads the footer of a file.
    ///
    /// # Errors
    /// `Corrupt` if it is not a file of the store; what reading it fails with.
    pub(crate) fn open(source: &Source, names: &Mutex<Names>) -> Result<Self> {
        let path = &source.path;
        let reader = Checked { source: source.clone(), checksums: None };
        let metadata = guarded(path, || {
            ParquetMetaDataReader::new()
                .with_column_index_policy(PageIndexPolicy::Optional)
                .with_offset_index_policy(PageIndexPolicy::Optional)
                .parse_and_finish(&reader)
        })?;
        if metadata.file_metadata().schema() != &*message() {
            return Err(corrupt(path, "the file has another schema"));
        }
        let find = |key: &str| {
            let entries = metadata.file_metadata().key_value_metadata();
            let found = entries.into_iter().flatten().find(|entry| entry.key == key);
            found.and_then(|entry| entry.value.as_deref())
        };
        let text = |key: &str| {
            find(key).ok_or_else(|| {
                corrupt(path, format!("the footer lacks {key}: the store did not write this file"))
            })
        };
        let named = |error: storage_core::Error| error.with_context(crate::error::FILE, path);
        let index = {
            let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
            decode_index(text(KEY_INDEX)?, &mut names).map_err(named)?
        };
        let checksums = decode_pages(text(KEY_PAGES)?).map_err(named)?;
        let entry = text(KEY_ENTRY)?.to_owned();
        let (pages, layout) = guarded(path, || Ok((pages_of(&metadata), layout_of(&metadata))))?;
        // Files of earlier versions have none.
        if find(KEY_LAYOUT).is_some_and(|expected| expected != layout) {
            return Err(corrupt(path, "the checksum of the page index does not match"));
        }
        let pages = pages.filter(|pages| pages.len() == checksums.len());
        let pages = pages.ok_or_else(|| corrupt(path, "pages and checksums differ in number"))?;
        let rows: i64 = metadata.row_groups().iter().map(|group| group.num_rows()).sum();
        if index.last().map_or(0, |last| last.end) != rows as u64 {
            return Err(corrupt(path, "index and footer differ in the number of rows"));
        }
        let pairs = pages.into_iter().zip(checksums);
        let checksums = pairs.map(|((start, length), checksum)| (start, (length, checksum)));
        let checksums = Arc::new(checksums.collect());
        Ok(Self { path: Arc::clone(path), index, metadata, checksums, entry })
    }

    /// What the file is to the store.
    pub(crate) fn entry(&self) -> &str {
        &self.entry
    }

    pub(crate) fn rows(&self) -> u64 {
        self.index.last().map_or(0, |last| last.end)
    }

    /// Memory taken, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.metadata.memory_size() + self.index.len() * 48 + self.checksums.len() * 32 + 256
    }

    /// The earliest and the latest time.
    pub(crate) fn extent(&self) -> Option<(i64, i64)> {
        let earliest = self.index.iter().map(|entry| entry.min_ms).min()?;
        Some((earliest, self.index.iter().map(|entry| entry.max_ms).max()?))
    }

    /// The rows of a series.
    pub(crate) fn find(&self, key: &SeriesKey) -> Option<&IndexEntry> {
        let place = self.index.binary_search_by(|entry| (*entry.key).cmp(key)).ok()?;
        Some(&self.index[place])
    }

    /// Returns the rows of `entry` that can lie in `[start_ms, end_ms)`: those of whole pages.
    pub(crate) fn narrow(&self, entry: &IndexEntry, start_ms: i64, end_ms: i64) -> Range<u64> {
        let rows = entry.rows();
        if entry.count() < NARROW_ROWS_MIN || (start_ms <= entry.min_ms && end_ms > entry.max_ms) {
            return rows;
        }
        let (mut from, mut to) = (rows.start, rows.end);
        for (page, min_ms, max_ms) in self.pages_inside(&rows) {
            if max_ms < start_ms {
                from = from.max(page.end);
            } else if min_ms >= end_ms {
                to = to.min(page.start);
            }
        }
        from..to.max(from)
    }

    /// The pages of the time that lie whole inside `rows`, with the bounds of their times.
    pub(crate) fn pages_inside(&self, rows: &Range<u64>) -> Vec<(Range<u64>, i64, i64)> {
        let mut found = Vec::new();
        let mut first = 0u64;
        for (number, group) in self.metadata.row_groups().iter().enumerate() {
            let end = first + group.num_rows() as u64;
            let index =
                self.metadata.column_index().and_then(|all| all.get(number)?.get(TIMESTAMP));
            let offsets =
                self.metadata.offset_index().and_then(|all| all.get(number)?.get(TIMESTAMP));
            let (Some(ColumnIndexMetaData::INT64(bounds)), Some(offsets)) = (index, offsets) else {
                return Vec::new();
            };
            let starts =
                offsets.page_locations().iter().map(|page| first + page.first_row_index as u64);
            let ends = starts.clone().skip(1).chain([end]);
            for (place, (start, end)) in starts.zip(ends).enumerate() {
                let inside = rows.start <= start && end <= rows.end;
                if let (true, Some(min), Some(max)) =
                    (inside, bounds.min_value(place), bounds.max_value(place))
                {
                    found.push((start..end, *min, *max));
                }
            }
            first = end;
        }
        found
    }

    /// Reads rows, given as ranges in order; without metadata where it is not asked for.
    pub(crate) fn read(
        &self,
        source: &Source,
        ranges: &[Range<u64>],
        columns: Columns,
    ) -> Result<Samples> {
        let reader = Arc::new(Checked {
            source: source.clone(),
            checksums: Some(Arc::clone(&self.checksums)),
        });
        let samples = guarded(&self.path, || self.read_columns(&reader, ranges, columns))?;
        let expected: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let sane = samples.ms.iter().all(|ms| is_sample_ms(*ms))
            && samples.values.iter().all(|value| value.is_finite());
        if samples.len() as u64 != expected || samples.values.len() != samples.len() || !sane {
            return Err(corrupt(&self.path, "the rows are not as the footer says"));
        }
        Ok(samples)
    }

    fn read_columns(
        &self,
        reader: &Arc<Checked>,
        ranges: &[Range<u64>],
        columns: Columns,
    ) -> ParquetResult<Samples> {
        let mut samples = Samples::default();
        samples.ms = self.read_column::<Int64Type>(reader, TIMESTAMP, ranges, None)?;
        samples.values = self.read_column::<DoubleType>(reader, VALUE, ranges, None)?;
        if columns == Columns::All && self.has_metadata() {
            let mut levels = Vec::new();
            let texts =
                self.read_column::<ByteArrayType>(reader, METADATA, ranges, Some(&mut levels))?;
            let mut texts = texts.iter().map(text_of);
            let present = |level: &i16| (*level == 1).then(|| texts.next()).flatten().transpose();
            samples.set_metadata(levels.iter().map(present).collect::<ParquetResult<_>>()?);
        }
        Ok(samples)
    }

    /// Whether any row has metadata: where none has, the column takes no bytes worth reading.
    fn has_metadata(&self) -> bool {
        // A dictionary page is there as soon as there is a value.
        self.metadata
            .row_groups()
            .iter()
            .any(|group| group.column(METADATA).dictionary_page_offset().is_some())
    }

    /// Reads rows of one column; of one that may be null, the values there are, and to `levels` a 1
    /// for each of them and a 0 for each null.
    fn read_column<T: DataType>(
        &self,
        reader: &Arc<Checked>,
        column: usize,
        ranges: &[Range<u64>],
        mut levels: Option<&mut Vec<i16>>,
    ) -> ParquetResult<Vec<T::T>> {
        let mut found = Vec::new();
        let mut first = 0u64;
        for (number, group) in self.metadata.row_groups().iter().enumerate() {
            let rows = group.num_rows() as u64;
            let inside = ranges.iter().filter_map(|range| {
                let (start, end) = (range.start.max(first), range.end.min(first + rows));
                (start < end).then(|| start - first..end - first)
            });
            let inside: Vec<_> = inside.collect();
            first += rows;
            if inside.is_empty() {
                continue;
            }
            let chunk = group.column(column);
            let offsets = self.metadata.offset_index().and_then(|all| all.get(number)?.get(column));
            let locations = offsets.map(|offsets| offsets.page_locations().clone());
            let pages =
                SerializedPageReader::new(Arc::clone(reader), chunk, rows as usize, locations)?;
            let mut values = ColumnReaderImpl::<T>::new(chunk.column_descr_ptr(), Box::new(pages));
            read_ranges(&mut values, &inside, levels.as_deref_mut(), &mut found)?;
        }
        Ok(found)
    }

    /// Reads the names of rows: for a check of the index, which otherwise stands for them.
    pub(crate) fn read_names(
        &self,
        source: &Source,
        rows: Range<u64>,
    ) -> Result<Vec<(Arc<str>, Arc<str>)>> {
        let reader = Arc::new(Checked {
            source: source.clone(),
            checksums: Some(Arc::clone(&self.checksums)),
        });
        let all = [rows];
        guarded(&self.path, || {
            let servers = self.read_column::<ByteArrayType>(&reader, SERVER, &all, None)?;
            let metrics = self.read_column::<ByteArrayType>(&reader, METRIC, &all, None)?;
            let pairs = servers.iter().zip(&metrics);
            pairs.map(|(server, metric)| Ok((text_of(server)?, text_of(metric)?))).collect()
        })
    }
}

fn text_of(bytes: &ByteArray) -> ParquetResult<Arc<str>> {
    std::str::from_utf8(bytes.data())
        .map(Arc::from)
        .map_err(|_| ParquetError::General("a text is no UTF-8".to_owned()))
}

fn read_ranges<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    ranges: &[Range<u64>],
    mut levels: Option<&mut Vec<i16>>,
    found: &mut Vec<T::T>,
) -> ParquetResult<()> {
    let mut place = 0;
    for range in ranges {
        reader.skip_records((range.start - place) as usize)?;
        place = range.end;
        let mut left = (range.end - range.start) as usize;
        while left > 0 {
            let (records, ..) = reader.read_records(left, levels.as_deref_mut(), None, found)?;
            if records == 0 {
                return Err(ParquetError::General("a column ends early".to_owned()));
            }
            left -= records;
        }
    }
    Ok(())
}

/// Runs the decoder, which may panic over bytes that nobody has written on purpose.
pub(crate) fn guarded<T>(path: &str, decode: impl FnOnce() -> ParquetResult<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(decoded) => decoded.map_err(|error| from_parquet(error, path)),
        Err(_) => Err(corrupt(path, "the file makes the decoder fail")),
    }
}

/// Pages and bytes read since the start of the process: what a question touched.
pub(crate) static BYTES_READ: AtomicU64 = AtomicU64::new(0);

/// Reads parts of a file; pages only if they are as they were written.
struct Checked {
    source: Source,
    checksums: Option<Arc<Checksums>>,
}

impl Length for Checked {
    fn len(&self) -> u64 {
        self.source.bytes
    }
}

impl ChunkReader for Checked {
    type T = io::BufReader<Rest>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        let rest = Rest { source: self.source.clone(), place: start };
        Ok(io::BufReader::with_capacity(64 << 10, rest))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let read = self.source.reader.read_at(start, length);
        let bytes =
            read.map_err(|error| ParquetError::External(Box::new(io::Error::other(error))))?;
        BYTES_READ.fetch_add(length as u64, Ordering::Relaxed);
        let Some(checksums) = &self.checksums else { return Ok(bytes) };
        match checksums.get(&start) {
            Some((expected, checksum))
                if *expected == length as u64 && crc32fast::hash(&bytes) == *checksum =>
            {
                Ok(bytes)
            }
            Some(_) => Err(ParquetError::General(format!(
                "the checksum of the page at byte {start} does not match"
            ))),
            None => Err(ParquetError::General(format!("there is no page at byte {start}"))),
        }
    }
}

/// The file from a place on.
struct Rest {
    source: Source,
    place: u64,
}

impl Read for Rest {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.source.bytes.saturating_sub(self.place);
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if length == 0 {
            return Ok(0);
        }
        let bytes = self.source.reader.read_at(self.place, length).map_err(io::Error::other)?;
        buffer[..length].copy_from_slice(&bytes);
        self.place += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::encode_fast;
    use crate::files::{Files, LocalFiles};
    use crate::read::read_into;
    use crate::rows::Rows;
    use std::path::Path;
    use storage_core::ErrorKind;

    const ROWS: i64 = 86_400;

    /// A file of one series with a sample each second of a day, all but the pages apart.
    fn day() -> (Vec<u8>, usize) {
        let mut samples = Samples::default();
        (0..ROWS).for_each(|no| samples.push(no * 1000, 1.0, None));
        let mut rows = Rows::default();
        rows.push(&Arc::new(SeriesKey::new("a", "b")), samples.as_slice());
        let bytes = encode_fast(&rows, "{}").unwrap().bytes.to_vec();
        let dir = tempfile::tempdir().unwrap();
        let file = open(dir.path(), &bytes).unwrap().0;
        let end = file.checksums.iter().map(|(start, (length, _))| start + length).max();
        (bytes, end.unwrap() as usize)
    }

    fn open(dir: &Path, bytes: &[u8]) -> Result<(DataFile, Source)> {
        std::fs::write(dir.join("x"), bytes).unwrap();
        let source = LocalFiles::new(dir.to_owned()).open("x")?.unwrap();
        Ok((DataFile::open(&source, &Mutex::default())?, source))
    }

    /// The times that a question about a part of the day finds.
    fn times(file: &DataFile, source: &Source, start_ms: i64, end_ms: i64) -> Result<Vec<i64>> {
        let entry = &file.index[0];
        let rows = [(entry, file.narrow(entry, start_ms, end_ms))];
        let mut found = Vec::new();
        let within = (start_ms, end_ms);
        read_into(file, source, &rows, within, Columns::Numbers, |_, slice| {
            found.extend_from_slice(slice.ms);
        })?;
        Ok(found)
    }

    #[test]
    fn whatever_bit_flips_behind_the_pages_no_row_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, end) = day();
        let mut noticed = 0;
        for byte in end..whole.len() {
            let mut broken = whole.clone();
            broken[byte] ^= 1 << (byte % 8);
            let found = open(dir.path(), &broken).and_then(|(file, source)| {
                let hours = [0, 7, 13, 23].map(|hour| (hour * 3600, (hour + 1) * 3600));
                hours
                    .map(|(from, to)| (from, to, times(&file, &source, from * 1000, to * 1000)))
                    .into_iter()
                    .try_for_each(|(from, to, times)| {
                        assert!(times?.into_iter().eq((from..to).map(|no| no * 1000)), "{byte}");
                        Ok(())
                    })
            });
            if let Err(error) = found {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {byte}: {error:#}");
                noticed += 1;
            }
        }
        assert!(noticed > 200, "{noticed} of {}", whole.len() - end);
    }

    #[test]
    fn files_of_earlier_versions_have_no_checksum_of_the_layout_and_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let (mut bytes, _) = day();
        let key = KEY_LAYOUT.as_bytes();
        let place = bytes.windows(key.len()).rposition(|part| part == key).unwrap();
        bytes[place] = b'x';
        let (file, source) = open(dir.path(), &bytes).unwrap();
        assert_eq!(times(&file, &source, 0, i64::MAX).unwrap().len(), ROWS as usize);
    }
}
