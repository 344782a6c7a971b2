//! Charts of dots: braille patterns, axes, a legend.
//!
//! Eight dots make a character, so a chart of 100 columns has 200 places in time. A place spans
//! from the smallest to the largest value of its window, and is joined to the one before.

use std::fmt::Write;
use std::time::Duration;

use chrono::{DateTime, Datelike, Timelike, Utc};
use storage::metrics::time::{floor_ms, from_ms};
use storage::{MetricAggregation, TimeRange, Window};

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
            let label = labels
                .iter()
                .find(|(at, _)| *at == row)
                .map(|(_, label)| label.as_str());
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
            let (Some(min), Some(max), Some(first), Some(last)) = (
                aggregation.min,
                aggregation.max,
                aggregation.first,
                aggregation.last,
            ) else {
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
        let width = self.plot_width();
        let step = TimeStep::for_range(self.range, width);
        let mut axis = vec!['─'; width];
        let mut times = " ".repeat(width + 20);
        let mut dates = times.clone();
        let mut date_before = None;
        for tick in step.ticks(self.range) {
            let column = self.dot_column(tick) / 2;
            axis[column] = '┬';
            let date = tick.date_naive();
            let label = step.label(tick);
            let start = column
                .saturating_sub(label.len() / 2)
                .min(width.saturating_sub(label.len()));
            place(&mut times, start, &label);
            if step.has_time_of_day() && date_before != Some(date) {
                let start = column.saturating_sub(5).min(width.saturating_sub(10));
                place(&mut dates, start, &date.format("%Y-%m-%d").to_string());
                date_before = Some(date);
            }
        }
        let axis: String = axis.into_iter().collect();
        let _ = writeln!(text, "{:>LABEL_WIDTH$} └{axis}", "");
        for line in [times, dates] {
            if !line.trim().is_empty() {
                let _ = writeln!(text, "{:>LABEL_WIDTH$}  {}", "UTC", line.trim_end());
            }
        }
    }

    fn write_legend(&self, text: &mut String) {
        let name_width = self
            .lines
            .iter()
            .map(|line| line.name.chars().count())
            .max()
            .unwrap_or(0);
        text.push('\n');
        for (index, line) in self.lines.iter().enumerate() {
            let mark = coloured("●", Some(index).filter(|_| self.is_coloured));
            let _ = write!(text, "{mark} {:<name_width$}", line.name);
            let total = &line.total;
            let parts = [
                ("min", total.min),
                ("max", total.max),
                ("avg", total.avg),
                ("last", total.last),
            ];
            for (name, value) in parts {
                let _ = write!(
                    text,
                    "  {name} {}",
                    text::rounded(value.unwrap_or_default())
                );
            }
            let _ = writeln!(text, "  {}", text::counted(total.count, "sample"));
        }
        let from = text::time(self.range.start());
        let to = text::time(from_ms(self.range.end_ms() - 1));
        let column = humantime::format_duration(self.column);
        let _ = writeln!(text, "{from} to {to}, a column of dots is {column}");
    }
}

/// Writes `label` over `line` at `start`, unless it would touch what stands there.
fn place(line: &mut String, start: usize, label: &str) {
    let from = start.saturating_sub(1);
    let to = start + label.len() + 1;
    let is_free = line
        .get(from..to)
        .is_some_and(|part| part.trim().is_empty());
    if is_free {
        line.replace_range(start..start + label.len(), label);
    }
}

fn coloured(text: &str, colour: Option<usize>) -> String {
    match colour {
        Some(colour) => format!("\x1b[{}m{text}\x1b[0m", COLOURS[colour % SERIES_MAX]),
        None => text.to_owned(),
    }
}

/// The vertical axis.
struct Scale {
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    fn of(lines: &[Line], includes_zero: bool, height: usize) -> Self {
        let values = lines
            .iter()
            .flat_map(|line| [line.total.min, line.total.max])
            .flatten();
        let (mut low, mut high) = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if includes_zero {
            (low, high) = (low.min(0.0), high.max(0.0));
        }
        // Halves, because the span of the largest numbers overflows.
        if high / 2.0 - low / 2.0 <= f64::EPSILON * low.abs().max(high.abs()) {
            let margin = if low == 0.0 { 1.0 } else { low.abs() * 0.05 };
            (low, high) = (low - margin, high + margin);
        }
        let labels = (height as f64 / 3.0).clamp(1.0, 10.0);
        let step = round_step((high / labels) - (low / labels));
        // The axis ends at round numbers, unless that leaves much of the chart empty.
        let (floor, ceil) = ((low / step).floor() * step, (high / step).ceil() * step);
        let spare = (high / 2.0 - low / 2.0) * 0.4;
        low = if low / 2.0 - floor / 2.0 <= spare / 2.0 {
            floor
        } else {
            low
        };
        high = if ceil / 2.0 - high / 2.0 <= spare / 2.0 {
            ceil
        } else {
            high
        };
        Self { low, high, step }
    }

