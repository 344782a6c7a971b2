//! Charts of dots: braille patterns, axes, a legend.
//!
//! Eight dots make a character, so a chart of 100 columns has 200 places in time. A place spans
//! from the smallest to the largest value of its window, and is joined to the one before.

use std::fmt::Write;
use std::time::Duration;

use chrono::{DateTime, Utc};
use storage::metrics::time::{floor_ms, from_ms};
use storage::{MetricAggregation, TimeRange, Window};

mod canvas;
mod scale;
mod time_axis;

use self::canvas::Canvas;
use self::scale::Scale;
use self::time_axis::TimeStep;
use super::text;

/// As many series as there are colours that can be told apart.
pub(crate) const SERIES_MAX: usize = 8;

const COLOURS: [u8; SERIES_MAX] = [36, 33, 35, 32, 31, 34, 96, 93];

/// Room for the labels of the vertical axis, which stand left of it.
const LABEL_WIDTH: usize = 9;

/// A series that is drawn.
pub(crate) struct Line {
    /// What the legend says.
    pub(crate) name: String,
    /// Windows, oldest first.
    pub(crate) windows: Vec<Window>,
    /// All windows together.
    pub(crate) total: MetricAggregation,
}

impl Line {
    /// Returns a value of this series for the legend: bytes in units, others rounded.
    fn shown(&self, value: f64) -> String {
        if !self.name.contains("_bytes") || value < 0.0 {
            return text::rounded(value);
        }
        let per = if self.name.ends_with("_per_second") { "/s" } else { "" };
        format!("{}{per}", text::bytes(value as u64))
    }
}

/// What is drawn and how.
pub(crate) struct Chart {
    /// Characters, labels included.
    pub(crate) width: usize,
    /// Lines of dots, without labels and legend.
    pub(crate) height: usize,
    /// The time from left to right.
    pub(crate) range: TimeRange,
    /// Time that a column of dots stands for.
    pub(crate) column: Duration,
    /// Whether zero is shown, wherever the values are.
    pub(crate) includes_zero: bool,
    /// Whether the text may hold colours.
    pub(crate) is_coloured: bool,
    /// At most [`SERIES_MAX`].
    pub(crate) lines: Vec<Line>,
}

impl Chart {
    /// Returns the time that a column of dots stands for, in whole milliseconds.
    pub(crate) fn column_width(&self) -> Duration {
        let span_ms = u64::try_from(self.range.end_ms() - self.range.start_ms()).unwrap_or(1);
        Duration::from_millis(span_ms.div_ceil(2 * self.plot_width() as u64).max(1))
    }

    fn plot_width(&self) -> usize {
        self.width.saturating_sub(LABEL_WIDTH + 2).max(10)
    }

    /// Returns the chart as text.
    pub(crate) fn render(&self) -> String {
        let scale = Scale::of(&self.lines, self.includes_zero, self.height);
        let mut canvas = Canvas::new(self.plot_width(), self.height);
        for (colour, line) in self.lines.iter().enumerate() {
            self.draw(line, colour, &scale, &mut canvas);
        }
        let mut text = String::new();
        let labels = scale.labels(self.height);
        for row in 0..self.height {
            let label = labels.iter().find(|(at, _)| *at == row).map(|(_, label)| label.as_str());
            let axis = if label.is_some() { '┤' } else { '│' };
            let label = label.unwrap_or_default();
            let dots = canvas.row(row, self.is_coloured);
            let _ = writeln!(text, "{label:>LABEL_WIDTH$} {axis}{}", dots.trim_end());
        }
        self.write_time_axis(&mut text);
        self.write_legend(&mut text);
        text
    }

    fn draw(&self, line: &Line, colour: usize, scale: &Scale, canvas: &mut Canvas) {
        let rows = canvas.dot_rows() - 1;
        let y = |value: f64| scale.place(value, rows);
        let mut before: Option<(usize, usize)> = None;
        for window in &line.windows {
            let aggregation = &window.aggregation;
            let (Some(min), Some(max), Some(first), Some(last)) =
                (aggregation.min, aggregation.max, aggregation.first, aggregation.last)
            else {
                continue;
            };
            let x = self.dot_column(window.start);
            if let Some((x_before, y_before)) = before {
                canvas.join((x_before, y_before), (x, y(first)), colour);
            }
            for dot in y(min)..=y(max) {
                canvas.set(x, dot, colour);
            }
            before = Some((x, y(last)));
        }
    }

    fn dot_column(&self, time: DateTime<Utc>) -> usize {
        let dots = 2 * self.plot_width();
        let span_ms = (self.range.end_ms() - self.range.start_ms()).max(1);
        let offset_ms = (floor_ms(time) - self.range.start_ms()).max(0);
        let place = i128::from(offset_ms) * dots as i128 / i128::from(span_ms);
        usize::try_from(place).unwrap_or_default().min(dots - 1)
    }

