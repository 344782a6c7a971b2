//! Single files for others and of others: one written out of samples in order, and rows read from
//! files that pandas, DuckDB, Spark or anything else wrote in the documented schema.
//!
//! Such files know nothing of the store: they are read row by row, every row validated before it is
//! copied, and go in like any batch. What a few bytes in them stand for may be large: nothing is taken
//! by their word.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnDescriptor;
use storage_core::metrics::record::{METADATA_BYTES_MAX, validate_names};
use storage_core::metrics::time::{from_ms, is_sample_ms};
use storage_core::{Error, ErrorKind, MetricRecord, Result, SeriesKey, SeriesSamples};

use crate::convert::to_stored_sample;
use crate::encode::{choose_encoding, write_group};
use crate::error::{FILE, corrupt, from_io, from_parquet};
use crate::file::guarded;
use crate::rows::{Rows, Samples};
use crate::schema::{
    COLUMNS, GROUP_ROWS_MAX, METADATA, METRIC, SERVER, TIMESTAMP, VALUE, message, properties,
};

/// Rows that are read and handed on at once; fewer where their texts are long.
const BATCH_ROWS: usize = 4_096;
const BATCH_BYTES: usize = 4 << 20;

/// The longest text that is parsed as metadata: blanks and escapes may make it longer than what is
/// stored.
const METADATA_TEXT_MAX: usize = 8 * METADATA_BYTES_MAX;

/// Writes samples into one Parquet file of the documented schema.
///
/// ```
/// use storage_core::{Sample, SeriesKey, SeriesSamples};
/// use storage_parquet::{ParquetFileWriter, read_parquet_file};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("export.parquet");
/// let sample = Sample { timestamp: chrono::Utc::now(), value: 1.5, metadata: None };
/// let series = SeriesSamples { series: SeriesKey::new("web-1", "cpu"), samples: vec![sample] };
/// let mut writer = ParquetFileWriter::new(std::fs::File::create(&path).unwrap());
/// writer.write(&series)?;
/// writer.finish()?;
///
/// let mut values = Vec::new();
/// read_parquet_file(&path, |records| {
///     values.extend(records.iter().map(|record| record.value));
///     Ok(())
/// })?;
/// assert_eq!(values, [1.5]);
/// # Ok::<(), storage_core::Error>(())
/// ```
pub struct ParquetFileWriter<W: Write + Send> {
    /// What is written to, until the first row group, which decides how.
    sink: Option<W>,
    writer: Option<SerializedFileWriter<W>>,
    pending: Rows,
    before: Option<(Arc<SeriesKey>, i64)>,
}

impl<W: Write + Send> std::fmt::Debug for ParquetFileWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetFileWriter")
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

impl<W: Write + Send> ParquetFileWriter<W> {
    /// Starts a file. Some half a million samples are held in memory at a time.
    pub fn new(sink: W) -> Self {
        Self { sink: Some(sink), writer: None, pending: Rows::default(), before: None }
    }

    /// Adds samples, which come in the order of a scan: by series, then time.
    ///
    /// # Errors
    /// `InvalidArgument` if they are out of order; `Io` or `StorageFull` if the file cannot be
    /// written.
    pub fn write(&mut self, batch: &SeriesSamples) -> Result<()> {
        let key = Arc::new(batch.series.clone());
        let mut samples = Samples::default();
        for sample in &batch.samples {
            let (ms, value, metadata) = to_stored_sample(sample)?;
            let place = (Arc::clone(&key), ms);
            if self.before.as_ref().is_some_and(|before| *before >= place) {
                return Err(Error::invalid("samples are not ordered by series and time"));
            }
            self.before = Some(place);
            samples.push(ms, value, metadata);
        }
        self.pending.push(&key, samples.as_slice());
        if self.pending.len() >= GROUP_ROWS_MAX { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.pending);
        let failed = |error| from_parquet(error, "the export");
        if let Some(sink) = self.sink.take() {
            let encoding = choose_encoding(&rows).map_err(failed)?;
            let writer = SerializedFileWriter::new(sink, message(), properties(encoding));
            self.writer = Some(writer.map_err(failed)?);
        }
        match &mut self.writer {
            Some(writer) if !rows.is_empty() => write_group(writer, &rows).map_err(failed),
            _ => Ok(()),
        }
    }

