//! Writes a Parquet file: row groups as they fill, then the footer with index and checksums.
//!
//! A file is made in memory, which bounds its size, and handed on whole. The library writes no
//! checksums, neither of pages nor of what says where they lie; they are computed here, once the places
//! of the pages are known, and the footer is written anew with them.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    FileMetaData, KeyValue, ParquetMetaData, ParquetMetaDataBuilder, ParquetMetaDataWriter,
};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter, TrackedWrite};
use storage_core::{Error, ErrorKind, Result, SeriesKey};

use crate::index::{IndexEntry, encode_index, encode_pages};
use crate::rows::{Rows, Slice};
use crate::schema::{
    GROUP_ROWS_MAX, KEY_ENTRY, KEY_INDEX, KEY_LAYOUT, KEY_PAGES, TIMESTAMP, ValueEncoding, message,
    properties,
};

/// Values that are tried to choose an encoding, in pieces from all over the rows.
const SAMPLE_VALUES: usize = 32_768;
const SAMPLE_PIECE: usize = 4_096;

/// Fewer values than these are not worth a trial.
const TRIAL_VALUES_MIN: usize = 2_048;

/// Names that are handed to the writer at once.
const NAMES_AT_ONCE: usize = 8_192;

/// Copies of the name of a long series that are handed to the writer at once.
const COPIES: usize = 128;

/// A file that is complete.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Bytes,
    pub(crate) index: Vec<IndexEntry>,
}

impl Encoded {
    pub(crate) fn rows(&self) -> u64 {
        self.index.last().map_or(0, |last| last.end)
    }
}

/// A file in the making.
pub(crate) struct Encoder {
    /// Chosen with the first row group.
    writer: Option<SerializedFileWriter<Vec<u8>>>,
    encoding: Option<ValueEncoding>,
    group_rows: usize,
    pending: Rows,
    index: Vec<IndexEntry>,
}

impl Encoder {
    /// Starts a file; without `encoding` it is chosen from the first rows. Some `group_rows` rows are
    /// held until they are encoded.
    pub(crate) fn new(encoding: Option<ValueEncoding>, group_rows: usize) -> Self {
        let (pending, index) = (Rows::default(), Vec::new());
        Self { writer: None, encoding, group_rows, pending, index }
    }

