//! The actor: its buffer, its sources, its writer.

use super::Mutant;
use super::Test::Pipeline;

pub(super) const ALL: &[Mutant] = &[
    // What the sketch got wrong.
    Mutant {
        name: "a_full_batch_waits_for_its_age",
        file: "pipeline/buffer.rs",
        right: "self.open.len() >= bounds.flush_records",
        wrong: "false",
        caught_by: Pipeline("bugs::a_full_buffer_is_written_without_anybody_asking"),
    },
    Mutant {
        name: "a_failed_flush_drops_its_batch",
        file: "pipeline/writer.rs",
        right: "self.shared.failed(&error);
            sleep(next(&mut delays)).await;
            None",
        wrong: "self.shared.failed(&error); Some(Vec::new())",
        caught_by: Pipeline("bugs::a_failed_flush_keeps_its_batch"),
    },
    Mutant {
        name: "a_shutdown_has_no_last_flush",
        file: "pipeline/state.rs",
        right: "«state.buffer.close(lane);»
            state.sources[lane].ended = true;",
        wrong: "{}",
        caught_by: Pipeline("bugs::the_last_flush_is_reached_by_every_way_to_stop"),
    },
    Mutant {
        name: "a_lagged_broadcast_ends_its_source",
        file: "pipeline/source.rs",
        right: "taken.lagged += lagged",
        wrong: "{
                let _ = lagged;
                self.items = None;
                return Poll::Ready((count > 0).then_some(taken));
            }",
        caught_by: Pipeline("bugs::a_lagged_broadcast_is_counted_and_goes_on"),
    },
    Mutant {
        name: "what_a_broadcast_lost_is_not_counted",
        file: "pipeline/state.rs",
        right: "source.lagged += lagged;",
        wrong: "{}",
        caught_by: Pipeline("bugs::a_lagged_broadcast_is_counted_and_goes_on"),
    },
    // When batches are written.
    Mutant {
        name: "large_records_make_no_batch",
        file: "pipeline/buffer.rs",
        right: "self.open_bytes >= bounds.flush_bytes",
        wrong: "false",
        caught_by: Pipeline("bugs::a_batch_is_stored_when_it_is_large_enough"),
    },
    Mutant {
        name: "records_do_not_get_old",
        file: "pipeline/receive.rs",
        right: "() = &mut timer, if «due.is_some()»",
        wrong: "false",
        caught_by: Pipeline("bugs::a_record_is_stored_when_its_batch_is_old_enough"),
    },
    Mutant {
        name: "a_flush_returns_before_its_batches_are_written",
        file: "pipeline/state.rs",
        right: "oldest.into_iter().chain(state.buffer.oldest_seq()).all(|oldest| oldest >= seq)",
        wrong: "{ let _ = oldest; true }",
        caught_by: Pipeline("bugs::a_flush_waits_for_a_slow_store"),
    },
    Mutant {
        name: "a_flush_does_not_ask_its_sources",
        file: "pipeline/state.rs",
        right: "source.ended || source.synced >= number",
        wrong: "true",
        caught_by: Pipeline("bugs::a_flush_takes_what_was_sent_before"),
    },
    Mutant {
        name: "a_flush_that_fails_waits_for_ever",
        file: "pipeline/handle.rs",
        right: "error.filter(|_| failures > failures_before && shared.has_memory_only())",
        wrong: "error.filter(|_| failures < failures_before)",
        caught_by: Pipeline("bugs::a_flush_that_fails_says_so_and_drops_nothing"),
    },
    Mutant {
        name: "a_shutdown_leaves_what_is_in_the_channel",
        file: "pipeline/receive.rs",
        right: "if «!has_ended»",
        wrong: "false",
        caught_by: Pipeline("shutdown::channels_are_emptied_and_closed"),
    },
    Mutant {
        name: "a_source_without_end_has_all_the_time",
        file: "pipeline/receive.rs",
        right: "from being ended.
            «consume_budget().await;»",
        wrong: "{}",
        caught_by: Pipeline("shutdown::a_source_without_end_does_not_keep_a_shutdown"),
    },
    Mutant {
        name: "a_spool_that_refused_once_is_not_asked_at_the_end",
        file: "pipeline/writer.rs",
        right: "self.last_moment_after(«spool_refuses_until»)",
        wrong: "None",
        caught_by: Pipeline("shutdown::a_spool_that_refused_once_is_asked_at_the_last_moment"),
    },
    Mutant {
        name: "a_spool_that_hangs_is_waited_for",
        file: "pipeline/writer.rs",
        right: "«timeout(self.shared.options.write_timeout, push).await»;",
        wrong: "Ok::<_, tokio::time::error::Elapsed>(push.await)",
        caught_by: Pipeline("outage::a_spool_that_hangs_does_not_keep_the_batch_from_the_store"),
    },
    Mutant {
        name: "a_spool_that_panics_ends_the_writer",
        file: "pipeline/writer.rs",
        right: r#"let step = «AssertUnwindSafe(step).catch_unwind().await.unwrap_or_else(|_panic| {
            Err(Error::new(ErrorKind::Internal, "the spool panicked").with_operation("drain_step"))
        })»;"#,
        wrong: "step.await",
        caught_by: Pipeline("outage::a_spool_that_panics_is_one_that_fails"),
    },
    Mutant {
        name: "a_spool_that_broke_keeps_everything_from_the_store",
        file: "pipeline/writer.rs",
        right: "if «spool.is_drained()»",
        wrong: "spool.is_empty()",
        caught_by: Pipeline("outage::a_spool_that_broke_does_not_keep_anything_from_the_store"),
    },
    Mutant {
        name: "what_a_source_gave_before_it_broke_is_lost",
        file: "pipeline/receive.rs",
        right: "shared.received(lane, &mut records, 0);
            «shared.push(lane, &mut records).await;»",
        wrong: "{}",
        caught_by: Pipeline("shutdown::a_source_that_panics_is_noticed"),
    },
    Mutant {
        name: "a_shutdown_leaves_no_time_for_the_spool",
        file: "pipeline/writer.rs",
        right: "left / 4 * 3",
        wrong: "left",
        caught_by: Pipeline("shutdown::a_slow_spool_has_its_share_of_the_time"),
    },
    // When the store fails.
    Mutant {
        name: "a_store_that_hangs_is_waited_for",
        file: "pipeline/writer.rs",
        right: "«timeout(self.shared.options.write_timeout, write).await» {
                Ok(written)",
        wrong: "timeout(Duration::from_secs(1_000_000), write).await",
        caught_by: Pipeline("bugs::a_write_that_failed_in_any_way_is_there_once"),
    },
    Mutant {
        name: "batches_overtake_those_in_the_spool",
        file: "pipeline/writer.rs",
        right: "Some(spool) => «self.write_through(spool).await»",
        wrong: "match self.shared.take(usize::MAX) {
                Some(batch) => Some(batch),
                None => self.write_through(spool).await,
            }",
        caught_by: Pipeline("outage::the_order_is_kept_through_memory_and_spool"),
    },
    Mutant {
        name: "what_the_store_refused_leaves_the_spool",
        file: "pipeline/writer.rs",
        right: "store_failed.store(true, Ordering::Relaxed);
            Err(error)",
        wrong: "store_failed.store(true, Ordering::Relaxed); let _ = error; Ok(())",
        caught_by: Pipeline("outage::thirty_seconds_without_a_store_lose_and_double_nothing"),
    },
    Mutant {
        name: "one_refused_record_drops_its_batch",
        file: "pipeline/writer.rs",
        right: "self.write_around(records, error).await",
        wrong: "{ let _ = error; Ok(Vec::new()) }",
        caught_by: Pipeline("refusals::what_the_store_refuses_for_good_is_set_aside"),
    },
    Mutant {
        name: "one_invalid_record_keeps_its_batch_out_of_the_spool",
        file: "pipeline/state.rs",
        right: "records.iter().any(|record| record.validate().is_err())",
        wrong: "false",
        caught_by: Pipeline("refusals::an_invalid_record_keeps_no_batch_out_of_the_spool"),
    },
    Mutant {
        name: "a_refused_record_is_counted_for_another_source",
        file: "pipeline/state.rs",
        right: "index < end",
        wrong: "index <= end",
        caught_by: Pipeline("refusals::what_the_store_refuses_for_good_is_set_aside"),
    },
    Mutant {
        name: "what_was_refused_out_of_the_spool_counts_as_drained",
        file: "pipeline/state.rs",
        right: "records - refused.len() as u64",
        wrong: "records",
        caught_by: Pipeline("refusals::what_is_refused_out_of_the_spool_is_set_aside"),
    },
    Mutant {
        name: "spooled_records_are_young_again",
        file: "pipeline/writer.rs",
        right: "batch.since.elapsed()",
        wrong: "Duration::ZERO",
        caught_by: Pipeline("outage::the_age_of_a_record_goes_with_it_into_the_spool"),
    },
    Mutant {
        name: "a_store_that_is_too_slow_is_healthy",
        file: "pipeline/state.rs",
        right: "«state.has_shed(now)» || (state.shed_at.is_some() && state.failing.is_some())",
        wrong: "false",
        caught_by: Pipeline(
            "backpressure::who_drops_records_is_not_healthy_although_the_store_works",
        ),
    },
    Mutant {
        name: "a_failing_store_is_healthy",
        file: "pipeline/state.rs",
        right: "Some(_) => «HealthStatus::Degraded»,",
        wrong: "HealthStatus::Healthy",
        caught_by: Pipeline("bugs::a_failed_flush_keeps_its_batch"),
    },
    // When memory is full.
    Mutant {
        name: "what_is_shed_is_not_counted",
        file: "pipeline/state.rs",
        right: "source.shed += shed;",
        wrong: "{}",
        caught_by: Pipeline("backpressure::shed_oldest_keeps_the_newest_and_counts_the_rest"),
    },
    Mutant {
        name: "the_newest_are_shed",
        file: "pipeline/buffer.rs",
        right: "if let Some(closed) = «self.closed.pop_front()» {
                self.held",
        wrong: "self.closed.pop_back()",
        caught_by: Pipeline("backpressure::shed_oldest_keeps_the_newest_and_counts_the_rest"),
    },
    Mutant {
        name: "nobody_is_made_to_wait",
        file: "pipeline/buffer.rs",
        right: "lane.backpressure == Backpressure::Wait
            && lane.held_bytes >= bounds.memory_bytes_max",
        wrong: "false",
        caught_by: Pipeline("backpressure::wait_makes_the_producer_wait_and_drops_nothing"),
    },
    Mutant {
        name: "who_waits_is_never_woken",
        file: "pipeline/state.rs",
        right: "self.room[part.lane].notify_one();",
        wrong: "{}",
        caught_by: Pipeline("backpressure::wait_makes_the_producer_wait_and_drops_nothing"),
    },
    Mutant {
        name: "memory_overflows_beside_an_empty_spool",
        file: "pipeline/buffer.rs",
        right: "lane.backpressure == Backpressure::Spool
                && lane.held_bytes > bounds.memory_bytes_max / 2",
        wrong: "false",
        caught_by: Pipeline("backpressure::spool_moves_the_oldest_out_of_memory_and_loses_nothing"),
    },
];
