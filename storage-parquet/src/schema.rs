//! The schema of every file, the names of files, and how a file is encoded.
//!
//! | column | type | |
//! |---|---|---|
//! | `server_id` | string | dictionary |
//! | `timestamp` | timestamp, milliseconds, UTC | delta |
//! | `metric_type` | string | dictionary |
//! | `value` | double | dictionary or byte stream split, whichever is smaller for a sample |
//! | `metadata` | string, JSON, may be null | dictionary |
//!
//! Rows are sorted by server, metric, time. A file holds the rows of one day or one hour, by the
//! time of the samples, below `data/date=YYYY-MM-DD`; those that were not merged yet are in `log`.

use std::sync::{Arc, LazyLock};

use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{ColumnPath, TypePtr};
use storage_core::metrics::time::from_ms;

/// The format of log, checkpoints and footers that this version writes, and the newest it reads.
pub(crate) const FORMAT: u32 = 1;

pub(crate) const SERVER: usize = 0;
pub(crate) const TIMESTAMP: usize = 1;
pub(crate) const METRIC: usize = 2;
pub(crate) const VALUE: usize = 3;
pub(crate) const METADATA: usize = 4;

/// The names of the columns, in order.
pub(crate) const COLUMNS: [&str; 5] =
    ["server_id", "timestamp", "metric_type", "value", "metadata"];

/// The keys of the footer's own entries: what the file is to the store, where its series lie, the
/// checksums of its pages, and that of what says where rows and pages lie (not in the oldest files).
pub(crate) const KEY_ENTRY: &str = "storage.entry";
pub(crate) const KEY_INDEX: &str = "storage.index";
pub(crate) const KEY_PAGES: &str = "storage.pages";
pub(crate) const KEY_LAYOUT: &str = "storage.layout";

/// Rows of a row group: what readers like, and what is held in memory while one is made.
pub(crate) const GROUP_ROWS_MAX: usize = 524_288;

/// Rows of a page: what a question about one series has to decode.
const PAGE_ROWS: usize = 20_000;

pub(crate) const HOUR_MS: i64 = 3_600_000;
pub(crate) const DAY_MS: i64 = 24 * HOUR_MS;

const MESSAGE: &str = "message sample {
    required binary server_id (STRING);
    required int64 timestamp (TIMESTAMP(MILLIS,true));
    required binary metric_type (STRING);
    required double value;
    optional binary metadata (STRING);
}";

/// The schema of every file.
pub(crate) fn message() -> TypePtr {
    static SCHEMA: LazyLock<TypePtr> = LazyLock::new(|| {
        Arc::new(parse_message_type(MESSAGE).expect("a constant that the tests parse"))
    });
    Arc::clone(&SCHEMA)
}

/// How the values of a file are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueEncoding {
    /// As they are: for files that are merged soon.
    Plain,
    /// Numbers of distinct values: for decimals, which repeat.
    Dictionary,
    /// Byte by byte: for whole numbers and noise.
    ByteStreamSplit,
    /// Numbers of distinct values, and what does not go into them as it is: for readers that know
    /// nothing newer.
    DictionaryOrPlain,
}