    /// Returns the row of dots for `value`, from 0 at the bottom to `top`.
    fn place(&self, value: f64, top: usize) -> usize {
        let part = (value / 2.0 - self.low / 2.0) / (self.high / 2.0 - self.low / 2.0);
        (part.clamp(0.0, 1.0) * top as f64).round() as usize
    }

    /// Returns labels with the line of characters, from the top, that each belongs to.
    fn labels(&self, height: usize) -> Vec<(usize, String)> {
        let dots = height * 4 - 1;
        let first = (self.low / self.step - 1e-9).ceil();
        let last = (self.high / self.step + 1e-9).floor();
        let count = (last - first).clamp(0.0, 1000.0) as usize;
        let values = (0..=count).map(|index| (first + index as f64) * self.step);
        values
            .map(|value| {
                // What is left of a step that cannot be written in binary is zero.
                let value = if value.abs() < self.step * 1e-9 {
                    0.0
                } else {
                    value
                };
                (
                    height - 1 - self.place(value, dots) / 4,
                    short(value, self.step),
                )
            })
            .collect()
    }
}

/// Returns 1, 2, 2.5 or 5 times a power of ten, at least `rough`.
fn round_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    let steps = factors.into_iter().map(|factor| factor * power);
    let found = steps.into_iter().find(|step| *step >= rough * (1.0 - 1e-9));
    found
        .filter(|step| step.is_finite() && *step > 0.0)
        .unwrap_or(rough.max(f64::MIN_POSITIVE))
}

/// Returns `value` in at most [`LABEL_WIDTH`] characters, as exact as `step` needs.
fn short(value: f64, step: f64) -> String {
    let units = [
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
        (1.0, ""),
    ];
    let magnitude = value.abs().max(step);
    let (unit, suffix) = units
        .into_iter()
        .find(|(unit, _)| magnitude >= *unit * if *unit > 1.0 { 10.0 } else { 1.0 })
        .unwrap_or((1.0, ""));
    let step = step / unit;
    let decimals = (0..=6).find(|decimals| {
        let shifted = step * 10_f64.powi(*decimals);
        (shifted - shifted.round()).abs() < 1e-6 * shifted && shifted >= 0.999
    });
    let decimals = usize::try_from(decimals.unwrap_or(6)).unwrap_or_default();
    let label = format!("{:.decimals$}{suffix}", value / unit);
    if label.len() <= LABEL_WIDTH && step >= 1e-6 {
        label
    } else {
        format!("{value:.2e}")
    }
}

/// Dots, eight to a character.
struct Canvas {
    width: usize,
    height: usize,
    cells: Vec<(u8, usize)>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Self {
            width,
            height,
            cells: vec![(0, 0); width * height],
        }
    }

    fn dot_rows(&self) -> usize {
        self.height * 4
    }

    /// Sets the dot `x` from the left and `y` from the bottom.
    fn set(&mut self, x: usize, y: usize, colour: usize) {
        const BITS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
        let from_top = self.dot_rows() - 1 - y;
        let (row, column) = (from_top / 4, x / 2);
        if let Some(cell) = self.cells.get_mut(row * self.width + column) {
            *cell = (cell.0 | BITS[from_top % 4][x % 2], colour);
        }
    }

    /// Sets the dots between two, both included.
    fn join(&mut self, from: (usize, usize), to: (usize, usize), colour: usize) {
        let steps = from.0.abs_diff(to.0).max(from.1.abs_diff(to.1)).max(1);
        let between = |a: usize, b: usize, step: usize| {
            let part = step as f64 / steps as f64;
            (a as f64 + (b as f64 - a as f64) * part).round() as usize
        };
        for step in 0..=steps {
            self.set(
                between(from.0, to.0, step),
                between(from.1, to.1, step),
                colour,
            );
        }
    }

    fn row(&self, row: usize, is_coloured: bool) -> String {
        let mut line = String::new();
        for (bits, colour) in &self.cells[row * self.width..(row + 1) * self.width] {
            let character = char::from_u32(0x2800 + u32::from(*bits)).filter(|_| *bits > 0);
            let character = character.unwrap_or(' ').to_string();
            let colour = Some(*colour).filter(|_| is_coloured && *bits > 0);
            line.push_str(&coloured(&character, colour));
        }
        line
    }
}

/// The distance between two labels of the time axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimeStep {
    Ms(i64),
    Months(u32),
}

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

