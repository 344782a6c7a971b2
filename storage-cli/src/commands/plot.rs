//! `storage plot`: series as a chart in the terminal.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use chrono::Utc;
use storage::metrics::Accumulator;
use storage::{SeriesInfo, StorageBackend, TimeRange};

use super::note_nothing;
use crate::args::{Format, Plot, Span};
use crate::output::chart::{Chart, Line, SERIES_MAX};
use crate::output::{Output, terminal_width};

pub(super) async fn run(
    store: &dyn StorageBackend,
    args: &Plot,
    output: &mut Output,
) -> Result<ExitCode> {
    if matches!(output.given_format(), Some(Format::Csv | Format::Json | Format::Parquet)) {
        bail!("plot draws; `storage aggregate --window` prints the numbers of a chart");
    }
    let filter = storage::SeriesFilter::parse(&args.server, &args.metric)?;
    let mut infos = store.series(&filter).await?;
    let Some(range) = drawn_range(args.span, &infos)? else {
        note_nothing(output, "series match");
        return Ok(ExitCode::SUCCESS);
    };
    infos.retain(|info| info.oldest < range.end() && info.newest >= range.start());
    if infos.len() > SERIES_MAX {
        output.note(&format!(
            "{} series match, the first {SERIES_MAX} are drawn; narrow the names",
            infos.len()
        ));
        infos.truncate(SERIES_MAX);
    }
    let width = args.width.or_else(|| terminal_width().filter(|_| output.is_terminal()));
    let mut chart = Chart {
        width: usize::from(width.unwrap_or(100).max(40)),
        height: usize::from(args.height),
        range,
        column: Duration::ZERO,
        includes_zero: args.zero,
        is_coloured: output.is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        lines: Vec::new(),
    };
    chart.column = chart.column_width();
    for info in infos {
        let line = line_of(store, info, &chart).await?;
        chart.lines.extend(line);
    }
    if chart.lines.is_empty() {
        note_nothing(output, "samples of these series in that range");
        return Ok(ExitCode::SUCCESS);
    }
    output.raw(chart.render().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Returns what was asked for, cut to where there are samples.
fn drawn_range(span: Span, infos: &[SeriesInfo]) -> Result<Option<TimeRange>> {
    let oldest = infos.iter().map(|info| info.oldest).min();
    let newest = infos.iter().map(|info| info.newest).max();
    let (Some(oldest), Some(newest)) = (oldest, newest) else {
        return Ok(None);
    };
    let newest = newest + chrono::Duration::milliseconds(1);
    // A start that was given stays, so that a gap at the left can be seen; the future is no gap.
    let end = span.end.map_or(newest, |end| end.min(newest.max(Utc::now())));
    let start = span.start.unwrap_or(oldest).min(end);
    Ok(Some(TimeRange::new(start, end)?))
}

async fn line_of(
    store: &dyn StorageBackend,
    info: SeriesInfo,
    chart: &Chart,
) -> Result<Option<Line>> {
    let filter = storage::SeriesFilter::exact(&info.series.server_id, &info.series.metric_type)?;
    let found = store.windows(&filter, chart.range, chart.column).await?;
    let windows: Vec<_> = found.into_iter().flat_map(|one| one.windows).collect();
    let mut total = Accumulator::default();
    for window in &windows {
        total.push_aggregation(&window.aggregation);
    }
    let name = info.series.to_string();
    Ok((!windows.is_empty()).then(|| Line { name, windows, total: total.finish() }))
}
