//! What is kept of a window of a series, and how it stands in the store of its tier.
//!
//! A row is eight samples of a series of the same names, in the first eight milliseconds of its
//! window: the store keeps numbers well, and everything of a row is written in one batch. The first
//! of them, the count, may carry what the row becomes when a prune is over; see `prune`. Times are
//! counted from the start of the window, so that they are small numbers among others.

use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::metrics::time::{MIN_MS, floor_ms, from_ms, window_start_ms};
use crate::metrics::{
    Accumulator, MetricAggregation, MetricRecord, Sample, ScanStream, SeriesKey, SeriesSamples,
};

/// How many samples make a row.
pub(in crate::pipeline) const FIELDS: usize = 8;
const COUNT: usize = 0;
const SUM: usize = 1;

/// What is known of the samples of a window; of one sample at least.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Rollup {
    pub(super) count: u64,
    /// Infinite if it does not fit into an `f64`.
    #[serde(with = "as_text")]
    pub(super) sum: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) first: f64,
    pub(super) last: f64,
    pub(super) first_ms: i64,
    pub(super) last_ms: i64,
}

impl Rollup {
    /// Adds the samples of the same window that are known by `other`, and were written later.
    pub(super) fn plus(&self, other: &Self) -> Self {
        let mut sum = Accumulator::default();
        sum.push_aggregation(&self.aggregation());
        sum.push_aggregation(&other.aggregation());
        let sum = sum.finish().sum.filter(|sum| !sum.is_nan()).unwrap_or(f64::INFINITY);
        let first = if other.first_ms <= self.first_ms { other } else { self };
        let last = if other.last_ms >= self.last_ms { other } else { self };
        Self {
            count: self.count + other.count,
            sum,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            first: first.first,
            last: last.last,
            first_ms: first.first_ms,
            last_ms: last.last_ms,
        }
    }

    pub(super) fn aggregation(&self) -> MetricAggregation {
        MetricAggregation {
            count: self.count,
            sum: Some(self.sum),
            min: Some(self.min),
            max: Some(self.max),
            avg: Some(self.sum / self.count as f64),
            first: Some(self.first),
            last: Some(self.last),
        }
    }

    /// Appends the samples of the row of the window that starts there.
    pub(super) fn write(&self, series: &SeriesKey, start_ms: i64, out: &mut Vec<MetricRecord>) {
        let sum = if self.sum.is_finite() { self.sum } else { 0.0 };
        let [min, max, first, last] = [self.min, self.max, self.first, self.last];
        let times = [self.first_ms - start_ms, self.last_ms - start_ms].map(|ms| ms as f64);
        let fields = [self.count as f64, sum, min, max, first, last, times[0], times[1]];
        for (field, value) in fields.into_iter().enumerate() {
            let mut record = record(series, start_ms, field, value);
            if field == SUM && self.sum.is_infinite() {
                record.metadata = Some(Value::from(self.sum.to_string()));
            }
            out.push(record);
        }
    }
}

/// JSON knows no infinity.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a row becomes if the prune of this number comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) turn: u64,
    /// `None` if nothing that is removed belongs to it.
    pub(super) after: Option<Rollup>,
}

/// What stands in the store of a tier of a window.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) start_ms: i64,
    /// `None` if it is of no sample, or all that stands there is what it may become.
    pub(super) rollup: Option<Rollup>,
    /// Few rows have any: it would double what each takes.
    pub(super) pending: Option<Box<Pending>>,
}

impl Row {
    /// The sample that says what the row becomes; the row itself stays as it is.
    pub(super) fn announce(
        series: &SeriesKey,
        start_ms: i64,
        now: Option<&Rollup>,
        pending: &Pending,
    ) -> Result<MetricRecord> {
        let count = now.map_or(0.0, |rollup| rollup.count as f64);
        let metadata = serde_json::to_value(pending).map_err(|error| {
            Error::new(ErrorKind::Internal, "a rollup does not serialise").with_source(error)
        })?;
        Ok(record(series, start_ms, COUNT, count).with_metadata(metadata))
    }

    /// The sample that makes a row one of no sample.
    pub(super) fn clear(series: &SeriesKey, start_ms: i64) -> MetricRecord {
        record(series, start_ms, COUNT, 0.0)
    }
}

fn record(series: &SeriesKey, start_ms: i64, field: usize, value: f64) -> MetricRecord {
    let time = from_ms(anchor_ms(start_ms) + field as i64);
    MetricRecord::new(series.server_id.clone(), time, series.metric_type.clone(), value)
}

/// Where a row begins: with its window, unless that began before year 1.
fn anchor_ms(start_ms: i64) -> i64 {
    start_ms.max(MIN_MS)
}

/// Turns the samples of one series, in order of time, into rows.
#[derive(Debug)]
pub(super) struct Decoder {
    width_ms: i64,
    start_ms: i64,
    fields: [f64; FIELDS],
    /// A bit for each field that was there.
    seen: u8,
    infinite: Option<f64>,
    pending: Option<Box<Pending>>,
}