    /// Completes the file and returns what it was written to.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn finish(mut self) -> Result<W> {
        self.flush()?;
        let writer = self.writer.ok_or_else(|| Error::new(ErrorKind::Internal, "no writer"))?;
        writer.into_inner().map_err(|error| from_parquet(error, "the export"))
    }
}

/// Reads a Parquet file that has the columns `server_id`, `timestamp`, `metric_type`, `value` and,
/// perhaps, `metadata`, in any order and beside others, and hands its rows on in batches.
///
/// Names are strings; times timestamps in milliseconds, microseconds or nanoseconds, also in
/// the old form of 96 bits that Spark writes (finer digits than milliseconds are floored); values floating-point, whole or decimal numbers of at most
/// 64 bits, of which the nearest double is taken; metadata JSON in strings. Rows may come in any
/// order. Returns how many there were.
///
/// # Errors
/// `InvalidArgument` if a column is missing, is of another type, or a row breaks a rule of
/// [`MetricRecord`], with the details `file` and `row`; `Corrupt` if the file does not decode; what
/// `hand_on` returns.
pub fn read_parquet_file(
    path: &Path,
    mut hand_on: impl FnMut(Vec<MetricRecord>) -> Result<()>,
) -> Result<u64> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| from_io(error, &name))?;
    let reader = guarded(&name, || SerializedFileReader::new(file))?;
    let columns = find_columns(reader.metadata().file_metadata().schema_descr().columns(), &name)?;
    let mut rows = 0u64;
    for number in 0..reader.num_row_groups() {
        let group = guarded(&name, || reader.get_row_group(number))?;
        let mut left = usize::try_from(group.metadata().num_rows())
            .map_err(|_| corrupt(&name, "a row group has a number of rows below zero"))?;
        let open = |column: &Column| column.open(&*group);
        let mut readers: Vec<_> = guarded(&name, || {
            columns.iter().map(|column| column.as_ref().map(open).transpose()).collect()
        })?;
        while left > 0 {
            let count = left.min(BATCH_ROWS);
            let batch = guarded(&name, || read_batch(&mut readers, &columns, count))
                .map_err(|error| error.with_context("after_row", rows))?;
            batch.hand_on(count, &mut hand_on, |error, row| {
                error.with_context(FILE, &name).with_context("row", rows + row as u64)
            })?;
            left -= count;
            rows += count as u64;
        }
    }
    Ok(rows)
}

/// A column of a file of others.
struct Column {
    index: usize,
    descriptor: Arc<ColumnDescriptor>,
}

impl Column {
    fn open(&self, group: &dyn RowGroupReader) -> parquet::errors::Result<ColumnReader> {
        group.get_column_reader(self.index)
    }
}

/// Finds the columns of the schema by their names.
fn find_columns(all: &[Arc<ColumnDescriptor>], file: &str) -> Result<Vec<Option<Column>>> {
    let find = |place: usize| {
        let found = all.iter().position(|column| column.path().string() == COLUMNS[place]);
        let column = found.map(|index| Column { index, descriptor: Arc::clone(&all[index]) });
        match column {
            Some(column) if is_usable(&column.descriptor, place) => Ok(Some(column)),
            Some(_) => Err(Error::invalid("a column is of a type that cannot be read")
                .with_context(FILE, file)
                .with_context("column", COLUMNS[place])),
            None if place == METADATA => Ok(None),
            None => Err(Error::invalid("the file lacks a column")
                .with_context(FILE, file)
                .with_context("column", COLUMNS[place])),
        }
    };
    (0..COLUMNS.len()).map(find).collect()
}

fn is_usable(column: &ColumnDescriptor, place: usize) -> bool {
    if column.max_rep_level() > 0 || column.max_def_level() > 1 {
        return false;
    }
    let physical = column.physical_type();
    match place {
        TIMESTAMP => unit_of(column).is_some(),
        VALUE => number_of(column).is_some(),
        _ => physical == Physical::BYTE_ARRAY,
    }
}

