//! Rollups and retention.

use super::Mutant;
use super::Test::Unit;

/// A test of rollups.
macro_rules! rollups {
    ($name:literal) => {
        Unit(concat!("pipeline::rollup::tests::", $name))
    };
}

pub(super) const ALL: &[Mutant] = &[
    // Rolling up.
    Mutant {
        name: "a_refresh_forgets_marks",
        file: "pipeline/rollup/roll.rs",
        right: "new.union(&marked.widened(tier.width_ms))",
        wrong: "new",
        caught_by: rollups!("late_and_replaced_samples_reopen_their_windows"),
    },
    Mutant {
        name: "a_refresh_is_done_with_marks_made_beside_it",
        file: "pipeline/rollup/roll.rs",
        right: "self.view.epoch - 1",
        wrong: "self.view.epoch",
        caught_by: rollups!("seams::a_mark_made_beside_a_refresh_is_not_done_with"),
    },
    Mutant {
        name: "a_refresh_announces_nothing",
        file: "pipeline/rollup/roll.rs",
        right: "view.announced_ms.max(announced_ms)",
        wrong: "view.announced_ms",
        caught_by: rollups!("late_and_replaced_samples_reopen_their_windows"),
    },
    Mutant {
        name: "a_refresh_rolls_up_what_is_not_complete",
        file: "pipeline/rollup/roll.rs",
        right: "self.stores.now_ms().saturating_sub(delay_ms)",
        wrong: "self.stores.now_ms()",
        caught_by: rollups!("windows_come_from_rollups_where_they_can"),
    },
    Mutant {
        name: "a_refresh_rolls_up_windows_of_which_samples_are_gone",
        file: "pipeline/rollup/roll.rs",
        right: "self.view.frozen_end(tier.width_ms).max(floor_ms)",
        wrong: "floor_ms",
        caught_by: rollups!("seams::a_window_that_a_prune_divides_counts_once"),
    },
    Mutant {
        name: "a_refresh_takes_what_was_pruned_by_another_way_for_replaced",
        file: "pipeline/rollup/roll.rs",
        right: "before.count > now.count",
        wrong: "false",
        caught_by: rollups!(
            "what_was_written_by_another_way_is_in_no_rollup_until_it_is_looked_for"
        ),
    },
    Mutant {
        name: "a_refresh_clears_marks_away_that_are_not_done_with",
        file: "pipeline/rollup/turn.rs",
        right: "control.clear_up(left.oldest_ms).await",
        wrong: "{ let _ = left; control.clear_up(crate::metrics::time::END_MS).await }",
        caught_by: rollups!("seams::old_marks_stay_until_they_are_done_with"),
    },
    Mutant {
        name: "who_comes_next_finishes_nothing_of_rollups",
        file: "pipeline/rollup/turn.rs",
        right: "match «turn.finish_left().await»",
        wrong: "Ok::<(), crate::Error>(())",
        caught_by: rollups!("crashes::a_prune_that_dies_at_any_change_loses_and_doubles_nothing"),
    },
    // Writing.
    Mutant {
        name: "late_samples_are_marked_after_they_are_written",
        file: "pipeline/rollup/write.rs",
        right: "self.mark(&before, records, widths_ms).await.map_err(&in_doubt)?;
            self.stores.raw.write_batch(records).await.map_err(&in_doubt)?;",
        wrong: "self.stores.raw.write_batch(records).await.map_err(&in_doubt)?;
            self.mark(&before, records, widths_ms).await.map_err(&in_doubt)?;",
        caught_by: rollups!(
            "crashes::a_writer_that_dies_at_any_change_leaves_no_batch_half_rolled_up"
        ),
    },
    Mutant {
        name: "late_samples_are_not_marked_again_after_a_refresh_began",
        file: "pipeline/rollup/write.rs",
        right: "before.epoch != after.epoch",
        wrong: "false",
        caught_by: rollups!("seams::a_write_beside_a_refresh_is_marked_again"),
    },
    Mutant {
        name: "a_mark_that_failed_is_taken_for_made",
        file: "pipeline/rollup/marks.rs",
        right: "control.write_batch(&[record.with_metadata(metadata)]).await?;
            self.made().add(epoch, &content.ranges);",
        wrong: "self.made().add(epoch, &content.ranges);
            control.write_batch(&[record.with_metadata(metadata)]).await?;",
        caught_by: rollups!("seams::a_mark_that_failed_is_made_by_the_next_write"),
    },
    Mutant {
        name: "a_write_beside_a_prune_goes_in",
        file: "pipeline/rollup/view.rs",
        right: "self.phase != Phase::Idle && ms < self.cutoff_ms",
        wrong: "{ let _ = ms; false }",
        caught_by: rollups!("seams::a_write_waits_for_a_prune_of_its_time"),
    },
    Mutant {
        name: "a_write_that_a_prune_overtook_is_acknowledged",
        file: "pipeline/rollup/write.rs",
        right: "was_overtaken && !after.waited_for(landed)",
        wrong: "{ let _ = landed; false }",
        caught_by: rollups!("seams::a_slow_write_that_a_prune_overtook_is_written_again"),
    },
    // Pruning.
    Mutant {
        name: "samples_are_pruned_ahead_of_their_rollups",
        file: "pipeline/rollup/prune.rs",
        right: "roll(&stores, &whole, range(oldest_ms, cutoff_ms)?).await?;",
        wrong: "{ let _ = &whole; }",
        caught_by: rollups!("what_comes_after_a_prune_is_added"),
    },
    Mutant {
        name: "samples_are_pruned_before_their_rollups_count",
        file: "pipeline/rollup/prune.rs",
        right: "«Ok(folds)»
            };
            self.lease",
        wrong: "{ stores.raw.prune_before(from_ms(cutoff_ms)).await?; Ok(folds) }",
        caught_by: rollups!("crashes::a_prune_that_dies_at_any_change_loses_and_doubles_nothing"),
    },
    Mutant {
        name: "a_window_that_a_cutoff_divides_is_forgotten",
        file: "pipeline/rollup/prune.rs",
        right: "Ranges::of([(view.from_ms, frozen_ms), (divided_ms, cutoff_ms)])",
        wrong: "{ let _ = divided_ms; Ranges::of([(view.from_ms, frozen_ms)]) }",
        caught_by: rollups!("what_comes_after_a_prune_is_added"),
    },
    Mutant {
        name: "what_came_late_is_pruned_and_forgotten",
        file: "pipeline/rollup/prune.rs",
        right: "Ranges::of([(view.from_ms, frozen_ms), (divided_ms, cutoff_ms)])",
        wrong: "{ let _ = frozen_ms; Ranges::of([(divided_ms, cutoff_ms)]) }",
        caught_by: rollups!("what_comes_after_a_prune_is_added"),
    },
    Mutant {
        name: "rollups_of_removed_samples_are_made_anew_from_what_is_left",
        file: "pipeline/rollup/prune.rs",
        right: "view.frozen_end(width_ms).max(view.reach(width_ms).floor_ms)",
        wrong: "view.reach(width_ms).floor_ms",
        caught_by: rollups!("what_comes_after_a_prune_is_added"),
    },
    Mutant {
        name: "a_row_counts_twice_what_is_removed",
        file: "pipeline/rollup/prune.rs",
        right: "now.filter(|_| start_ms < self.view.frozen_ms)",
        wrong: "now",
        caught_by: rollups!("seams::a_window_that_a_prune_divides_counts_once"),
    },
    Mutant {
        name: "what_an_abandoned_prune_announced_is_folded",
        file: "pipeline/rollup/prune.rs",
        right: "row.pending.filter(|pending| pending.turn == view.turn)",
        wrong: "row.pending",
        caught_by: rollups!("crashes::a_prune_that_dies_at_any_change_loses_and_doubles_nothing"),
    },
    Mutant {
        name: "what_was_announced_is_never_put_in_its_place",
        file: "pipeline/rollup/prune.rs",
        right: "view.phase = if folds > 0 { Phase::Folding } else { Phase::Pruning };",
        wrong: "{ let _ = folds; view.phase = Phase::Pruning; }",
        caught_by: rollups!("what_comes_after_a_prune_is_added"),
    },
    Mutant {
        name: "old_rollups_are_removed_and_still_asked_for",
        file: "pipeline/rollup/prune.rs",
        right: "reach.floor_ms = reach.floor_ms.max(floor_ms);",
        wrong: "{ let _ = floor_ms; }",
        caught_by: Unit("pipeline::retention::tests::each_is_kept_as_long_as_the_policy_says"),
    },
    // Reading.
    Mutant {
        name: "reads_miss_what_came_late",
        file: "pipeline/rollup/reads.rs",
        right: "self.late(filter, piece.start_ms, frozen_ms, tier).await?",
        wrong: "{ let _ = frozen_ms; Late::new() }",
        caught_by: rollups!("what_comes_after_a_prune_is_added"),
    },
    Mutant {
        name: "reads_count_twice_what_is_being_pruned",
        file: "pipeline/rollup/reads.rs",
        right: "Phase::Pruning => «start_ms.max(self.view.cutoff_ms)»",
        wrong: "start_ms",
        caught_by: rollups!("crashes::a_prune_that_dies_at_any_change_loses_and_doubles_nothing"),
    },
    Mutant {
        name: "reads_take_rollups_that_are_half_folded",
        file: "pipeline/rollup/reads.rs",
        right: "view.phase == Phase::Folding",
        wrong: "false",
        caught_by: rollups!("seams::reads_wait_while_rollups_are_folded"),
    },
    Mutant {
        name: "reads_take_rollups_that_late_samples_reopened",
        file: "pipeline/rollup/reads.rs",
        right: "let mut open = «self.marked.clone()»",
        wrong: "Ranges::default()",
        caught_by: rollups!("late_and_replaced_samples_reopen_their_windows"),
    },
    Mutant {
        name: "reads_count_although_rollups_changed_meanwhile",
        file: "pipeline/rollup/reads.rs",
        right: "now.generation == view.generation",
        wrong: "true",
        caught_by: rollups!("seams::a_read_that_a_prune_met_is_asked_again"),
    },
    Mutant {
        name: "reads_take_rollups_that_are_not_made_yet",
        file: "pipeline/rollup/reads.rs",
        right: "window_start_ms(end_ms.min(rolled_ms), width_ms)",
        wrong: "{ let _ = rolled_ms; window_start_ms(end_ms, width_ms) }",
        caught_by: rollups!("windows_come_from_rollups_where_they_can"),
    },
    Mutant {
        name: "percentiles_are_made_of_what_is_left",
        file: "pipeline/rollup/reads.rs",
        right: "range.is_empty() || range.start_ms() >= view.frozen_ms",
        wrong: "true",
        caught_by: rollups!("percentiles_are_of_samples_or_refused"),
    },
    Mutant {
        name: "the_first_of_two_sums_is_the_first_that_was_removed",
        file: "pipeline/rollup/row.rs",
        right: "if other.first_ms <= self.first_ms { other } else { self }",
        wrong: "self",
        caught_by: Unit("pipeline::rollup::row::tests::rollups_add_by_time"),
    },
    Mutant {
        name: "an_infinite_sum_comes_back_as_nothing",
        file: "pipeline/rollup/row.rs",
        right: "self.infinite.unwrap_or(sum)",
        wrong: "sum",
        caught_by: Unit("pipeline::rollup::row::tests::rows_are_read_as_they_were_written"),
    },
    // Retention.
    Mutant {
        name: "every_process_applies_the_policy",
        file: "pipeline/retention/plan.rs",
        right: "interval.is_some_and(|interval| !is_due(turn.retained(), now, interval))",
        wrong: "{ let _ = interval; false }",
        caught_by: Unit(
            "pipeline::retention::tests::one_of_several_tasks_applies_the_policy_in_an_interval",
        ),
    },
    Mutant {
        name: "an_age_cuts_a_window_of_rollups",
        file: "pipeline/retention/plan.rs",
        right: "place.align(floor_ms(before(now, rule.age?)))",
        wrong: "before(now, rule.age?)",
        caught_by: Unit("pipeline::retention::tests::an_age_within_a_day_keeps_the_whole_day"),
    },
    Mutant {
        name: "what_is_too_large_goes_before_it_is_rolled_up",
        file: "pipeline/retention/plan.rs",
        right: "cutoff_ms.min(floor_ms(before(now, place.delay)))",
        wrong: "{ let _ = place.delay; cutoff_ms }",
        caught_by: Unit("pipeline::retention::tests::what_is_too_large_loses_its_oldest"),
    },
    Mutant {
        name: "a_sample_from_the_future_is_the_end_of_what_there_is",
        file: "pipeline/retention/plan.rs",
        right: "floor_ms(stats.newest_metric?).min(floor_ms(now))",
        wrong: "floor_ms(stats.newest_metric?)",
        caught_by: Unit("pipeline::retention::tests::a_sample_from_the_future_costs_no_others"),
    },
    Mutant {
        name: "what_does_not_become_smaller_is_removed",
        file: "pipeline/retention/plan.rs",
        right: "was_enough && after.disk_usage_bytes >= stats.disk_usage_bytes",
        wrong: "{ let _ = was_enough; false }",
        caught_by: Unit(
            "pipeline::retention::tests::a_store_that_does_not_become_smaller_keeps_what_is_not_too_much",
        ),
    },
    Mutant {
        name: "a_prune_takes_the_steps_of_the_widest_rollups",
        file: "pipeline/rollup/prune.rs",
        right: "widest_ms * (STEP_MS / widest_ms).max(1)",
        wrong: "{ let _ = STEP_MS; widest_ms }",
        caught_by: rollups!("a_prune_behind_narrow_rollups_takes_long_steps"),
    },
    Mutant {
        name: "a_plan_removes",
        file: "pipeline/retention/plan.rs",
        right: "self.rows_removed = samples / place.row_samples();",
        wrong: "{ let _ = samples; self.rows_removed = place.store.prune_before(cutoff).await?; }",
        caught_by: Unit("pipeline::retention::tests::each_is_kept_as_long_as_the_policy_says"),
    },
    Mutant {
        name: "a_failure_ends_the_task",
        file: "repeated.rs",
        right: "error.kind() == ErrorKind::Closed",
        wrong: "true",
        caught_by: Unit(
            "pipeline::retention::tests::a_task_goes_on_after_a_failure_and_ends_with_the_store",
        ),
    },
    Mutant {
        name: "a_closed_store_does_not_end_the_task",
        file: "repeated.rs",
        right: "error.kind() == ErrorKind::Closed",
        wrong: "false",
        caught_by: Unit(
            "pipeline::retention::tests::a_task_goes_on_after_a_failure_and_ends_with_the_store",
        ),
    },
];
