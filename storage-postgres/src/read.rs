//! Answers questions: one statement gives the answer, hence one snapshot.

use storage_core::metrics::time::from_ms;
use storage_core::{
    Error, ErrorKind, MetricRecord, Result, Sample, SeriesFilter, SeriesInfo, SeriesKey,
    SeriesSamples, StorageStats, TimeRange,
};
use tokio_postgres::Row;

use crate::commit::gone;
use crate::convert::{Elements, PgTime, to_sample};
use crate::error::from_pg;
use crate::filter::Condition;
use crate::store::{Parameter, Store};

const STATS: &str = include_str!("sql/stats.sql");
const SIZE: &str = "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'";

/// Samples that one step of a scan reads, at most and at least.
pub(crate) const SCAN_STEP_SAMPLES: i64 = 8192;
const SCAN_STEP_SAMPLES_MIN: i64 = 64;

/// What a step of samples with much metadata is meant to take, and with how much it ends: that it is
/// cut short costs a connection, so the next one asks for fewer samples.
const SCAN_STEP_BYTES: usize = 8 << 20;
const SCAN_STEP_BYTES_MAX: usize = 2 * SCAN_STEP_BYTES;

/// Series that one step of a scan may touch: many are short.
const SCAN_STEP_SERIES: usize = 64;

const RANGE_OF_SERIES: &str = "SELECT ts, value, metadata::jsonb AS metadata FROM samples
    WHERE series_id = (SELECT id FROM series WHERE server_id = $1 AND metric_type = $2)
    AND ts >= $3 AND ts < $4";

/// Up to so many samples of a series come as arrays: the server holds them in memory.
pub(crate) const ARRAY_LEN_MAX: usize = 100_000;

/// Metadata that comes in arrays takes up to so many bytes each, none of them compressed: all of it
/// is some 25 MB at most.
const ARRAY_METADATA_BYTES_MAX: usize = 256;

/// One row: times, values, and apart from them the small metadata with its times, which few have; at
/// last how many have metadata of any size.
fn range_as_arrays() -> String {
    let small = format!(
        "metadata IS NOT NULL AND pg_column_size(metadata) <= {ARRAY_METADATA_BYTES_MAX}
            AND pg_column_compression(metadata) IS NULL"
    );
    format!(
        "SELECT array_agg(ts), array_agg(value),
            array_agg(ts) FILTER (WHERE {small}), array_agg(metadata) FILTER (WHERE {small}),
            count(metadata)
         FROM ({RANGE_OF_SERIES} ORDER BY ts LIMIT {}) s",
        ARRAY_LEN_MAX + 1
    )
}

/// Reads what `range_as_arrays` asks for; `None` if there is more.
fn samples_of_arrays(row: &Row) -> Result<Option<Vec<Sample>>> {
    let array = |index| row.try_get::<_, Option<Elements<'_>>>(index).map_err(from_pg);
    let (Some(times), Some(values)) = (array(0)?, array(1)?) else { return Ok(Some(Vec::new())) };
    let (small_times, small) = (array(2)?, array(3)?);
    let with_metadata: i64 = row.try_get(4).map_err(from_pg)?;
    let is_large = small.map_or(0, Elements::len) as i64 != with_metadata;
    if times.len() > ARRAY_LEN_MAX || is_large {
        return Ok(None);
    }
    let mut metadata = match (small_times, small) {
        (Some(times), Some(json)) => Some(times.times().zip(json.json()).peekable()),
        _ => None,
    };
    let mut samples = Vec::with_capacity(times.len());
    for (ms, value) in times.times().zip(values.values()) {
        let ms = ms?;
        let is_of = |next: &(Result<i64>, _)| next.0.as_ref().is_ok_and(|next_ms| *next_ms == ms);
        let next = metadata.as_mut().and_then(|metadata| metadata.next_if(is_of));
        let metadata = next.map(|(_, json)| json).transpose()?;
        samples.push(Sample { timestamp: from_ms(ms), value: value?, metadata });
    }
    match metadata.is_some_and(|mut metadata| metadata.next().is_some()) {
        true => Err(out_of_order()),
        false => Ok(Some(samples)),
    }
}