/// What the number of a value's column stands for.
#[derive(Debug, Clone, Copy)]
enum Number {
    AsItIs,
    /// Without a sign, in 64 bits.
    Unsigned,
    /// That many digits of it come after the point.
    Decimal(i32),
}

fn number_of(column: &ColumnDescriptor) -> Option<Number> {
    let is_whole = match column.physical_type() {
        Physical::DOUBLE | Physical::FLOAT => false,
        Physical::INT32 | Physical::INT64 => true,
        _ => return None,
    };
    match (column.logical_type_ref(), column.converted_type()) {
        (None, ConvertedType::NONE) => Some(Number::AsItIs),
        (Some(LogicalType::Integer(whole)), _) if is_whole => {
            let is_unsigned = !whole.is_signed && column.physical_type() == Physical::INT64;
            Some(if is_unsigned { Number::Unsigned } else { Number::AsItIs })
        }
        (Some(LogicalType::Decimal(decimal)), _) if is_whole => {
            Some(Number::Decimal(decimal.scale))
        }
        (None, ConvertedType::DECIMAL) if is_whole => Some(Number::Decimal(column.type_scale())),
        (None, ConvertedType::UINT_64) => Some(Number::Unsigned),
        (
            None,
            ConvertedType::INT_8
            | ConvertedType::INT_16
            | ConvertedType::INT_32
            | ConvertedType::INT_64
            | ConvertedType::UINT_8
            | ConvertedType::UINT_16
            | ConvertedType::UINT_32,
        ) => Some(Number::AsItIs),
        // A date or a time.
        _ => None,
    }
}

impl Number {
    fn value(self, whole: i64) -> Option<f64> {
        match self {
            Self::AsItIs => Some(whole as f64),
            Self::Unsigned => Some(whole as u64 as f64),
            // By way of its digits: a division would round twice.
            Self::Decimal(scale) => format!("{whole}e-{scale}").parse().ok(),
        }
    }
}

fn unit_of(column: &ColumnDescriptor) -> Option<TimeUnit> {
    match column.physical_type() {
        // Spark's, turned into milliseconds where it is read.
        Physical::INT96 => return Some(TimeUnit::MILLIS),
        Physical::INT64 => {}
        _ => return None,
    }
    match (column.logical_type_ref(), column.converted_type()) {
        (Some(LogicalType::Timestamp(time)), _) => Some(time.unit),
        (_, ConvertedType::TIMESTAMP_MILLIS) => Some(TimeUnit::MILLIS),
        (_, ConvertedType::TIMESTAMP_MICROS) => Some(TimeUnit::MICROS),
        _ => None,
    }
}

/// Some rows as the file has them: texts that repeat are there once.
struct Batch {
    servers: Cells,
    times: Cells,
    metrics: Cells,
    values: Cells,
    metadata: Cells,
    unit: Option<TimeUnit>,
    number: Option<Number>,
}

fn read_batch(
    readers: &mut [Option<ColumnReader>],
    columns: &[Option<Column>],
    count: usize,
) -> parquet::errors::Result<Batch> {
    let mut read = |place: usize| match (&mut readers[place], &columns[place]) {
        (Some(reader), Some(column)) => read_cells(reader, &column.descriptor, count),
        _ => Ok(Cells::Missing),
    };
    Ok(Batch {
        servers: read(SERVER)?,
        times: read(TIMESTAMP)?,
        metrics: read(METRIC)?,
        values: read(VALUE)?,
        metadata: read(METADATA)?,
        unit: columns[TIMESTAMP].as_ref().and_then(|column| unit_of(&column.descriptor)),
        number: columns[VALUE].as_ref().and_then(|column| number_of(&column.descriptor)),
    })
}