impl TimeStep {
    /// Returns the smallest step whose labels fit side by side.
    fn for_range(range: TimeRange, width: usize) -> Self {
        const FIXED: [i64; 31] = [
            1,
            2,
            5,
            10,
            20,
            50,
            100,
            200,
            500,
            SECOND,
            2 * SECOND,
            5 * SECOND,
            10 * SECOND,
            15 * SECOND,
            30 * SECOND,
            MINUTE,
            2 * MINUTE,
            5 * MINUTE,
            10 * MINUTE,
            15 * MINUTE,
            30 * MINUTE,
            HOUR,
            2 * HOUR,
            3 * HOUR,
            6 * HOUR,
            12 * HOUR,
            DAY,
            2 * DAY,
            4 * DAY,
            7 * DAY,
            14 * DAY,
        ];
        const MONTHS: [u32; 12] = [1, 2, 3, 6, 12, 24, 60, 120, 240, 600, 1200, 12_000];
        let span_ms = range.end_ms() - range.start_ms();
        let fits = |step_ms: i64, label: usize| {
            span_ms / step_ms.max(1) * (label as i64 + 3) <= width as i64
        };
        let fixed = FIXED.into_iter().map(Self::Ms);
        let months = MONTHS.into_iter().map(Self::Months);
        let found = fixed.chain(months).find(|step| match step {
            Self::Ms(ms) => fits(*ms, step.label(DateTime::UNIX_EPOCH).len()),
            Self::Months(months) => fits(i64::from(*months) * 30 * DAY, 7),
        });
        found.unwrap_or(Self::Months(12_000))
    }

    fn has_time_of_day(self) -> bool {
        matches!(self, Self::Ms(ms) if ms < DAY)
    }

    fn label(self, time: DateTime<Utc>) -> String {
        let pattern = match self {
            Self::Ms(ms) if ms < SECOND => "%H:%M:%S%.3f",
            Self::Ms(ms) if ms < MINUTE => "%H:%M:%S",
            Self::Ms(ms) if ms < DAY => "%H:%M",
            Self::Ms(_) => "%Y-%m-%d",
            Self::Months(months) if months < 12 => "%Y-%m",
            Self::Months(_) => "%Y",
        };
        time.format(pattern).to_string()
    }

    fn ticks(self, range: TimeRange) -> Vec<DateTime<Utc>> {
        let mut ticks = Vec::new();
        let mut next = Some(self.at_or_before(range.start()));
        while let Some(tick) = next.filter(|tick| *tick < range.end()) {
            if tick >= range.start() {
                ticks.push(tick);
            }
            next = match self {
                Self::Ms(ms) => tick.checked_add_signed(chrono::Duration::milliseconds(ms)),
                Self::Months(months) => tick.checked_add_months(chrono::Months::new(months)),
            };
        }
        ticks
    }

    fn at_or_before(self, time: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::Ms(step_ms) => {
                let ms = floor_ms(time);
                from_ms(ms - ms.rem_euclid(step_ms))
            }
            Self::Months(months) => {
                let years = (months / 12).max(1) as i32;
                let year = time.year() - time.year().rem_euclid(years);
                let first = time.with_day(1).and_then(|time| time.with_month(1));
                let first = first.and_then(|time| time.with_year(year));
                let midnight = first.and_then(|time| time.with_hour(0)?.with_minute(0));
                midnight
                    .and_then(|time| time.with_second(0)?.with_nanosecond(0))
                    .unwrap_or(time)
            }
        }
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
                Window {
                    start: from_ms(*ms),
                    aggregation: one.finish(),
                }
            })
            .collect();
        let line = Line {
            name: "s m".into(),
            windows,
            total: total.finish(),
        };
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
        let values: Vec<_> = (0..60)
            .map(|minute| (minute * MINUTE, minute as f64))
            .collect();
        let text = chart(&values, HOUR).render();
        for part in [
            "50 ┤",
            "0 ┤",
            "00:10",
            "00:50",
            "1970-01-01",
            "min 0",
            "max 59",
            "avg 29.5",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
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
            assert!(
                text.contains('┤') && !text.contains("NaN"),
                "{values:?}\n{text}"
            );
        }
    }

    #[test]
    fn all_of_time_has_few_labels() {
        let all = Chart {
            range: TimeRange::all(),
            ..chart(&[(0, 1.0)], 1)
        };
        assert!(TimeStep::for_range(all.range, 49).ticks(all.range).len() < 12);
        assert!(all.render().contains("2000"));
    }

    #[test]
    fn steps_and_labels() {
        assert_eq!([0.3, 1.0, 2.1, 7.0].map(round_step), [0.5, 1.0, 2.5, 10.0]);
        assert_eq!(short(0.5, 0.5), "0.5");
        assert_eq!(short(25_000.0, 5_000.0), "25k");
        assert_eq!(short(2_500.0, 500.0), "2500");
        assert_eq!(short(12.5, 2.5), "12.5");
    }
}