impl Decoder {
    pub(super) fn new(width_ms: i64) -> Self {
        let fields = [0.0; FIELDS];
        Self { width_ms, start_ms: 0, fields, seen: 0, infinite: None, pending: None }
    }

    /// Takes the next sample, and returns the row before if this one is of another.
    pub(super) fn push(&mut self, sample: &Sample) -> Result<Option<Row>> {
        let ms = floor_ms(sample.timestamp);
        // Samples of one row are close together: most need no division.
        let is_same = self.seen != 0 && ms - self.start_ms < self.width_ms;
        let done = if is_same { None } else { self.finish()? };
        if !is_same {
            self.start_ms = window_start_ms(ms, self.width_ms);
        }
        let field = usize::try_from(ms - anchor_ms(self.start_ms)).unwrap_or(usize::MAX);
        let Some(slot) = self.fields.get_mut(field) else {
            return Err(corrupt("a sample stands where no rollup has one"));
        };
        *slot = sample.value;
        self.seen |= 1 << field;
        if let Some(metadata) = &sample.metadata {
            self.take_metadata(field, metadata)?;
        }
        Ok(done)
    }

    fn take_metadata(&mut self, field: usize, metadata: &Value) -> Result<()> {
        match (field, metadata) {
            (COUNT, value) => {
                let pending = Pending::deserialize(value)
                    .map_err(|error| corrupt("a pending rollup is none").with_source(error))?;
                self.pending = Some(Box::new(pending));
            }
            (SUM, Value::String(sum)) if sum == "inf" => self.infinite = Some(f64::INFINITY),
            (SUM, Value::String(sum)) if sum == "-inf" => self.infinite = Some(f64::NEG_INFINITY),
            _ => return Err(corrupt("a rollup has metadata that it cannot have")),
        }
        Ok(())
    }

    /// Returns the last row.
    pub(super) fn finish(&mut self) -> Result<Option<Row>> {
        let [count, sum, min, max, first, last, first_ms, last_ms] = self.fields;
        let rollup = match self.seen {
            0 => return Ok(None),
            // Not even a row yet, or one of no sample.
            1 | u8::MAX if count == 0.0 => None,
            u8::MAX => Some(Rollup {
                count: count as u64,
                sum: self.infinite.unwrap_or(sum),
                min,
                max,
                first,
                last,
                first_ms: self.start_ms + first_ms as i64,
                last_ms: self.start_ms + last_ms as i64,
            }),
            _ => return Err(corrupt("a part of a rollup is missing")),
        };
        let row = Row { start_ms: self.start_ms, rollup, pending: self.pending.take() };
        (self.seen, self.infinite) = (0, None);
        Ok(Some(row))
    }
}

fn corrupt(message: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

/// The rows of a scan, ordered by series, then time.
pub(super) struct Rows<'a> {
    scan: ScanStream<'a>,
    width_ms: i64,
    decoder: Decoder,
    /// Rows that are decoded, of one series.
    ready: std::vec::IntoIter<Row>,
    series: Option<SeriesKey>,
    head: Option<(SeriesKey, Row)>,
    is_over: bool,
}

impl<'a> Rows<'a> {
    pub(super) fn new(scan: ScanStream<'a>, width_ms: i64) -> Self {
        let decoder = Decoder::new(width_ms);
        let ready = Vec::new().into_iter();
        Self { scan, width_ms, decoder, ready, series: None, head: None, is_over: false }
    }

    /// Goes to the row of a window, or past where it would be, and returns it.
    ///
    /// Asked in order of series, then time.
    pub(super) async fn find(&mut self, series: &SeriesKey, start_ms: i64) -> Result<Option<Row>> {
        while self.next_before(series, start_ms).await?.is_some() {}
        let found =
            self.head.as_ref().filter(|(found, row)| (found, row.start_ms) == (series, start_ms));
        Ok(found.map(|(_, row)| row.clone()))
    }

    /// Returns the next row before that of a window, if there is one.
    pub(super) async fn next_before(
        &mut self,
        series: &SeriesKey,
        start_ms: i64,
    ) -> Result<Option<(SeriesKey, Row)>> {
        if self.head.is_none() {
            self.head = self.decoded().await?;
        }
        Ok(self.head.take_if(|(found, row)| (&*found, row.start_ms) < (series, start_ms)))
    }

    pub(super) async fn next(&mut self) -> Result<Option<(SeriesKey, Row)>> {
        match self.head.take() {
            Some(head) => Ok(Some(head)),
            None => self.decoded().await,
        }
    }

    async fn decoded(&mut self) -> Result<Option<(SeriesKey, Row)>> {
        loop {
            if let (Some(row), Some(series)) = (self.ready.next(), &self.series) {
                return Ok(Some((series.clone(), row)));
            }
            if self.is_over {
                return Ok(None);
            }
            let Some(SeriesSamples { series, samples }) = self.scan.try_next().await? else {
                self.is_over = true;
                self.ready = Vec::from_iter(self.decoder.finish()?).into_iter();
                continue;
            };
            if self.series.as_ref() != Some(&series) {
                let last = self.decoder.finish()?;
                let before = self.series.replace(series);
                self.decoder = Decoder::new(self.width_ms);
                self.ready = self.decode(&samples)?.into_iter();
                if let (Some(row), Some(before)) = (last, before) {
                    return Ok(Some((before, row)));
                }
                continue;
            }
            self.ready = self.decode(&samples)?.into_iter();
        }
    }