    /// Adds samples of a series: the same as before, later ones, or the next one in order.
    pub(crate) fn push(&mut self, key: &Arc<SeriesKey>, mut slice: Slice<'_>) -> Result<()> {
        self.note(key, slice);
        while !slice.is_empty() {
            let room = (self.group_rows - self.pending.len()).min(slice.len());
            self.pending.push(key, slice.part(0, room));
            slice = slice.part(room, slice.len());
            if self.pending.len() == self.group_rows {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn note(&mut self, key: &Arc<SeriesKey>, slice: Slice<'_>) {
        let (Some(first), Some(last)) = (slice.ms.first(), slice.ms.last()) else { return };
        let start = self.index.last().map_or(0, |before| before.end);
        let end = start + slice.len() as u64;
        match self.index.last_mut() {
            Some(before) if before.key == *key => (before.end, before.max_ms) = (end, *last),
            _ => self.index.push(IndexEntry {
                key: Arc::clone(key),
                start,
                end,
                min_ms: *first,
                max_ms: *last,
            }),
        }
    }

    /// Bytes of the row groups that are complete.
    pub(crate) fn bytes(&self) -> usize {
        self.writer.as_ref().map_or(0, SerializedFileWriter::bytes_written)
    }

    /// The series that came last.
    pub(crate) fn last_key(&self) -> Option<&Arc<SeriesKey>> {
        self.index.last().map(|entry| &entry.key)
    }

    fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.pending);
        let encoding = match self.encoding {
            Some(encoding) => encoding,
            None => *self.encoding.insert(choose_encoding(&rows).map_err(failed)?),
        };
        if self.writer.is_none() {
            let writer = SerializedFileWriter::new(Vec::new(), message(), properties(encoding));
            self.writer = Some(writer.map_err(failed)?);
        }
        match &mut self.writer {
            Some(writer) if !rows.is_empty() => write_group(writer, &rows).map_err(failed),
            _ => Ok(()),
        }
    }

    /// Completes the file; `entry` says what it is to the store.
    pub(crate) fn finish(mut self, entry: &str) -> Result<Encoded> {
        self.flush()?;
        let mut writer =
            self.writer.ok_or_else(|| Error::new(ErrorKind::Internal, "no writer was made"))?;
        let metadata = writer.finish().map_err(failed)?;
        let body = std::mem::take(writer.inner_mut());
        let index = encode_index(&self.index)?;
        let bytes = with_footer(body, &metadata, entry, index)?;
        Ok(Encoded { bytes: Bytes::from(bytes), index: self.index })
    }
}

/// Returns a file without rows that carries an entry of the log.
pub(crate) fn encode_empty(entry: &str) -> Result<Bytes> {
    Ok(Encoder::new(Some(ValueEncoding::Plain), GROUP_ROWS_MAX).finish(entry)?.bytes)
}

/// Returns the whole of `rows` as one file, made to be written fast.
pub(crate) fn encode_fast(rows: &Rows, entry: &str) -> Result<Encoded> {
    let mut encoder = Encoder::new(Some(ValueEncoding::Plain), GROUP_ROWS_MAX);
    for (key, slice) in rows.iter() {
        encoder.push(key, slice)?;
    }
    encoder.finish(entry)
}

fn failed(error: ParquetError) -> Error {
    Error::new(ErrorKind::Internal, "a file cannot be encoded").with_source(error)
}

/// Writes rows as the next row group of a file.
pub(crate) fn write_group<W: Write + Send>(
    writer: &mut SerializedFileWriter<W>,
    rows: &Rows,
) -> Result<(), ParquetError> {
    let mut group = writer.next_row_group()?;
    write_names(&mut group, rows, |key| &key.server_id)?;
    let times = rows.times();
    write_column(&mut group, |column| column.typed::<Int64Type>().write_batch(times, None, None))?;
    write_names(&mut group, rows, |key| &key.metric_type)?;
    let values = rows.values();
    write_column(&mut group, |column| {
        column.typed::<DoubleType>().write_batch(values, None, None)
    })?;
    write_metadata(&mut group, rows)?;
    group.close()?;
    Ok(())
}

type Column<'a> = parquet::file::writer::SerializedColumnWriter<'a>;

fn write_column<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    write: impl FnOnce(&mut Column<'_>) -> Result<usize, ParquetError>,
) -> Result<(), ParquetError> {
    let column = group.next_column()?;
    let mut column =
        column.ok_or_else(|| ParquetError::General("the schema lacks a column".to_owned()))?;
    write(&mut column)?;
    column.close()
}

fn write_names<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    rows: &Rows,
    name_of: impl Fn(&SeriesKey) -> &String,
) -> Result<(), ParquetError> {
    write_column(group, |column| {
        let typed = column.typed::<ByteArrayType>();
        let mut names: Vec<ByteArray> = Vec::with_capacity(NAMES_AT_ONCE);
        for (key, slice) in rows.iter() {
            let name = ByteArray::from(name_of(key).as_bytes().to_vec());
            let mut left = slice.len();
            // A long series hands the same few copies over again and again: to make and to drop a
            // copy for each row takes longer than to encode it.
            if left >= 2 * COPIES {
                typed.write_batch(&names, None, None)?;
                names.clear();
                names.resize(COPIES, name.clone());
                while left >= COPIES {
                    typed.write_batch(&names, None, None)?;
                    left -= COPIES;
                }
                names.truncate(left);
            } else {
                names.resize(names.len() + left, name);
            }
            if names.len() >= NAMES_AT_ONCE {
                typed.write_batch(&names, None, None)?;
                names.clear();
            }
        }
        typed.write_batch(&names, None, None)
    })
}

fn write_metadata<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    rows: &Rows,
) -> Result<(), ParquetError> {
    write_column(group, |column| {
        let typed = column.typed::<ByteArrayType>();
        let (mut texts, mut levels) = (Vec::new(), Vec::with_capacity(NAMES_AT_ONCE));
        for (_, slice) in rows.iter() {
            for index in 0..slice.len() {
                let text = slice.metadata(index);
                levels.push(i16::from(text.is_some()));
                texts.extend(text.map(|text| ByteArray::from(text.as_bytes().to_vec())));
                if levels.len() == NAMES_AT_ONCE {
                    typed.write_batch(&texts, Some(&levels), None)?;
                    texts.clear();
                    levels.clear();
                }
            }
        }
        typed.write_batch(&texts, Some(&levels), None)
    })
}

/// Writes a sample of the values in each encoding and returns the one that is smaller.
pub(crate) fn choose_encoding(rows: &Rows) -> Result<ValueEncoding, ParquetError> {
    let values = rows.values();
    if values.len() < TRIAL_VALUES_MIN {
        return Ok(ValueEncoding::ByteStreamSplit);
    }
    let pieces = (SAMPLE_VALUES / SAMPLE_PIECE).min(values.len().div_ceil(SAMPLE_PIECE));
    let step = values.len() / pieces;
    let starts = (0..pieces).map(|piece| piece * step);
    let sample: Vec<f64> = starts
        .flat_map(|start| &values[start..(start + SAMPLE_PIECE.min(step)).min(values.len())])
        .copied()
        .collect();
    let size_in = |encoding| -> Result<i64, ParquetError> {
        let mut writer = SerializedFileWriter::new(Vec::new(), message(), properties(encoding))?;
        let mut rows = Rows::default();
        let mut samples = crate::rows::Samples::default();
        sample.iter().zip(0..).for_each(|(value, ms)| samples.push(ms, *value, None));
        rows.push(&Arc::new(SeriesKey::new("-", "-")), samples.as_slice());
        write_group(&mut writer, &rows)?;
        let metadata = writer.finish()?;
        Ok(metadata
            .row_groups()
            .iter()
            .map(|g| g.column(crate::schema::VALUE).compressed_size())
            .sum())
    };
    let split = size_in(ValueEncoding::ByteStreamSplit)?;
    let dictionary = size_in(ValueEncoding::Dictionary)?;
    Ok(if dictionary < split { ValueEncoding::Dictionary } else { ValueEncoding::ByteStreamSplit })
}

