//! The vertical axis: from where to where, and which values are written beside it.

use super::{LABEL_WIDTH, Line};

/// The vertical axis.
pub(super) struct Scale {
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    pub(super) fn of(lines: &[Line], includes_zero: bool, height: usize) -> Self {
        let values = lines.iter().flat_map(|line| [line.total.min, line.total.max]).flatten();
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
        low = if low / 2.0 - floor / 2.0 <= spare / 2.0 { floor } else { low };
        high = if ceil / 2.0 - high / 2.0 <= spare / 2.0 { ceil } else { high };
        Self { low, high, step }
    }

    /// Returns the row of dots for `value`, from 0 at the bottom to `top`.
    pub(super) fn place(&self, value: f64, top: usize) -> usize {
        let part = (value / 2.0 - self.low / 2.0) / (self.high / 2.0 - self.low / 2.0);
        (part.clamp(0.0, 1.0) * top as f64).round() as usize
    }

    /// Returns labels with the line of characters, from the top, that each belongs to.
    pub(super) fn labels(&self, height: usize) -> Vec<(usize, String)> {
        let dots = height * 4 - 1;
        let first = (self.low / self.step - 1e-9).ceil();
        let last = (self.high / self.step + 1e-9).floor();
        let count = (last - first).clamp(0.0, 1000.0) as usize;
        let values = (0..=count).map(|index| (first + index as f64) * self.step);
        values
            .map(|value| {
                // What is left of a step that cannot be written in binary is zero.
                let value = if value.abs() < self.step * 1e-9 { 0.0 } else { value };
                (height - 1 - self.place(value, dots) / 4, short(value, self.step))
            })
            .collect()
    }
}

/// Returns 1, 2, 2.5 or 5 times a power of ten, at least `rough`.
pub(super) fn round_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    let steps = factors.into_iter().map(|factor| factor * power);
    let found = steps.into_iter().find(|step| *step >= rough * (1.0 - 1e-9));
    found.filter(|step| step.is_finite() && *step > 0.0).unwrap_or(rough.max(f64::MIN_POSITIVE))
}

/// Returns `value` in at most [`LABEL_WIDTH`] characters, as exact as `step` needs.
pub(super) fn short(value: f64, step: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let units = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")];
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
    if label.len() <= LABEL_WIDTH && step >= 1e-6 { label } else { format!("{value:.2e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_labels() {
        assert_eq!([0.3, 1.0, 2.1, 7.0].map(round_step), [0.5, 1.0, 2.5, 10.0]);
        assert_eq!(short(0.5, 0.5), "0.5");
        assert_eq!(short(25_000.0, 5_000.0), "25k");
        assert_eq!(short(2_500.0, 500.0), "2500");
        assert_eq!(short(12.5, 2.5), "12.5");
    }
}