    fn write_time_axis(&self, text: &mut String) {
        let margin = LABEL_WIDTH + 2;
        let step = TimeStep::for_range(self.range, self.plot_width());
        let mut axis = vec!['─'; self.plot_width()];
        let mut times = format!("{:<width$}", "UTC", width = margin + self.plot_width() + 1);
        let mut dates = times.clone();
        let mut date_before = None;
        for tick in step.ticks(self.range) {
            let column = self.dot_column(tick) / 2;
            axis[column] = '┬';
            place(&mut times, margin + column, &step.label(tick));
            let date = Some(tick.date_naive());
            if step.has_time_of_day() && date_before != date {
                place(&mut dates, margin + column, &tick.format("%Y-%m-%d").to_string());
                date_before = date;
            }
        }
        let axis: String = axis.into_iter().collect();
        let _ = writeln!(text, "{:>LABEL_WIDTH$} └{axis}", "");
        for line in [times, dates] {
            if line.trim() != "UTC" {
                let _ = writeln!(text, "{}", line.trim_end());
            }
        }
    }

    fn write_legend(&self, text: &mut String) {
        let name_width = self.lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
        text.push('\n');
        for (index, line) in self.lines.iter().enumerate() {
            let mark = coloured("●", Some(index).filter(|_| self.is_coloured));
            let _ = write!(text, "{mark} {:<name_width$}", line.name);
            let total = &line.total;
            let parts =
                [("min", total.min), ("max", total.max), ("avg", total.avg), ("last", total.last)];
            for (name, value) in parts {
                let _ = write!(text, "  {name} {}", line.shown(value.unwrap_or_default()));
            }
            let _ = writeln!(text, "  {}", text::counted(total.count, "sample"));
        }
        let from = text::time(self.range.start());
        let to = text::time(from_ms(self.range.end_ms() - 1));
        let column = humantime::format_duration(self.column).to_string();
        let column = column.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let _ = writeln!(text, "{from} to {to}, {column} per dot");
    }
}

/// Writes `label` into `line` with its middle at `column`, unless it would touch what is there.
fn place(line: &mut String, column: usize, label: &str) {
    let rightmost = line.len().saturating_sub(label.len() + 1);
    let start = column.saturating_sub(label.len() / 2).min(rightmost);
    let end = start + label.len();
    let around = line.get(start.saturating_sub(1)..end + 1);
    if around.is_some_and(|part| part.trim().is_empty()) {
        line.replace_range(start..end, label);
    }
}

fn coloured(text: &str, colour: Option<usize>) -> String {
    match colour {
        Some(colour) => format!("\x1b[{}m{text}\x1b[0m", COLOURS[colour % SERIES_MAX]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage::metrics::Accumulator;

    fn chart(values: &[(i64, f64)], end_ms: i64) -> Chart {
        let mut total = Accumulator::default();
        let windows = values
            .iter()
            .map(|(ms, value)| {
                total.push(*value);
                let mut one = Accumulator::default();
                one.push(*value);
                Window { start: from_ms(*ms), aggregation: one.finish() }
            })
            .collect();
        let line = Line { name: "s m".into(), windows, total: total.finish() };
        Chart {
            width: 60,
            height: 8,
            range: TimeRange::new(from_ms(0), from_ms(end_ms)).unwrap(),
            column: Duration::from_millis(1),
            includes_zero: false,
            is_coloured: false,
            lines: vec![line],
        }
    }

    #[test]
    fn axes_and_legend_tell_the_numbers() {
        let values: Vec<_> = (0..60).map(|minute| (minute * 60_000, minute as f64)).collect();
        let text = chart(&values, 3_600_000).render();
        for part in ["50 ┤", "0 ┤", "00:10", "00:50", "1970-01-01", "min 0", "max 59", "avg 29.5"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn odd_values_are_drawn() {
        for values in [
            vec![(0, 0.0)],
            vec![(0, 5.0), (1, 5.0)],
            vec![(0, -f64::MAX), (1, f64::MAX)],
            vec![(0, f64::MIN_POSITIVE), (1, 0.0)],
            vec![(0, 1e15), (1, 1e15 + 1.0)],
        ] {
            let text = chart(&values, 2).render();
            assert!(text.contains('┤') && !text.contains("NaN"), "{values:?}\n{text}");
        }
    }

    #[test]
    fn all_of_time_has_few_labels() {
        let all = Chart { range: TimeRange::all(), ..chart(&[(0, 1.0)], 1) };
        assert!(TimeStep::for_range(all.range, 49).ticks(all.range).len() < 12);
        assert!(all.render().contains("2000"));
    }
}