/// Where each page of a file lies, in the order of row groups, columns and pages; a dictionary
/// page comes first.
pub(crate) fn pages_of(metadata: &ParquetMetaData) -> Option<Vec<(u64, u64)>> {
    let mut pages = Vec::new();
    if metadata.num_row_groups() == 0 {
        return Some(pages);
    }
    let offsets = metadata.offset_index()?;
    for (group, columns) in metadata.row_groups().iter().zip(offsets) {
        for (column, offsets) in group.columns().iter().zip(columns) {
            let start = column.byte_range().0;
            let locations = offsets.page_locations();
            let first = u64::try_from(locations.first()?.offset).ok()?;
            if first != start {
                pages.push((start, first.checked_sub(start)?));
            }
            for location in locations {
                let length = u64::try_from(location.compressed_page_size).ok()?;
                pages.push((u64::try_from(location.offset).ok()?, length));
            }
        }
    }
    Some(pages)
}

/// Returns the checksum of all that decides which bytes are read for a row: rows of groups, places of
/// columns and pages, the first row of each page, and the bounds of its times.
pub(crate) fn layout_of(metadata: &ParquetMetaData) -> String {
    let mut hasher = crc32fast::Hasher::new();
    let mut note = |number: i64| hasher.update(&number.to_le_bytes());
    for (number, group) in metadata.row_groups().iter().enumerate() {
        note(group.num_rows());
        for column in group.columns() {
            note(i64::from(matches!(column.compression(), Compression::ZSTD(_))));
            note(column.num_values());
            note(column.compressed_size());
            note(column.data_page_offset());
            note(column.dictionary_page_offset().unwrap_or(-1));
        }
        let offsets = metadata.offset_index().and_then(|all| all.get(number));
        for column in offsets.into_iter().flatten() {
            note(column.page_locations().len() as i64);
            for page in column.page_locations() {
                note(page.offset);
                note(i64::from(page.compressed_page_size));
                note(page.first_row_index);
            }
        }
        let times = metadata.column_index().and_then(|all| all.get(number)?.get(TIMESTAMP));
        if let Some(ColumnIndexMetaData::INT64(bounds)) = times {
            for page in 0..bounds.num_pages() as usize {
                note(bounds.min_value(page).copied().unwrap_or(i64::MAX));
                note(bounds.max_value(page).copied().unwrap_or(i64::MIN));
            }
        }
    }
    format!("{:08x}", hasher.finalize())
}

/// Returns the row groups of `body` with a footer of our own.
fn with_footer(
    mut body: Vec<u8>,
    metadata: &ParquetMetaData,
    entry: &str,
    index: String,
) -> Result<Vec<u8>> {
    let broken = || Error::new(ErrorKind::Internal, "a file was encoded wrongly");
    let pages = pages_of(metadata).ok_or_else(broken)?;
    let end = pages.last().map_or(4, |(start, length)| start + length);
    if body.len() < end as usize {
        return Err(broken());
    }
    body.truncate(end as usize);
    let checksum = |(start, length): &(u64, u64)| {
        let page = body.get(*start as usize..(start + length) as usize);
        page.map(crc32fast::hash).ok_or_else(broken)
    };
    let checksums = pages.iter().map(checksum).collect::<Result<Vec<_>>>()?;
    let file = metadata.file_metadata();
    let entries = [
        (KEY_ENTRY, entry.to_owned()),
        (KEY_INDEX, index),
        (KEY_PAGES, encode_pages(&checksums)),
        (KEY_LAYOUT, layout_of(metadata)),
    ];
    let entries = entries.map(|(key, value)| KeyValue::new(key.to_owned(), value));
    let file = FileMetaData::new(
        file.version(),
        file.num_rows(),
        file.created_by().map(str::to_owned),
        Some(entries.to_vec()),
        file.schema_descr_ptr(),
        file.column_orders().cloned(),
    );
    let metadata = ParquetMetaDataBuilder::new(file)
        .set_row_groups(metadata.row_groups().to_vec())
        .set_column_index(metadata.column_index().cloned())
        .set_offset_index(metadata.offset_index().cloned())
        .build();
    let mut tail = Tail { skip: body.len(), bytes: Vec::new() };
    let mut tracked = TrackedWrite::new(&mut tail);
    let written = tracked.write_all(&body).map_err(ParquetError::from);
    written
        .and_then(|()| ParquetMetaDataWriter::new_with_tracked(tracked, &metadata).finish())
        .map_err(failed)?;
    body.extend_from_slice(&tail.bytes);
    Ok(body)
}

/// Keeps what comes after the first bytes: a writer of footers has to see how long the file is, but
/// the file need not be in memory twice.
struct Tail {
    skip: usize,
    bytes: Vec<u8>,
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        self.bytes.extend_from_slice(&bytes[skipped..]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