impl Batch {
    /// Hands its rows on as records, in portions of a bounded size.
    fn hand_on(
        &self,
        count: usize,
        hand_on: &mut impl FnMut(Vec<MetricRecord>) -> Result<()>,
        at: impl Fn(Error, usize) -> Error,
    ) -> Result<()> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        for row in 0..count {
            let record = self.record(row).map_err(|error| at(error, row))?;
            bytes += record.server_id.len() + record.metric_type.len();
            bytes += self.metadata.bytes(row).map_or(0, <[u8]>::len);
            records.push(record);
            if bytes >= BATCH_BYTES {
                hand_on(std::mem::take(&mut records))?;
                bytes = 0;
            }
        }
        if records.is_empty() { Ok(()) } else { hand_on(records) }
    }

    /// Returns a row that obeys the rules. Lengths are looked at before anything is copied.
    fn record(&self, row: usize) -> Result<MetricRecord> {
        let time = self.times.whole(row).and_then(|time| time_of(time, self.unit));
        let value = self.values.number(row, self.number);
        let (Some(server), Some(metric), Some(time), Some(value)) =
            (self.servers.text(row), self.metrics.text(row), time, value)
        else {
            return Err(Error::invalid("a name, time or value is missing or out of bounds"));
        };
        validate_names(server, metric)?;
        let mut record = MetricRecord::new(server, from_ms(time), metric, value);
        record.metadata = self.metadata.bytes(row).map(parse_metadata).transpose()?;
        record.validate_sample()?;
        Ok(record)
    }
}

fn parse_metadata(text: &[u8]) -> Result<serde_json::Value> {
    if text.len() > METADATA_TEXT_MAX {
        return Err(Error::invalid("the JSON is too large")
            .with_context("field", "metadata")
            .with_context("bytes", text.len()));
    }
    serde_json::from_slice(text)
        .map_err(|error| Error::invalid("the metadata is no JSON").with_source(error))
}

fn time_of(time: i64, unit: Option<TimeUnit>) -> Option<i64> {
    let ms = match unit? {
        TimeUnit::MILLIS => time,
        TimeUnit::MICROS => time.div_euclid(1_000),
        TimeUnit::NANOS => time.div_euclid(1_000_000),
    };
    is_sample_ms(ms).then_some(ms)
}

/// The values of a column, `None` where null.
enum Cells {
    Texts(Vec<Option<ByteArray>>),
    Wholes(Vec<Option<i64>>),
    Numbers(Vec<Option<f64>>),
    Missing,
}

impl Cells {
    fn bytes(&self, row: usize) -> Option<&[u8]> {
        let Self::Texts(texts) = self else { return None };
        Some(texts.get(row)?.as_ref()?.data())
    }

    fn text(&self, row: usize) -> Option<&str> {
        std::str::from_utf8(self.bytes(row)?).ok()
    }

    fn whole(&self, row: usize) -> Option<i64> {
        let Self::Wholes(wholes) = self else { return None };
        *wholes.get(row)?
    }

    fn number(&self, row: usize, number: Option<Number>) -> Option<f64> {
        match self {
            Self::Numbers(numbers) => *numbers.get(row)?,
            Self::Wholes(wholes) => number?.value((*wholes.get(row)?)?),
            _ => None,
        }
    }
}

fn read_cells(
    reader: &mut ColumnReader,
    column: &ColumnDescriptor,
    count: usize,
) -> parquet::errors::Result<Cells> {
    let optional = column.self_type().get_basic_info().repetition() == Repetition::OPTIONAL;
    Ok(match reader {
        ColumnReader::ByteArrayColumnReader(reader) => {
            Cells::Texts(read_values(reader, optional, count, |text| text)?)
        }
        ColumnReader::Int64ColumnReader(reader) => {
            Cells::Wholes(read_values(reader, optional, count, |whole| whole)?)
        }
        ColumnReader::Int96ColumnReader(reader) => {
            Cells::Wholes(read_values(reader, optional, count, |time| time.to_millis())?)
        }
        ColumnReader::Int32ColumnReader(reader) => {
            Cells::Wholes(read_values(reader, optional, count, i64::from)?)
        }
        ColumnReader::DoubleColumnReader(reader) => {
            Cells::Numbers(read_values(reader, optional, count, |number| number)?)
        }
        ColumnReader::FloatColumnReader(reader) => {
            Cells::Numbers(read_values(reader, optional, count, f64::from)?)
        }
        _ => Cells::Missing,
    })
}