fn time(row: &Row, index: usize) -> Result<i64> {
    row.try_get(index).map(|PgTime(ms)| ms).map_err(from_pg)
}

/// The names of a series in two columns.
pub(crate) fn key(row: &Row, index: usize) -> Result<SeriesKey> {
    Ok(SeriesKey {
        server_id: row.try_get(index).map_err(from_pg)?,
        metric_type: row.try_get(index + 1).map_err(from_pg)?,
    })
}

impl Store {
    pub(crate) async fn query_range(
        &self,
        server_id: &str,
        metric_type: &str,
        range: TimeRange,
    ) -> Result<Vec<MetricRecord>> {
        let (start, end) = (PgTime(range.start_ms()), PgTime(range.end_ms()));
        let key = SeriesKey::new(server_id, metric_type);
        let parameters: [Parameter<'_>; 4] = [&server_id, &metric_type, &start, &end];
        let rows = self.rows(&range_as_arrays(), &parameters).await?;
        if let Some(row) = rows.first()
            && let Some(samples) = samples_of_arrays(row)?
        {
            return Ok(samples.into_iter().map(|sample| sample.into_record(&key)).collect());
        }
        let mut records = Vec::new();
        let visit = |row: Row| {
            records.push(to_sample(&row, 0)?.into_record(&key));
            Ok(true)
        };
        self.each_row(&format!("{RANGE_OF_SERIES} ORDER BY ts"), &parameters, visit).await?;
        Ok(records)
    }

    pub(crate) async fn stats(&self) -> Result<StorageStats> {
        let (found, bytes) = tokio::try_join!(self.rows(STATS, &[]), self.disk_usage_bytes())?;
        let row = found.first().ok_or_else(gone)?;
        let count = |index| {
            let count: i64 = row.try_get(index).map_err(from_pg)?;
            Ok::<_, Error>(u64::try_from(count).unwrap_or_default())
        };
        let extent = |index| {
            let time: Option<PgTime> = row.try_get(index).map_err(from_pg)?;
            Ok::<_, Error>(time.map(|PgTime(ms)| from_ms(ms)))
        };
        Ok(StorageStats {
            total_metrics: count(0)?,
            series: count(1)?,
            disk_usage_bytes: bytes,
            oldest_metric: extent(2)?,
            newest_metric: extent(3)?,
        })
    }

    async fn disk_usage_bytes(&self) -> Result<u64> {
        let chunks = match &self.opened.extension {
            Some(extension) if self.opened.hypertable => extension.size(),
            _ => "SELECT 0::bigint".to_owned(),
        };
        let rows = self.rows(&format!("{SIZE} UNION ALL {chunks}"), &[]).await?;
        let bytes = |row: &Row| row.try_get::<_, Option<i64>>(0).map_err(from_pg);
        let sizes = rows.iter().map(bytes).collect::<Result<Vec<_>>>()?;
        Ok(sizes.into_iter().flatten().map(|size| u64::try_from(size).unwrap_or_default()).sum())
    }

    pub(crate) async fn series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesInfo>> {
        let condition = Condition::of(filter, 1);
        // Few series are looked up; of many, every sample is counted on the way.
        let sql = match condition.is_narrow() {
            true => format!(
                "SELECT s.server_id, s.metric_type, p.samples, p.oldest, p.newest FROM series s
                 CROSS JOIN LATERAL (SELECT count(*) AS samples, min(ts) AS oldest,
                     max(ts) AS newest FROM samples WHERE series_id = s.id) p
                 WHERE NOT s.emptied AND p.samples > 0 AND {}",
                condition.sql
            ),
            false => format!(
                "SELECT s.server_id, s.metric_type, p.samples, p.oldest, p.newest FROM series s
                 JOIN (SELECT series_id, count(*) AS samples, min(ts) AS oldest,
                     max(ts) AS newest FROM samples GROUP BY series_id) p ON p.series_id = s.id
                 WHERE {}",
                condition.sql
            ),
        };
        let info = |row: &Row| {
            let count: i64 = row.try_get(2).map_err(from_pg)?;
            Ok(SeriesInfo {
                series: key(row, 0)?,
                count: u64::try_from(count).unwrap_or_default(),
                oldest: from_ms(time(row, 3)?),
                newest: from_ms(time(row, 4)?),
            })
        };
        let rows = self.rows(&sql, &condition.parameters()).await?;
        let mut found = rows.iter().map(info).collect::<Result<Vec<_>>>()?;
        found.sort_unstable_by(|a, b| a.series.cmp(&b.series));
        Ok(found)
    }

    pub(crate) async fn latest(
        &self,
        filter: &SeriesFilter,
        n: usize,
    ) -> Result<Vec<SeriesSamples>> {
        let condition = Condition::of(filter, 2);
        let limit = i64::try_from(n).unwrap_or(i64::MAX);
        let sql = format!(
            "SELECT s.server_id, s.metric_type, p.ts, p.value, p.metadata FROM series s
             CROSS JOIN LATERAL (SELECT ts, value, metadata::jsonb AS metadata
                 FROM samples WHERE series_id = s.id ORDER BY ts DESC LIMIT $1) p
             WHERE NOT s.emptied AND {}",
            condition.sql
        );
        let mut parameters: Vec<Parameter<'_>> = vec![&limit];
        parameters.extend(condition.parameters());
        let rows = self.rows(&sql, &parameters).await?;
        let one = |row: &Row| Ok((key(row, 0)?, to_sample(row, 2)?));
        let mut newest = rows.iter().map(one).collect::<Result<Vec<_>>>()?;
        newest.sort_unstable_by(|a, b| (&a.0, b.1.timestamp).cmp(&(&b.0, a.1.timestamp)));
        let mut found: Vec<SeriesSamples> = Vec::new();
        for (series, sample) in newest {
            match found.last_mut() {
                Some(last) if last.series == series => last.samples.push(sample),
                _ => found.push(SeriesSamples { series, samples: vec![sample] }),
            }
        }
        Ok(found)
    }

    /// The series of a scan, in order. Without their ids: steps may come on other connections, see
    /// [`dictionary`](crate::dictionary).
    pub(crate) async fn scan_series(&self, filter: &SeriesFilter) -> Result<Vec<SeriesKey>> {
        if let Some(named) = named_series(filter) {
            return Ok(named);
        }
        let condition = Condition::of(filter, 1);
        let sql = format!(
            "SELECT s.server_id, s.metric_type FROM series s
             WHERE NOT s.emptied AND {} ORDER BY s.server_id, s.metric_type",
            condition.sql
        );
        let rows = self.rows(&sql, &condition.parameters()).await?;
        rows.iter().map(|row| key(row, 0)).collect()
    }

    /// One step of a scan: samples of `rest[0]` from `start_ms` on, then of the series after it, in
    /// order, until there are `limit` or many bytes. Gives the limit for the next one, too.
    pub(crate) async fn scan_step(
        &self,
        rest: &[SeriesKey],
        start_ms: i64,
        range: TimeRange,
        limit: i64,
    ) -> Result<(ScanStep, i64)> {
        let some = &rest[..rest.len().min(SCAN_STEP_SERIES)];
        let servers: Vec<&str> = some.iter().map(|key| key.server_id.as_str()).collect();
        let metrics: Vec<&str> = some.iter().map(|key| key.metric_type.as_str()).collect();
        let (start, end) = (PgTime(start_ms), PgTime(range.end_ms()));
        // A long series goes on alone: its look-up starts where the last one ended.
        let goes_on = start_ms > range.start_ms();
        // A limit inside each look-up as well, so that none reads more than a step holds.
        // With limits too in the look-ups of ids, which keeps their order.
        let sql = "SELECT u.n, p.ts, p.value, p.metadata
            FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS u (server_id, metric_type, n)
            CROSS JOIN LATERAL (SELECT id FROM series
                WHERE server_id = u.server_id AND metric_type = u.metric_type LIMIT 1) s
            CROSS JOIN LATERAL (SELECT ts, value, metadata::jsonb AS metadata
                FROM samples WHERE series_id = s.id AND ts >= $3 AND ts < $4 ORDER BY ts LIMIT $5) p
            LIMIT $5";
        let first_only = "SELECT 1::bigint, ts, value, metadata::jsonb FROM samples
            WHERE series_id = (SELECT id FROM series WHERE server_id = $1 AND metric_type = $2)
            AND ts >= $3 AND ts < $4 ORDER BY ts LIMIT $5";
        let (sql, names, asked): (_, [Parameter<'_>; 2], _) = match goes_on {
            true => (first_only, [&servers[0], &metrics[0]], 1),
            false => (sql, [&servers, &metrics], some.len()),
        };
        let parameters = [names[0], names[1], &start, &end, &limit];
        let (mut found, mut bytes) = (Vec::new(), 0);
        let visit = |row: Row| {
            bytes += row.raw_size_bytes();
            found.push(row);
            Ok(bytes < SCAN_STEP_BYTES_MAX)
        };
        self.each_row(sql, &parameters, visit).await?;
        let is_full = found.len() as i64 == limit || bytes >= SCAN_STEP_BYTES_MAX;
        let step = step_of(&found, some, asked, is_full)?;
        let fitting = (found.len() * SCAN_STEP_BYTES).checked_div(bytes);
        let fitting = fitting.map_or(SCAN_STEP_SAMPLES, |samples| samples as i64);
        Ok((step, fitting.clamp(SCAN_STEP_SAMPLES_MIN, SCAN_STEP_SAMPLES)))
    }
}

/// Returns the series that a filter names, in order, if it names all of them and a step of a scan takes
/// them: of one that is not there a step finds nothing.
fn named_series(filter: &SeriesFilter) -> Option<Vec<SeriesKey>> {
    let (servers, metrics) = (filter.server_id.names()?, filter.metric_type.names()?);
    if servers.len().saturating_mul(metrics.len()) > SCAN_STEP_SERIES {
        return None;
    }
    let named = servers.iter().flat_map(|server| {
        let of = move |metric| SeriesKey::new(server.as_str(), metric);
        metrics.iter().map(String::as_str).map(of)
    });
    Some(named.collect())
}

/// What a step of a scan found.
pub(crate) struct ScanStep {
    /// Samples by series, in order.
    pub(crate) found: Vec<SeriesSamples>,
    /// How many series of the rest are done.
    pub(crate) done: usize,
    /// Where the first series that is not done goes on.
    pub(crate) next_ms: Option<i64>,
}

fn step_of(rows: &[Row], series: &[SeriesKey], asked: usize, is_full: bool) -> Result<ScanStep> {
    let mut found: Vec<SeriesSamples> = Vec::new();
    let mut at = 0;
    for row in rows {
        let n: i64 = row.try_get(0).map_err(from_pg)?;
        let n = usize::try_from(n).unwrap_or_default();
        let sample = to_sample(row, 1)?;
        match found.last_mut() {
            Some(last) if n == at => {
                if last.samples.last().is_some_and(|last| last.timestamp >= sample.timestamp) {
                    return Err(out_of_order());
                }
                last.samples.push(sample);
            }
            _ if n > at && n <= series.len() => {
                let series = series[n - 1].clone();
                found.push(SeriesSamples { series, samples: vec![sample] });
                at = n;
            }
            _ => return Err(out_of_order()),
        }
    }
    let last = found.last().and_then(|last| last.samples.last());
    Ok(match last.filter(|_| is_full) {
        Some(sample) => {
            ScanStep { next_ms: Some(sample.timestamp.timestamp_millis() + 1), done: at - 1, found }
        }
        None => ScanStep { found, done: asked, next_ms: None },
    })
}

fn out_of_order() -> Error {
    Error::new(ErrorKind::Internal, "the server gave samples out of order")
}