    fn decode(&mut self, samples: &[Sample]) -> Result<Vec<Row>> {
        let mut rows = Vec::with_capacity(samples.len() / FIELDS + 1);
        for sample in samples {
            rows.extend(self.decoder.push(sample)?);
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::super::gather::Gathering;
    use super::*;
    use crate::metrics::StorageBackend;
    use crate::{InMemory, SeriesFilter, TimeRange};

    const WIDTH_MS: i64 = 1000;

    fn rollup(start_ms: i64, samples: &[(i64, f64)]) -> Rollup {
        let mut gathering = Gathering::new(start_ms, samples[0].0);
        samples.iter().for_each(|(ms, value)| gathering.push(*ms, *value));
        gathering.finish().unwrap()
    }

    async fn rows_of(store: &InMemory) -> Result<Vec<(SeriesKey, Row)>> {
        let mut rows = Rows::new(store.scan(&SeriesFilter::any(), TimeRange::all()), WIDTH_MS);
        let mut all = Vec::new();
        while let Some(row) = rows.next().await? {
            all.push(row);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn rows_are_read_as_they_were_written() {
        let store = InMemory::new();
        let (a, b) = (SeriesKey::new("a", "m"), SeriesKey::new("b", "m"));
        // More rows than one batch of a scan holds, with a batch that ends within a row.
        let mut expected = Vec::new();
        let mut records = Vec::new();
        for no in -700..700 {
            let start_ms = no * WIDTH_MS;
            let one = rollup(start_ms, &[(start_ms + 3, no as f64), (start_ms + 999, 0.5)]);
            one.write(&a, start_ms, &mut records);
            expected.push((a.clone(), Row { start_ms, rollup: Some(one), pending: None }));
        }
        let (huge, low) = (f64::MAX, -f64::MAX);
        for (start_ms, samples) in
            [(MIN_MS, [(MIN_MS, huge), (MIN_MS + 1, huge)]), (0, [(0, low), (1, low)])]
        {
            let one = rollup(start_ms, &samples);
            assert!(one.sum.is_infinite());
            one.write(&b, start_ms, &mut records);
            expected.push((b.clone(), Row { start_ms, rollup: Some(one), pending: None }));
        }
        let after = Some(rollup(5000, &[(5000, huge), (5001, huge)]));
        let pending = Pending { turn: 7, after };
        records.push(Row::announce(&b, 5000, None, &pending).unwrap());
        expected.push((
            b.clone(),
            Row { start_ms: 5000, rollup: None, pending: Some(Box::new(pending)) },
        ));
        store.write_batch(&records).await.unwrap();
        assert_eq!(rows_of(&store).await.unwrap(), expected);

        let mut rows = Rows::new(store.scan(&SeriesFilter::any(), TimeRange::all()), WIDTH_MS);
        assert!(rows.find(&a, -700_500).await.unwrap().is_none());
        assert_eq!(rows.find(&a, 5000).await.unwrap().unwrap().start_ms, 5000);
        assert_eq!(rows.find(&a, 5000).await.unwrap().unwrap().start_ms, 5000);
        assert!(rows.find(&SeriesKey::new("aa", "m"), 0).await.unwrap().is_none());
        assert_eq!(rows.find(&b, 0).await.unwrap().unwrap().rollup.unwrap().count, 2);
        assert!(rows.find(&b, 6000).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_no_row_is_refused() {
        let series = SeriesKey::new("a", "m");
        let mut whole = Vec::new();
        rollup(0, &[(0, 1.0)]).write(&series, 0, &mut whole);
        let strange = [
            whole[..7].to_vec(),
            vec![record(&series, 0, 8, 1.0)],
            vec![record(&series, 0, 0, 1.0).with_metadata(serde_json::json!({"turn": 1}))],
            vec![record(&series, 0, 1, 1.0).with_metadata(serde_json::json!("nan"))],
        ];
        for records in strange {
            let store = InMemory::new();
            store.write_batch(&records).await.unwrap();
            assert_eq!(rows_of(&store).await.unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn rollups_add_by_time() {
        let (one, other) = (rollup(0, &[(3, 1.0), (9, 2.0)]), rollup(0, &[(5, 7.0), (9, 4.0)]));
        let both = one.plus(&other);
        assert_eq!((both.count, both.sum, both.min, both.max), (4, 14.0, 1.0, 7.0));
        assert_eq!((both.first, both.first_ms, both.last, both.last_ms), (1.0, 3, 4.0, 9));
        // What came later counts where both have a sample of the same time.
        let both = other.plus(&one);
        assert_eq!((both.first, both.first_ms, both.last, both.last_ms), (1.0, 3, 2.0, 9));
        let (up, down) = (f64::MAX, -f64::MAX);
        let lost = rollup(0, &[(0, up), (1, up)]).plus(&rollup(0, &[(0, down), (1, down)]));
        assert!(!lost.sum.is_nan());
    }
}