fn read_values<T: DataType, U>(
    reader: &mut ColumnReaderImpl<T>,
    optional: bool,
    count: usize,
    turn: impl Fn(T::T) -> U,
) -> parquet::errors::Result<Vec<Option<U>>> {
    let (mut values, mut levels, mut read) = (Vec::new(), Vec::new(), 0);
    while read < count {
        let into_levels = optional.then_some(&mut levels);
        let (records, ..) = reader.read_records(count - read, into_levels, None, &mut values)?;
        if records == 0 {
            return Err(parquet::errors::ParquetError::General("a column ends early".to_owned()));
        }
        read += records;
    }
    let mut values = values.into_iter().map(turn);
    if !optional {
        return Ok(values.map(Some).collect());
    }
    Ok(levels.into_iter().map(|level| if level == 1 { values.next() } else { None }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::properties::WriterProperties;

    /// A file of that many rows which all have the same texts, each stored once.
    fn written(dir: &Path, server: &str, metadata: &str, rows: i64) -> std::path::PathBuf {
        let mut samples = Samples::default();
        (0..rows).for_each(|ms| samples.push(ms, 1.0, Some(Arc::from(metadata))));
        let mut all = Rows::default();
        all.push(&Arc::new(SeriesKey::new(server, "cpu")), samples.as_slice());
        let path = dir.join("hostile.parquet");
        let properties = WriterProperties::builder().set_dictionary_page_size_limit(64 << 20);
        let file = File::create(&path).unwrap();
        let writer = SerializedFileWriter::new(file, message(), Arc::new(properties.build()));
        let mut writer = writer.unwrap();
        write_group(&mut writer, &all).unwrap();
        writer.close().unwrap();
        path
    }

    #[test]
    fn a_long_text_that_repeats_is_refused_before_it_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(1 << 20);
        let text = format!("\"{long}\"");
        for (server, metadata, field) in [(&*long, "1", "server_id"), ("a", &text, "metadata")] {
            let path = written(dir.path(), server, metadata, 20);
            let error = read_parquet_file(&path, |_| panic!("no row is valid")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:#}");
            assert_eq!((error.context("field"), error.context("row")), (Some(field), Some("0")));
        }
    }

    #[test]
    fn rows_with_long_texts_are_handed_on_in_small_portions() {
        let dir = tempfile::tempdir().unwrap();
        let metadata = format!("\"{}\"", "x".repeat(60_000));
        let path = written(dir.path(), "a", &metadata, 1_000);
        let (mut count, mut largest) = (0, 0);
        let rows = read_parquet_file(&path, |records| {
            count += records.len() as u64;
            largest = largest.max(records.len());
            Ok(())
        });
        assert_eq!((rows.unwrap(), count), (1_000, 1_000));
        assert!(largest <= BATCH_BYTES / 60_000 + 1, "{largest}");
    }

    #[test]
    fn a_footer_that_is_wrong_anywhere_makes_an_error_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), "a", "1", 100);
        let whole = std::fs::read(&path).unwrap();
        let length = u32::from_le_bytes(*whole[..whole.len() - 4].last_chunk::<4>().unwrap());
        let mut refused = 0;
        for byte in whole.len() - 8 - length as usize..whole.len() {
            let mut broken = whole.clone();
            broken[byte] ^= 1 << (byte % 8);
            std::fs::write(&path, &broken).unwrap();
            let Err(error) = read_parquet_file(&path, |_| Ok(())) else { continue };
            let is_foreseen = [ErrorKind::Corrupt, ErrorKind::InvalidArgument];
            assert!(is_foreseen.contains(&error.kind()), "byte {byte}: {error:#}");
            refused += usize::from(error.kind() == ErrorKind::Corrupt);
        }
        assert!(refused > 20, "{refused}");
    }
}
