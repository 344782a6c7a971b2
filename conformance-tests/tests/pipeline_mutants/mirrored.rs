//! Mirrors.

use super::Mutant;
use super::Test::Unit;

/// What a write does when the primary does not take it.
const PRIMARY_FAILS: &str = "if let Err(error) = self.primary.write_batch(records).await {
        if error.outcome() == Outcome::NotApplied {
            doubt.settle();
        }
        return Err(error);
    }";

/// A test of mirrors.
macro_rules! mirrors {
    ($name:literal) => {
        Unit(concat!("compose::mirrored::tests::", $name))
    };
}

pub(super) const ALL: &[Mutant] = &[
    // Writes.
    Mutant {
        name: "a_write_that_the_primary_refused_is_acknowledged",
        file: "compose/mirrored.rs",
        right: PRIMARY_FAILS,
        wrong: "if let Err(error) = self.primary.write_batch(records).await {
                return self.judged(Err(error));
            }",
        caught_by: mirrors!("a_batch_that_the_primary_refused_is_in_neither"),
    },
    Mutant {
        name: "the_secondary_takes_what_the_primary_refused",
        file: "compose/mirrored.rs",
        right: PRIMARY_FAILS,
        wrong: "if let Err(error) = self.primary.write_batch(records).await {
                let _ = self.secondary.write_batch(records).await;
                if error.outcome() == Outcome::NotApplied {
                    doubt.settle();
                }
                return Err(error);
            }",
        caught_by: mirrors!("a_batch_that_the_primary_refused_is_in_neither"),
    },
    Mutant {
        name: "what_the_primary_may_hold_is_not_counted",
        file: "compose/mirrored.rs",
        right: PRIMARY_FAILS,
        wrong: "if let Err(error) = self.primary.write_batch(records).await {
                doubt.settle();
                return Err(error);
            }",
        caught_by: mirrors!("a_batch_that_the_primary_refused_is_in_neither"),
    },
    Mutant {
        name: "what_the_primary_refused_is_counted",
        file: "compose/mirrored.rs",
        right: PRIMARY_FAILS,
        wrong: "if let Err(error) = self.primary.write_batch(records).await { return Err(error); }",
        caught_by: mirrors!("a_batch_that_the_primary_refused_is_in_neither"),
    },
    Mutant {
        name: "a_missed_batch_is_not_counted",
        file: "compose/mirrored.rs",
        right: "self.store.known().miss_batch(records, extent_ms);",
        wrong: "{ let _ = (records, extent_ms); }",
        caught_by: mirrors!("with_degrade_a_failing_secondary_is_counted_and_repaired"),
    },
    Mutant {
        name: "a_missed_prune_is_not_counted",
        file: "compose/mirrored.rs",
        right: "self.store.known().miss_prune(cutoff)",
        wrong: "()",
        caught_by: mirrors!("a_repair_prunes_what_was_missed_and_reports_what_it_cannot_remove"),
    },
    Mutant {
        name: "a_write_given_up_half_way_is_not_counted",
        file: "compose/mirrored.rs",
        right: "«let written = self.secondary.write_batch(records).await;
            if written.is_ok() {
                doubt.settle();
            }
            self.judged(written)»",
        wrong: "let missed = {
                let mut doubt = doubt;
                doubt.missed.take()
            };
            let written = self.secondary.write_batch(records).await;
            drop(Doubt { store: self, missed: missed.filter(|_| written.is_err()) });
            self.judged(written)",
        caught_by: mirrors!("a_write_that_is_given_up_half_way_is_counted"),
    },
    Mutant {
        name: "a_required_secondary_is_not_required",
        file: "compose/mirrored.rs",
        right: r#"Err(error.with_outcome(Outcome::Unknown).with_context("mirror", "secondary"))"#,
        wrong: "Ok(())",
        caught_by: mirrors!("with_require_a_failing_secondary_fails_the_write"),
    },
    Mutant {
        name: "a_write_that_one_side_has_says_it_was_not_applied",
        file: "compose/mirrored.rs",
        right: r#"Err(error.with_outcome(Outcome::Unknown).with_context("mirror", "secondary"))"#,
        wrong: r#"Err(error.with_context("mirror", "secondary"))"#,
        caught_by: mirrors!("with_require_a_failing_secondary_fails_the_write"),
    },
    Mutant {
        name: "writes_of_a_series_overtake_each_other",
        file: "compose/mirrored.rs",
        right: "self.take_lanes(records).await",
        wrong: "Vec::<OwnedMutexGuard<()>>::new()",
        caught_by: mirrors!("writes_of_a_series_reach_both_in_one_order"),
    },
    Mutant {
        name: "a_prune_does_not_wait_for_writes",
        file: "compose/mirrored.rs",
        right: "let _alone = «self.gate.write().await»;
            let doubt",
        wrong: "Box::leak(Box::new(RwLock::new(()))).write().await",
        caught_by: mirrors!("prunes_and_writes_reach_both_in_one_order"),
    },
    // Repairs.
    Mutant {
        name: "a_repair_of_a_part_forgets_the_rest",
        file: "compose/mirrored.rs",
        right: "options.range().contains(oldest) && options.range().contains(newest)",
        wrong: "{ let _ = (oldest, newest); true }",
        caught_by: mirrors!("with_degrade_a_failing_secondary_is_counted_and_repaired"),
    },
    Mutant {
        name: "a_repair_of_some_series_forgets_the_others",
        file: "compose/mirrored.rs",
        right: "if *now == known && is_whole && «*options.filter() == SeriesFilter::any()»",
        wrong: "true",
        caught_by: mirrors!("a_repair_of_some_series_does_not_forget_the_others"),
    },
    Mutant {
        name: "a_repair_forgets_what_is_missed_meanwhile",
        file: "compose/mirrored.rs",
        right: "if «*now == known» && is_whole",
        wrong: "true",
        caught_by: mirrors!("a_repair_does_not_forget_what_is_missed_meanwhile"),
    },
    Mutant {
        name: "a_repair_does_not_prune",
        file: "compose/mirrored.rs",
        right: "report.samples_pruned = «self.secondary.prune_before(cutoff).await?»;",
        wrong: "{ let _ = cutoff; 0 }",
        caught_by: mirrors!("a_repair_prunes_what_was_missed_and_reports_what_it_cannot_remove"),
    },
    Mutant {
        name: "a_repair_prunes_more_than_it_brings_back",
        file: "compose/mirrored.rs",
        right: "if «brings_back»",
        wrong: "true",
        caught_by: mirrors!("a_repair_of_a_part_removes_nothing_that_the_primary_holds"),
    },
    Mutant {
        name: "a_repair_without_the_prune_forgets_it",
        file: "compose/mirrored.rs",
        right: "covers && «is_pruned» && !options.dry_run()",
        wrong: "true",
        caught_by: mirrors!("a_repair_of_a_part_removes_nothing_that_the_primary_holds"),
    },
    Mutant {
        name: "a_dry_run_forgets_what_was_missed",
        file: "compose/mirrored.rs",
        right: "covers && is_pruned && «!options.dry_run()»",
        wrong: "true",
        caught_by: mirrors!("a_dry_run_of_a_repair_changes_and_forgets_nothing"),
    },
    Mutant {
        name: "a_repair_mends_what_is_missing_alone",
        file: "compose/mirrored.rs",
        right: "if «!found.holds_source()» {
                let _alone",
        wrong: "found.missing > 0",
        caught_by: mirrors!("with_degrade_a_failing_secondary_is_counted_and_repaired"),
    },
    Mutant {
        name: "health_does_not_tell_of_what_was_missed",
        file: "compose/mirrored.rs",
        right: "match «(secondary.status, known.is_none())»",
        wrong: "(secondary.status, true)",
        caught_by: mirrors!("with_degrade_a_failing_secondary_is_counted_and_repaired"),
    },
];
