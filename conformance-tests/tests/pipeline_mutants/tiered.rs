//! Tiers, archiving, and the control store behind both.

use super::Mutant;
use super::Test::Unit;

/// A test of tiers.
macro_rules! tiers {
    ($name:literal) => {
        Unit(concat!("compose::tiered::tests::", $name))
    };
}

/// A test of tasks that archive.
macro_rules! archives {
    ($name:literal) => {
        Unit(concat!("pipeline::archive::tests::", $name))
    };
}

pub(super) const ALL: &[Mutant] = &[
    // Reads.
    Mutant {
        name: "reads_drop_the_last_archived_millisecond",
        file: "compose/tiered/reads.rs",
        right: "cut(range, cold_ms, view.cold_end_ms)?",
        wrong: "cut(range, cold_ms, view.cold_end_ms - 1)?",
        caught_by: tiers!("seams::bounds_of_windows_belong_to_one_tier"),
    },
    Mutant {
        name: "reads_drop_the_first_hot_millisecond",
        file: "compose/tiered/reads.rs",
        right: "(view.cutoff_ms, MIN_MS)",
        wrong: "(view.cutoff_ms + 1, MIN_MS)",
        caught_by: tiers!("seams::bounds_of_windows_belong_to_one_tier"),
    },
    Mutant {
        name: "opening_drops_the_newest_of_a_filled_cold_tier",
        file: "compose/tiered.rs",
        right: "view.cold_end_ms.max(floor_ms(newest) + 1)",
        wrong: "view.cold_end_ms.max(floor_ms(newest))",
        caught_by: tiers!("seams::a_filled_cold_tier_is_read_to_its_end"),
    },
    Mutant {
        name: "reads_count_although_samples_were_moved_meanwhile",
        file: "compose/tiered.rs",
        right: "now.generation == self.view.generation",
        wrong: "true",
        caught_by: tiers!("seams::a_read_that_a_move_met_is_asked_again"),
    },
    Mutant {
        name: "reads_take_hot_samples_that_were_moved",
        file: "compose/tiered/reads.rs",
        right: "(view.cutoff_ms, MIN_MS)",
        wrong: "(MIN_MS, MIN_MS)",
        caught_by: tiers!("seams::what_a_move_takes_away_does_not_show"),
    },
    Mutant {
        name: "the_cold_tier_is_remembered_for_good",
        file: "compose/tiered/cold.rs",
        right: "*generation == view.generation",
        wrong: "*generation <= view.generation",
        caught_by: tiers!(
            "seams::what_the_cold_tier_holds_is_read_anew_after_moves_and_prunes_of_others"
        ),
    },
    Mutant {
        name: "the_newest_leave_out_series_that_stopped",
        file: "compose/tiered/cold.rs",
        right: "last.is_some_and(|last| last.timestamp >= info.newest)",
        wrong: "last.is_none_or(|last| last.timestamp >= info.newest)",
        caught_by: tiers!("seams::the_newest_ask_the_cold_tier_for_series_that_stopped_alone"),
    },
    Mutant {
        name: "archived_samples_cover_late_ones",
        file: "compose/tiered/overlay.rs",
        right: "hot.peek().is_none_or(|over| order(&under, over) != Ordering::Equal)",
        wrong: "{ hot.next_if(|over| order(&under, over) == Ordering::Equal); true }",
        caught_by: tiers!("late_samples_lie_over_archived_ones_and_end_in_the_cold_tier"),
    },
    Mutant {
        name: "aggregates_count_late_samples_twice",
        file: "compose/tiered/reads.rs",
        right: "match «self.late(server_id, metric_type, &parts).await?»",
        wrong: "Vec::<MetricRecord>::new()",
        caught_by: tiers!("late_samples_lie_over_archived_ones_and_end_in_the_cold_tier"),
    },
    Mutant {
        name: "aggregates_count_the_last_late_millisecond_twice",
        file: "compose/tiered/reads.rs",
        right: "cut(parts.cold, last_ms + 1, END_MS)?",
        wrong: "cut(parts.cold, last_ms, END_MS)?",
        caught_by: tiers!("seams::late_samples_over_both_ends_of_their_stretch_count_once"),
    },
    Mutant {
        name: "aggregates_keep_a_sum_that_is_lost",
        file: "compose/tiered/overlay.rs",
        right: "(finite(earlier) && finite(later)).then(|| all.finish())",
        wrong: "Some(all.finish())",
        caught_by: tiers!("sums_that_do_not_fit_are_formed_from_the_samples"),
    },
    Mutant {
        name: "windows_count_late_samples_at_the_edge_twice",
        file: "compose/tiered/reads.rs",
        right: "!self.late_at_edge().await?.contains(series)",
        wrong: "true",
        caught_by: tiers!("late_samples_lie_over_archived_ones_and_end_in_the_cold_tier"),
    },
    Mutant {
        name: "latest_shows_what_is_being_pruned",
        file: "compose/tiered/reads.rs",
        right: "one.samples.retain(|sample| range.contains(sample.timestamp));",
        wrong: "{ let _ = range; }",
        caught_by: tiers!("seams::what_is_being_pruned_shows_nowhere"),
    },
    Mutant {
        name: "latest_shows_what_was_never_acknowledged",
        file: "compose/tiered/reads.rs",
        right: "counted(hot, parts.hot)",
        wrong: "hot",
        caught_by: tiers!("seams::what_a_move_takes_away_does_not_show"),
    },
    Mutant {
        name: "series_count_what_was_never_acknowledged",
        file: "compose/tiered/reads.rs",
        right: "let before = «uncounted().await?»;",
        wrong: "BTreeMap::new()",
        caught_by: tiers!("seams::what_a_move_takes_away_does_not_show"),
    },
    Mutant {
        name: "series_begin_where_a_move_ends",
        file: "compose/tiered/reads.rs",
        right: "self.hot_oldest(&info.series, &parts).await?.unwrap_or(info.oldest)",
        wrong: "info.oldest",
        caught_by: tiers!("seams::what_a_move_takes_away_does_not_show"),
    },
    Mutant {
        name: "reads_show_what_is_being_pruned",
        file: "compose/tiered/reads.rs",
        right: "(view.cutoff_ms, view.cutoff_ms)",
        wrong: "(MIN_MS, MIN_MS)",
        caught_by: tiers!("seams::what_is_being_pruned_shows_nowhere"),
    },
    Mutant {
        name: "stats_count_what_is_being_pruned",
        file: "compose/tiered/reads.rs",
        right: "while «self.view.phase == Phase::Pruning»",
        wrong: "false",
        caught_by: tiers!("a_killed_prune_is_finished_by_whoever_comes_next"),
    },
    Mutant {
        name: "stats_count_late_samples_twice",
        file: "compose/tiered/reads.rs",
        right: "info.count = «info.count.saturating_sub(count)»;",
        wrong: "info.count",
        caught_by: tiers!("late_samples_lie_over_archived_ones_and_end_in_the_cold_tier"),
    },
    Mutant {
        name: "a_scan_that_met_a_move_repeats_a_sample",
        file: "compose/tiered/scan.rs",
        right: "floor_ms(sample.timestamp) <= ms",
        wrong: "floor_ms(sample.timestamp) < ms",
        caught_by: tiers!("seams::a_scan_goes_on_where_a_move_met_it"),
    },
    Mutant {
        name: "a_scan_that_met_a_move_goes_on_with_what_it_had_opened",
        file: "compose/tiered/scan.rs",
        right: "!reading.is_settled().await?",
        wrong: "false",
        caught_by: tiers!("seams::a_scan_goes_on_where_a_move_met_it"),
    },
    // Writes.
    Mutant {
        name: "late_writes_go_in_while_their_window_is_closed",
        file: "compose/tiered.rs",
        right: "matches!(view.phase, Phase::Closing | Phase::Moving)",
        wrong: "view.phase == Phase::Moving",
        caught_by: tiers!("seams::a_late_write_waits_while_its_window_is_closed"),
    },
    Mutant {
        name: "late_writes_are_acknowledged_although_they_were_moved_away",
        file: "compose/tiered.rs",
        right: "after.waited_for(landed) || untouched && !is_late(&after)",
        wrong: "true",
        caught_by: tiers!("a_late_write_that_a_move_takes_away_is_written_again"),
    },
    Mutant {
        name: "a_write_that_was_applied_says_it_was_not",
        file: "compose/tiered.rs",
        right: "outcome = Outcome::Unknown;",
        wrong: "outcome = Outcome::NotApplied;",
        caught_by: tiers!("seams::a_write_that_cannot_look_afterwards_is_in_doubt"),
    },
    Mutant {
        name: "late_writes_clear_up_behind_nobody",
        file: "compose/tiered.rs",
        right: "Instant::now() >= clears_up",
        wrong: "false",
        caught_by: tiers!(
            "an_archiver_killed_at_every_write_and_removal_neither_loses_nor_doubles"
        ),
    },
    // Moves.
    Mutant {
        name: "a_move_prunes_before_it_compares",
        file: "compose/tiered/moves.rs",
        right: "compare(&*tiers.hot, &*tiers.cold, &any, range).await?",
        wrong: "{
                tiers.hot.prune_before(from_ms(cutoff_ms)).await?;
                compare(&*tiers.hot, &*tiers.cold, &any, range).await?
            }",
        caught_by: tiers!("seams::what_comes_while_a_window_is_copied_is_archived_with_it"),
    },
    Mutant {
        name: "a_move_trusts_its_copy",
        file: "compose/tiered/moves.rs",
        right: "found.holds_source()",
        wrong: "true",
        caught_by: tiers!("seams::what_comes_while_a_window_is_copied_is_archived_with_it"),
    },
    Mutant {
        name: "a_move_only_looks_for_what_is_missing",
        file: "compose/tiered/moves.rs",
        right: "found.holds_source()",
        wrong: "found.missing == 0",
        caught_by: tiers!("seams::what_comes_while_a_window_is_copied_is_archived_with_it"),
    },
    Mutant {
        name: "a_move_does_not_wait_for_writes_under_way",
        file: "compose/tiered/moves.rs",
        right: "sleep(tiers.options.settle).await;",
        wrong: "{}",
        caught_by: tiers!("seams::a_move_waits_for_writes_under_way"),
    },
    Mutant {
        name: "a_move_prunes_what_it_did_not_publish",
        file: "compose/tiered/moves.rs",
        right: "self.turn(Phase::Moving, self.view.cutoff_ms).await",
        wrong: "Ok(())",
        caught_by: tiers!("seams::a_late_write_that_looks_when_all_is_over_is_written_again"),
    },
    Mutant {
        name: "a_move_prunes_the_first_millisecond_that_stays",
        file: "compose/tiered/moves.rs",
        right: "let removed = self.lease.keeping(«tiers.hot.prune_before(cutoff)»).await?;",
        wrong: "tiers.hot.prune_before(cutoff + chrono::TimeDelta::milliseconds(1))",
        caught_by: tiers!("seams::bounds_of_windows_belong_to_one_tier"),
    },
    Mutant {
        name: "who_comes_next_forgets_the_hot_tier_of_a_prune",
        file: "compose/tiered/moves.rs",
        right: "self.lease.keeping(tiers.cold.prune_before(cutoff)).await?;
            self.lease.keeping(tiers.hot.prune_before(cutoff)).await?;",
        wrong: "self.lease.keeping(tiers.cold.prune_before(cutoff)).await?;",
        caught_by: tiers!("a_killed_prune_is_finished_by_whoever_comes_next"),
    },
    Mutant {
        name: "who_comes_next_finishes_nothing",
        file: "compose/tiered/moves.rs",
        right: "moving.finish_left().await?;",
        wrong: "{}",
        caught_by: tiers!("seams::a_prune_that_died_is_finished_before_another_move"),
    },
    Mutant {
        name: "a_prune_takes_late_samples_before_what_they_cover",
        file: "compose/tiered/moves.rs",
        right: "let cold = tiers.cold.prune_before(cutoff).await.map_err(unsure)?;
            let hot = tiers.hot.prune_before(cutoff).await.map_err(unsure)?;
            Ok((cold + hot).saturating_sub(doubles))",
        wrong: "let hot = tiers.hot.prune_before(cutoff).await.map_err(unsure)?;
            let cold = tiers.cold.prune_before(cutoff).await.map_err(unsure)?;
            Ok((cold + hot).saturating_sub(doubles))",
        caught_by: tiers!("seams::a_prune_that_fails_shows_what_is_left"),
    },
    Mutant {
        name: "a_prune_counts_twice_what_both_tiers_hold",
        file: "compose/tiered/moves.rs",
        right: "count_doubles(tiers, cutoff_ms).await?",
        wrong: "0",
        caught_by: tiers!("a_prune_counts_what_both_tiers_hold_once"),
    },
    Mutant {
        name: "a_prune_that_failed_hides_what_is_left",
        file: "compose/tiered/moves.rs",
        right: "let _ = turn.turn(Phase::Idle, MIN_MS).await;",
        wrong: "{}",
        caught_by: tiers!("seams::a_prune_that_fails_shows_what_is_left"),
    },
    Mutant {
        name: "a_prune_that_failed_keeps_its_turn",
        file: "compose/tiered/moves.rs",
        right: "let _ = turn.lease.release().await;",
        wrong: "{ drop(turn.lease); }",
        caught_by: tiers!("seams::a_prune_that_fails_shows_what_is_left"),
    },
    // Archiving.
    Mutant {
        name: "an_archive_leaves_publishing_out",
        file: "pipeline/archive.rs",
        right: "moving.publish().await?;",
        wrong: "{}",
        caught_by: tiers!("seams::an_archive_tells_what_holds_at_each_step"),
    },
    Mutant {
        name: "an_archive_prunes_before_it_verifies",
        file: "pipeline/archive.rs",
        right: "«moving.close().await?»;
            tell(ArchiveStep::Verified);",
        wrong: "{ moving.publish().await?; moving.prune_hot().await?; moving.close().await? }",
        caught_by: tiers!("seams::an_archive_tells_what_holds_at_each_step"),
    },
    Mutant {
        name: "an_archive_moves_a_part_of_a_window",
        file: "pipeline/archive.rs",
        right: "window_start_ms(floor_ms(options.cutoff), width_ms)",
        wrong: "floor_ms(options.cutoff)",
        caught_by: tiers!("whole_windows_move_and_no_answer_changes"),
    },
    Mutant {
        name: "an_archive_that_fails_keeps_its_turn",
        file: "pipeline/archive.rs",
        right: "let ended = moving.end().await;
            moved?;
            ended.map(|()| report)",
        wrong: "moved?; let ended = moving.end().await; ended.map(|()| report)",
        caught_by: tiers!("seams::an_archive_that_fails_gives_its_turn_back"),
    },
    Mutant {
        name: "a_dry_run_archives",
        file: "pipeline/archive.rs",
        right: "options.dry_run",
        wrong: "false",
        caught_by: tiers!("whole_windows_move_and_no_answer_changes"),
    },
    Mutant {
        name: "every_process_archives",
        file: "pipeline/archive/task.rs",
        right: "moving.archived().is_none_or(|last| is_due(last, now, self.interval))",
        wrong: "true",
        caught_by: archives!("one_of_several_tasks_archives_in_an_interval"),
    },
    Mutant {
        name: "a_stop_waits_for_all_windows",
        file: "pipeline/archive.rs",
        right: "!goes_on()",
        wrong: "false",
        caught_by: archives!(
            "a_task_that_is_stopped_moves_the_window_under_way_and_gives_its_turn_back"
        ),
    },
    Mutant {
        name: "a_failure_ends_the_archiving",
        file: "repeated.rs",
        right: "error.kind() == ErrorKind::Closed",
        wrong: "true",
        caught_by: archives!("a_task_goes_on_after_a_failure_and_ends_with_the_store"),
    },
    Mutant {
        name: "retention_removes_what_is_not_archived",
        file: "pipeline/retention/plan.rs",
        right: "ms.min(self.end_ms)",
        wrong: "ms",
        caught_by: archives!("retention_removes_nothing_that_is_not_archived"),
    },
    // The control store.
    Mutant {
        name: "two_take_the_lease_at_once",
        file: "control.rs",
        right: "match «self.is_held_elsewhere().await»",
        wrong: "Ok::<bool, Error>(false)",
        caught_by: Unit("control::tests::of_two_that_want_the_lease_at_once_one_gets_it"),
    },
    Mutant {
        name: "who_lost_the_lease_goes_on",
        file: "control.rs",
        right: "self.renewed.elapsed() >= self.leases.lease / 2",
        wrong: "false",
        caught_by: Unit("control::tests::a_renewal_that_takes_too_long_is_none"),
    },
    Mutant {
        name: "who_renews_a_lease_does_not_look",
        file: "control.rs",
        right: "if «self.leases.is_held_elsewhere().await?»",
        wrong: "false",
        caught_by: Unit("control::tests::a_lease_that_another_has_is_not_kept"),
    },
    Mutant {
        name: "a_lease_is_as_old_as_the_clock_says",
        file: "control.rs",
        right: "now_ms.max(before_ms.saturating_add(1))",
        wrong: "{ let _ = before_ms; now_ms }",
        caught_by: Unit("control::tests::a_clock_that_is_set_back_hides_no_lease"),
    },
    Mutant {
        name: "a_view_is_published_over_any_other",
        file: "control.rs",
        right: "self.view().await?.generation() + 1 != view.generation()",
        wrong: "false",
        caught_by: Unit("control::tests::a_view_is_read_as_it_was_published"),
    },
    Mutant {
        name: "long_work_loses_its_lease",
        file: "control.rs",
        right: "sleep(renewal).await;",
        wrong: "std::future::pending::<()>().await;",
        caught_by: Unit("control::tests::long_work_keeps_its_lease"),
    },
    Mutant {
        name: "clearing_up_takes_what_is_to_be_kept",
        file: "control.rs",
        right: "keep_from_ms.min(floor_ms(Utc::now()) - age_ms)",
        wrong: "floor_ms(Utc::now()) - age_ms",
        caught_by: Unit("control::tests::what_is_to_be_kept_is_not_cleared_away"),
    },
];
