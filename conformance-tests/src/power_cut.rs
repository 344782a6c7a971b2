//! Power cuts, for the test targets of backends that keep data on disk.
//!
//! As [`crash`](crate::crash), but the writer works on a file system of its own, whose power is
//! cut under it: see `image` for what that means. Every second cut comes after the writer has
//! stopped, when no later write can hide that an acknowledged one was never synced.
//!
//! Needs root, `mkfs.ext4`, loop devices and `python3`; see [`unavailable`] and [`trial`].

mod image;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};

use crate::crash::{DirFixture, Lane, Part, Story};
use crate::failure::{CaseResult, Failure};
use image::{Image, Switch};

/// Size of the file system.
const IMAGE_MEBIBYTES: u64 = 256;

/// How many cuts, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerCutPlan {
    /// The most cuts.
    pub cuts: u32,
    /// Decides when each cut comes.
    pub seed: u64,
    /// Let the writer stop before every second cut.
    pub quiesce_every_second: bool,
    /// What a loss means.
    pub losses: Losses,
}

/// What it means if a batch that was acknowledged is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Losses {
    /// The test has failed.
    Fail,
    /// The negative control has done its work, and stops: on a store that does not sync, the test
    /// can see a loss.
    Stop,
}

/// What the cuts did. Its `Display` is one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PowerCutReport {
    /// Cuts.
    pub cuts: u32,
    /// Of these, after the writer had stopped.
    pub quiesced: u32,
    /// Batches that had been acknowledged when the power was cut.
    pub acked: u64,
    /// Cuts that lost batches which had been acknowledged.
    pub losing_cuts: u32,
    /// Batches that had been acknowledged and were lost.
    pub lost: u64,
    /// Batches that were under way, or acknowledged while the cut came, and are there, whole.
    pub under_way_kept: u64,
    /// How long all that took.
    pub elapsed: Duration,
}

impl fmt::Display for PowerCutReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cuts, quiesced, acked, losing_cuts, lost, under_way_kept, elapsed } = self;
        write!(
            f,
            "{cuts} power cuts ({quiesced} after the writer stopped), {acked} batches acknowledged, \
             {lost} lost in {losing_cuts} cuts, {under_way_kept} under way kept whole, {:.1} s",
            elapsed.as_secs_f64()
        )
    }
}

/// Says why the power cannot be cut on this machine, if so. Tries it once, on a small image.
pub fn unavailable() -> Option<String> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    let rehearsal = || image::rehearse().err().map(|failure| failure.message().to_owned());
    REASON.get_or_init(rehearsal).clone()
}

/// Makes a test of `run` that is ignored where the power cannot be cut, with the reason, and fails
/// there if `CONFORMANCE_REQUIRE` names `power_cut` (or `all`).
pub fn trial(name: &str, run: impl FnOnce() -> CaseResult + Send + 'static) -> Trial {
    let Some(reason) = unavailable() else {
        return Trial::test(name, move || run().map_err(Failed::from));
    };
    let message = format!("the power cannot be cut here: {reason}");
    let trial = {
        let message = message.clone();
        Trial::test(name, move || Err(Failed::from(message)))
    };
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let names_it = |word: &str| matches!(word.trim(), "power_cut" | "all" | "1");
    match required.split(',').any(names_it) {
        true => trial,
        false => trial.with_ignored_flag(true).with_kind(message),
    }
}

/// Cuts the power under a writer at random moments, and verifies what is left.
///
/// Whatever the plan says of losses, a store that holds a part of a batch, or lacks one in the
/// middle, is an error.
///
/// # Errors
/// What was torn, damaged or, where that fails, lost, with the cut and the seed; what went wrong
/// otherwise.
pub fn cut_loop(
    fixture: Arc<dyn DirFixture>,
    plan: PowerCutPlan,
) -> Result<PowerCutReport, Failure> {
    cut_loop_on(fixture, Part::Metrics, plan)
}

/// As [`cut_loop`], with a writer that writes to one part of the store.
///
/// # Errors
/// As [`cut_loop`].
pub fn cut_loop_on(
    fixture: Arc<dyn DirFixture>,
    part: Part,
    plan: PowerCutPlan,
) -> Result<PowerCutReport, Failure> {
    let started = Instant::now();
    let mut image = Image::create(IMAGE_MEBIBYTES)?;
    let dir = image.root().join("store");
    std::fs::create_dir(&dir)?;
    // The directory is not the backend's: it was there before, and safely so.
    std::fs::File::open(image.root())?.sync_all()?;
    // Not pruned: on a store that does not sync, the prune would be lost, too.
    let mut story = Story::new(&fixture, &dir, 1).of(part).without_pruning();
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let mut report = PowerCutReport::default();
    for cut in 1..=plan.cuts {
        let quiesce = plan.quiesce_every_second && cut % 2 == 0;
        cut_round(&mut image, &mut story, &mut random, quiesce, plan.losses, &mut report).map_err(
            |failure| {
                failure.during(format!("cut {cut} of {} with the seed {}", plan.cuts, plan.seed))
            },
        )?;
        if report.lost > 0 {
            break;
        }
    }
    image.unmount()?;
    report.elapsed = started.elapsed();
    Ok(report)
}

fn cut_round(
    image: &mut Image,
    story: &mut Story<'_>,
    random: &mut fastrand::Rng,
    quiesce: bool,
    losses: Losses,
    report: &mut PowerCutReport,
) -> CaseResult {
    let before = story.last[0];
    let switch = Switch::arm(image)?;
    let mut writers = story.start_writers()?;
    let Some(writer) = writers.first_mut() else { return Err(Failure::new("no writer")) };
    writer.wait_first_ack()?;
    std::thread::sleep(Duration::from_micros(random.u64(..300_000)));
    if quiesce {
        writer.quiesce()?;
    }
    // What fails from now on may fail because of the cut.
    writer.check()?;
    let acked = writer.acked();
    switch.cut()?;
    let acked_at_most = writer.kill()?;
    drop(writers);
    image.unmount()?;
    image.mount()?;

    report.cuts += 1;
    report.quiesced += u32::from(quiesce);
    report.acked += acked - before;
    // Once the writer has stopped, nothing is under way.
    let last_max = acked_at_most + u64::from(!quiesce);
    let found = match losses {
        Losses::Fail => story.verify(vec![(Lane(0), acked..=last_max)])?,
        Losses::Stop => story.verify_whole()?,
    };
    for lane in found {
        ensure!(lane.last <= last_max, "batch {} is there, {last_max} was the last", lane.last);
        report.lost += acked.saturating_sub(lane.last);
        report.losing_cuts += u32::from(lane.last < acked);
        report.under_way_kept += lane.last.saturating_sub(acked);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_line() {
        let report = PowerCutReport { cuts: 4, quiesced: 2, acked: 10, ..Default::default() };
        assert_eq!(
            report.to_string(),
            "4 power cuts (2 after the writer stopped), 10 batches acknowledged, 0 lost in 0 cuts, \
             0 under way kept whole, 0.0 s"
        );
    }
}
