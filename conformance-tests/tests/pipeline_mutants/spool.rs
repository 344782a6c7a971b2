//! The spool, and the backend behind one.

use super::Mutant;
use super::Test::Pipeline;

pub(super) const ALL: &[Mutant] = &[
    // The queue.
    Mutant {
        name: "a_batch_is_removed_before_it_is_written",
        file: "pipeline/spool.rs",
        right: "write(front.records).await?;
            inner.pop(front.end, count as u64, front.bytes, front.next_at_ms).await?;",
        wrong: "inner.pop(front.end, count as u64, front.bytes, front.next_at_ms).await?;
            write(front.records).await?;",
        caught_by: Pipeline("spool::a_write_that_fails_or_is_dropped_leaves_the_batch"),
    },
    Mutant {
        name: "two_drain_the_same_batch",
        file: "pipeline/spool.rs",
        right: "let _one = «inner.draining.lock().await»;",
        wrong: "Box::leak(Box::new(AsyncMutex::new(()))).lock().await",
        caught_by: Pipeline("spool::many_drain_at_once_and_each_batch_comes_once"),
    },
    Mutant {
        name: "closing_leaves_what_was_drained",
        file: "pipeline/spool.rs",
        right: "let removed = «self.0.prune().await»;
        self.0.store.close().await?;",
        wrong: "Ok(())",
        caught_by: Pipeline("spool::closing_removes_what_a_dropped_step_has_drained"),
    },
    Mutant {
        name: "a_removal_takes_the_next_batch_too",
        file: "pipeline/spool.rs",
        right: "self.store.prune_before(from_ms(head)).await?;",
        wrong: "self.store.prune_before(from_ms(head + 1)).await?;",
        caught_by: Pipeline("spool::what_is_done_is_removed_and_nothing_else"),
    },
    Mutant {
        name: "nothing_is_removed_before_the_end",
        file: "pipeline/spool.rs",
        right: "state.head == state.tail || «state.head - state.pruned >= CHUNKS_DONE_MAX»",
        wrong: "false",
        caught_by: Pipeline("spool::what_is_done_is_removed_and_nothing_else"),
    },
    Mutant {
        name: "a_spool_that_is_not_removed_yet_is_empty",
        file: "pipeline/spool.rs",
        right: "«state.pruned == state.tail»
            }",
        wrong: "state.head == state.tail",
        caught_by: Pipeline("spool::a_spool_is_empty_only_when_it_is_removed"),
    },
    Mutant {
        name: "a_push_in_doubt_gives_its_numbers_away",
        file: "pipeline/spool.rs",
        right: "error.outcome() == Outcome::Unknown",
        wrong: "false",
        caught_by: Pipeline("spool::a_batch_in_doubt_and_the_next_one_come_out_whole"),
    },
    Mutant {
        name: "a_spool_has_no_bounds",
        file: "pipeline/spool.rs",
        right: "if «!fits»",
        wrong: "false",
        caught_by: Pipeline("spool::bounds_are_kept_and_room_comes_back"),
    },
    Mutant {
        name: "a_large_batch_comes_in_pieces",
        file: "pipeline/spool.rs",
        right: "missing > 0",
        wrong: "false",
        caught_by: Pipeline("spool::large_batches_stay_whole"),
    },
    Mutant {
        name: "what_a_former_process_left_is_not_counted",
        file: "pipeline/spool.rs",
        right: "batches.sum.unwrap_or_default() as u64",
        wrong: "0",
        caught_by: Pipeline("spool::what_is_pushed_and_popped_survives_opening_again"),
    },
    Mutant {
        name: "a_push_in_doubt_is_not_counted",
        file: "pipeline/spool.rs",
        right: "state.records += count;",
        wrong: "if written.is_ok() { state.records += count; }",
        caught_by: Pipeline("spool::a_batch_in_doubt_counts_until_it_is_known_not_to_be_there"),
    },
    Mutant {
        name: "what_is_left_of_a_batch_is_taken_for_one",
        file: "pipeline/spool.rs",
        right: "chunks.iter().find(|chunk| «chunk.is_first()»)",
        wrong: "{ let _ = chunk; true }",
        caught_by: Pipeline("spool::a_removal_that_was_killed_leaves_a_spool_that_can_be_drained"),
    },
    // The backend.
    Mutant {
        name: "one_handle_alone_hears_of_a_batch",
        file: "pipeline/spool.rs",
        right: "self.pushed.notify_waiters();",
        wrong: "self.pushed.notify_one();",
        caught_by: Pipeline("spooled::what_one_handle_leaves_another_drains"),
    },
    Mutant {
        name: "a_caller_that_is_not_polled_holds_up_the_others",
        file: "pipeline/spooled.rs",
        right: r#"tokio::spawn(step).await.unwrap_or_else(|error| {
            Err(Error::new(ErrorKind::Internal, "the spool broke off").with_source(error))
        })"#,
        wrong: "step.await",
        caught_by: Pipeline("spooled::a_read_that_is_not_polled_holds_up_no_other"),
    },
    Mutant {
        name: "a_slow_store_is_waited_for_as_long_as_it_takes",
        file: "pipeline/spooled.rs",
        right: "Ok(_) if «spool.is_drained_to(tail) || Instant::now() < deadline»",
        wrong: "true",
        caught_by: Pipeline(
            "spooled::a_slow_store_is_not_waited_for_any_longer_than_one_that_fails",
        ),
    },
    Mutant {
        name: "batches_overtake_those_that_wait",
        file: "pipeline/spooled.rs",
        right: "if «self.shared.spool.is_idle()»",
        wrong: "true",
        caught_by: Pipeline("spooled::the_last_write_wins_through_the_spool"),
    },
    Mutant {
        name: "batches_overtake_one_that_is_on_its_way",
        file: "pipeline/spool.rs",
        right: "«self.0.on_their_way.load(Ordering::Acquire) == 0» && self.is_empty()",
        wrong: "true",
        caught_by: Pipeline("spooled::a_dropped_write_does_not_overtake"),
    },
    Mutant {
        name: "reads_miss_what_waits",
        file: "pipeline/spooled.rs",
        right: "SpooledReads::Exact => «self.settle(operation).await»",
        wrong: "Ok(())",
        caught_by: Pipeline("spooled::answers_wait_for_what_was_acknowledged"),
    },
    Mutant {
        name: "a_prune_passes_what_waits",
        file: "pipeline/spooled.rs",
        right: r#"self.settle("prune_before").await?;"#,
        wrong: "{}",
        caught_by: Pipeline("spooled::answers_wait_for_what_was_acknowledged"),
    },
    Mutant {
        name: "a_prune_leaves_what_a_crash_drains_again",
        file: "pipeline/spooled.rs",
        right: r#"self.shared.remove_drained("prune_before").await?;"#,
        wrong: "{}",
        caught_by: Pipeline("spooled::a_crash_brings_nothing_back_that_was_pruned"),
    },
    Mutant {
        name: "a_spool_that_broke_keeps_batches_from_the_backend",
        file: "pipeline/spooled.rs",
        right: "None if «spool.is_drained()»",
        wrong: "false",
        caught_by: Pipeline("spooled::a_spool_that_broke_keeps_nothing_from_the_store"),
    },
    Mutant {
        name: "reads_wait_until_a_spool_that_broke_has_removed_what_was_drained",
        file: "pipeline/spool.rs",
        right: "self.0.state().head >= tail",
        wrong: "self.0.state().pruned >= tail",
        caught_by: Pipeline("spooled::a_spool_that_broke_keeps_nothing_from_the_store"),
    },
    Mutant {
        name: "a_batch_that_may_be_in_the_spool_says_it_was_not_applied",
        file: "pipeline/spooled.rs",
        right: "if «may_be_there»",
        wrong: "false",
        caught_by: Pipeline("spooled::a_batch_that_may_be_in_the_spool_is_in_doubt"),
    },
    Mutant {
        name: "a_flush_leaves_what_waits",
        file: "pipeline/spooled.rs",
        right: r#"self.settle("flush").await?;"#,
        wrong: "{}",
        caught_by: Pipeline("spooled::answers_wait_for_what_was_acknowledged"),
    },
    Mutant {
        name: "what_is_refused_for_good_blocks_the_spool",
        file: "pipeline/spooled.rs",
        right: "Err(error) if «is_passing(&error)»",
        wrong: "true",
        caught_by: Pipeline("spooled::what_is_refused_for_good_is_not_spooled"),
    },
    Mutant {
        name: "a_full_store_refuses_although_there_is_a_spool",
        file: "pipeline/spooled.rs",
        right: "matches!(error.kind(), Unavailable | Busy | Timeout | StorageFull | Io)",
        wrong: "matches!(error.kind(), Unavailable | Busy | Timeout)",
        caught_by: Pipeline("spooled::a_store_without_space_is_away_for_a_while"),
    },
    Mutant {
        name: "a_store_behind_retries_refuses_although_there_is_a_spool",
        file: "pipeline/spooled.rs",
        right: "matches!(error.kind(), Unavailable | Busy | Timeout | StorageFull | Io)",
        wrong: "matches!(error.kind(), StorageFull | Io)",
        caught_by: Pipeline("spooled::a_store_behind_retries_is_away_for_a_while"),
    },
    Mutant {
        name: "nobody_drains_in_the_background",
        file: "pipeline/spooled.rs",
        right: "match «self.drain_step().await» {
                Ok(_) => delays",
        wrong: "std::future::pending::<Result<usize>>().await",
        caught_by: Pipeline(
            "spooled::batches_are_taken_while_the_store_is_away_and_stored_when_it_is_back",
        ),
    },
    Mutant {
        name: "closing_leaves_what_could_be_drained",
        file: "pipeline/spooled.rs",
        right: r#"self.settle("close").await"#,
        wrong: "Ok::<(), Error>(())",
        caught_by: Pipeline("spooled::closing_drains_what_it_can"),
    },
    Mutant {
        name: "health_is_that_of_the_store_alone",
        file: "pipeline/spooled.rs",
        right: "health.status != HealthStatus::Healthy || «spool.is_empty()»",
        wrong: "true",
        caught_by: Pipeline(
            "spooled::batches_are_taken_while_the_store_is_away_and_stored_when_it_is_back",
        ),
    },
];
