//! `storage aggregate`: numbers about series, as a whole or window by window.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use storage::config::Age;
use storage::pipeline::{RolledWindows, RollupOptions, Stretch, WindowSource};
use storage::{
    MetricAggregation, RollupUrls, SeriesFilter, SeriesKey, SeriesWindows, StorageBackend,
    TimeRange,
};

use super::note_nothing;
use crate::args::Aggregate;
use crate::output::{Cell, Output, text};
use crate::store;

const COLUMNS: [&str; 10] = [
    "server_id",
    "metric_type",
    "window_start",
    "count",
    "min",
    "max",
    "avg",
    "sum",
    "first",
    "last",
];

pub(super) async fn run(
    store: &dyn StorageBackend,
    args: &Aggregate,
    output: &mut Output,
) -> Result<ExitCode> {
    let (filter, range) = (args.chosen.filter()?, args.span.range()?);
    let count = match args.window {
        Some(width) => by_window(store, &filter, range, width, output).await?,
        None => whole(store, &filter, range, output).await?,
    };
    if count == 0 {
        note_nothing(output, "samples of these series in that range");
    }
    Ok(ExitCode::SUCCESS)
}

/// Answers from the rollups beside the store, and samples where there are none.
pub(super) async fn run_rolled(
    url: &str,
    args: &Aggregate,
    output: &mut Output,
) -> Result<ExitCode> {
    let (filter, range) = (args.chosen.filter()?, args.span.range()?);
    let urls = match url.starts_with("rolled://") {
        true => RollupUrls::from_url(url).await?,
        false => RollupUrls::find(url).await?,
    };
    // A typo must not come out as an empty store.
    let samples = store::open_existing(&urls.samples).await?;
    let samples = Arc::clone(samples.metrics());
    let rolled = urls.open_beside(samples, RollupOptions::default()).await?;
    // It is needed for this: the command line says so.
    let width = args.window.unwrap_or_default();
    let found = rolled.rolled_windows(&filter, range, width).await;
    rolled.close().await?;
    let RolledWindows { series, stretches } = found?;
    let sources: Vec<_> = stretches.iter().map(source).collect();
    output.note(&format!("from {}", sources.join(", then ")));
    if print_windows(series, output)? == 0 {
        note_nothing(output, "samples or rollups of these series in that range");
    }
    Ok(ExitCode::SUCCESS)
}

/// Says where the windows of a stretch come from, and where it begins.
fn source(stretch: &Stretch) -> String {
    let source = match stretch.source {
        WindowSource::Samples => "samples".to_owned(),
        WindowSource::Rollups(width) => format!("rollups of {}", Age(width)),
        _ => "nothing, it is gone,".to_owned(),
    };
    match stretch.range.start() == TimeRange::all().start() {
        true => source,
        false => format!("{source} since {}", text::time(stretch.range.start())),
    }
}

async fn whole(
    store: &dyn StorageBackend,
    filter: &SeriesFilter,
    range: TimeRange,
    output: &mut Output,
) -> Result<u64> {
    let columns: Vec<_> = COLUMNS.into_iter().filter(|name| *name != "window_start").collect();
    let series = match filter.as_exact() {
        Some((server, metric)) => vec![SeriesKey::new(server, metric)],
        None => store.series(filter).await?.into_iter().map(|info| info.series).collect(),
    };
    let mut count = 0;
    let mut rows = output.rows(&columns)?;
    for series in series {
        let SeriesKey { server_id, metric_type } = &series;
        let found = store.aggregate(server_id, metric_type, range).await?;
        if found.count > 0 {
            count += 1;
            rows.row(cells(&series, None, &found))?;
        }
    }
    rows.finish()?;
    Ok(count)
}

async fn by_window(
    store: &dyn StorageBackend,
    filter: &SeriesFilter,
    range: TimeRange,
    width: Duration,
    output: &mut Output,
) -> Result<u64> {
    print_windows(store.windows(filter, range, width).await?, output)
}

fn print_windows(found: Vec<SeriesWindows>, output: &mut Output) -> Result<u64> {
    let mut count = 0;
    let mut rows = output.rows(&COLUMNS)?;
    for one in found {
        for window in one.windows {
            count += 1;
            rows.row(cells(&one.series, Some(Cell::Time(window.start)), &window.aggregation))?;
        }
    }
    rows.finish()?;
    Ok(count)
}

fn cells(series: &SeriesKey, window_start: Option<Cell>, found: &MetricAggregation) -> Vec<Cell> {
    let mut cells = vec![Cell::text(&series.server_id), Cell::text(&series.metric_type)];
    cells.extend(window_start);
    cells.push(Cell::Count(found.count));
    let values = [found.min, found.max, found.avg, found.sum, found.first, found.last];
    cells.extend(values.map(|value| Cell::or_empty(value, Cell::Derived)));
    cells
}
