//! Progress on stderr: nothing where stderr is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::Output;

const TICK: Duration = Duration::from_millis(120);

/// A bar by bytes, or a counter of bytes if their number is not known.
pub(crate) fn of_bytes(output: &Output, total: Option<u64>) -> ProgressBar {
    match total {
        Some(total) => start(
            output,
            ProgressBar::new(total),
            "{wide_msg} {bar:30} {bytes:>10}/{total_bytes} {binary_bytes_per_sec:>12} eta {eta}",
        ),
        None => start(
            output,
            ProgressBar::new_spinner(),
            "{spinner} {wide_msg} {bytes:>10} {binary_bytes_per_sec:>12}",
        ),
    }
}

/// A bar by parts of a whole whose number is set later.
pub(crate) fn of_parts(output: &Output) -> ProgressBar {
    start(output, ProgressBar::new(1), "{wide_msg} {bar:30} {percent:>3} % eta {eta}")
}

/// A line that tells what happens at the moment.
pub(crate) fn of_events(output: &Output) -> ProgressBar {
    start(output, ProgressBar::new_spinner(), "{spinner} [{elapsed_precise}] {wide_msg}")
}

/// A bar by ticks with a line that tells what happens.
pub(crate) fn of_ticks(output: &Output, total: u64) -> ProgressBar {
    start(output, ProgressBar::new(total), "[{elapsed_precise}] {bar:20} {pos}/{len} {wide_msg}")
}

fn start(output: &Output, bar: ProgressBar, template: &str) -> ProgressBar {
    if output.is_quiet() {
        return ProgressBar::hidden();
    }
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.enable_steady_tick(TICK);
    bar
}