/// Returns how a file is written.
pub(crate) fn properties(encoding: ValueEncoding) -> WriterPropertiesPtr {
    let column = |index: usize| ColumnPath::from(COLUMNS[index]);
    let ascending =
        |index| SortingColumn { column_idx: index, descending: false, nulls_first: false };
    let value = match encoding {
        ValueEncoding::Plain | ValueEncoding::DictionaryOrPlain => Encoding::PLAIN,
        // Also what follows a dictionary that has become too large.
        ValueEncoding::Dictionary | ValueEncoding::ByteStreamSplit => Encoding::BYTE_STREAM_SPLIT,
    };
    // A tenth smaller than at level 1, and hardly slower; what is merged soon is written as fast as
    // possible.
    let level = match encoding {
        ValueEncoding::Plain => ZstdLevel::default(),
        _ => ZstdLevel::try_new(3).unwrap_or_default(),
    };
    let has_dictionary =
        matches!(encoding, ValueEncoding::Dictionary | ValueEncoding::DictionaryOrPlain);
    let order = [SERVER, METRIC, TIMESTAMP].map(|index| ascending(index as i32));
    let properties = WriterProperties::builder()
        .set_created_by(concat!("storage-parquet ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(1024)
        .set_sorting_columns(Some(order.to_vec()))
        .set_statistics_enabled(EnabledStatistics::Page)
        // Bounds of names as they are: 512 bytes at most.
        .set_column_index_truncate_length(None)
        .set_statistics_truncate_length(None)
        .set_column_encoding(column(TIMESTAMP), Encoding::DELTA_BINARY_PACKED)
        .set_column_dictionary_enabled(column(TIMESTAMP), false)
        .set_column_encoding(column(VALUE), value)
        .set_column_dictionary_enabled(column(VALUE), has_dictionary)
        // Bounds of JSON texts are of no use to anybody.
        .set_column_statistics_enabled(column(METADATA), EnabledStatistics::None);
    Arc::new(properties.build())
}

/// The entry of the log with this number.
pub(crate) fn log_path(version: u64) -> String {
    format!("log/{version:020}.parquet")
}

/// The checkpoint of the state after this entry.
pub(crate) fn checkpoint_path(version: u64) -> String {
    format!("checkpoint/{version:020}.json.zst")
}

/// Returns the number that a path of the log or of a checkpoint has.
pub(crate) fn version_of(path: &str) -> Option<u64> {
    let name = path.rsplit('/').next()?;
    let (digits, suffix) = name.split_once('.')?;
    let known = matches!(suffix, "parquet" | "json.zst") && digits.len() == 20;
    known.then(|| digits.parse().ok()).flatten()
}

/// What temporary names start with: readers of `*.parquet` do not see them.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// Whether a path is that of a file that was being written.
pub(crate) fn is_temporary(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with(TEMPORARY))
}

/// Whether [`data_path`] makes such names: other files below `data` are somebody else's.
pub(crate) fn is_data_path(path: &str) -> bool {
    let is_hex = |part: &str| part.len() == 16 && part.bytes().all(|b| b.is_ascii_hexdigit());
    let name = path.strip_prefix("data/date=").and_then(|rest| rest.split_once('/'));
    let stem = name.and_then(|(_, name)| name.strip_suffix(".parquet"));
    stem.is_some_and(|stem| match stem.split('-').collect::<Vec<_>>().as_slice() {
        ["day", part] => is_hex(part),
        ["hour", hour, part] => hour.parse::<u8>().is_ok_and(|hour| hour < 24) && is_hex(part),
        _ => false,
    })
}

/// A fresh name for a file of the day or hour that starts at `start_ms`.
pub(crate) fn data_path(start_ms: i64, end_ms: i64) -> String {
    let start = from_ms(start_ms);
    let (date, part) = (start.format("%Y-%m-%d"), fastrand::u64(..));
    match end_ms - start_ms {
        HOUR_MS => format!("data/date={date}/hour-{}-{part:016x}.parquet", start.format("%H")),
        _ => format!("data/date={date}/day-{part:016x}.parquet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_parses_and_has_the_columns() {
        let schema = message();
        let names: Vec<_> = schema.get_fields().iter().map(|field| field.name()).collect();
        assert_eq!(names, COLUMNS);
        let numbered = [SERVER, TIMESTAMP, METRIC, VALUE, METADATA].map(|index| COLUMNS[index]);
        assert_eq!(numbered, COLUMNS);
    }

    #[test]
    fn versions_come_back_from_paths() {
        for version in [0, 7, u64::MAX] {
            assert_eq!(version_of(&log_path(version)), Some(version));
            assert_eq!(version_of(&checkpoint_path(version)), Some(version));
        }
        for path in ["log/.tmp-01", "log/1.parquet", "log/x.parquet", "log"] {
            assert_eq!(version_of(path), None, "{path}");
        }
    }

    #[test]
    fn files_are_named_by_the_time_of_their_samples() {
        assert!(data_path(-HOUR_MS, 0).starts_with("data/date=1969-12-31/hour-23-"));
        assert!(data_path(0, DAY_MS).starts_with("data/date=1970-01-01/day-"));
        let first = storage_core::metrics::time::MIN_MS;
        assert!(data_path(first, first + DAY_MS).starts_with("data/date=0001-01-01/"));
        assert!(is_data_path(&data_path(first, first + DAY_MS)));
        assert!(is_data_path(&data_path(-HOUR_MS, 0)));
        for other in ["data/date=2020-01-01/part-0.parquet", "data/x.parquet", "data/date=1/day-1"]
        {
            assert!(!is_data_path(other), "{other}");
        }
    }
}
