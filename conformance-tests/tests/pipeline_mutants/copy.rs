//! Copying, comparing, checksums.

use super::Mutant;
use super::Test::Unit;

/// A test of copies.
macro_rules! copies {
    ($name:literal) => {
        Unit(concat!("pipeline::copy::tests::", $name))
    };
}

pub(super) const ALL: &[Mutant] = &[
    // Verifying.
    Mutant {
        name: "a_copy_verifies_nothing",
        file: "pipeline/copy.rs",
        right: "match unverified {
                Some((window, digest)) => stores.verify(window, digest).await,
                None => Ok(true),
            }",
        wrong: "Ok::<bool, Error>(true)",
        caught_by: copies!("a_destination_that_loses_samples_is_found_out"),
    },
    Mutant {
        name: "the_last_window_is_not_verified",
        file: "pipeline/copy.rs",
        right: "match unverified {
                Some((window, digest)) => stores.verify(window, digest).await,
                None => Ok(true),
            }",
        wrong: "match unverified.filter(|_| window.is_some()) {
                Some((window, digest)) => stores.verify(window, digest).await,
                None => Ok(true),
            }",
        caught_by: copies!("a_destination_that_loses_samples_is_found_out"),
    },
    Mutant {
        name: "windows_are_verified_by_number_alone",
        file: "pipeline/copy.rs",
        right: "found.map_err(|error| within(at_destination(error), window))? == expected",
        wrong: "found.map_err(|error| within(at_destination(error), window))?.samples
                == expected.samples",
        caught_by: copies!("a_destination_that_changes_samples_is_found_out"),
    },
    Mutant {
        name: "a_window_that_does_not_verify_is_left",
        file: "pipeline/copy.rs",
        right: "job.settle(&stores, window, digest).await?",
        wrong: "{ job.report.source = job.report.source.and(digest); }",
        caught_by: copies!("a_destination_that_loses_samples_is_found_out"),
    },
    Mutant {
        name: "a_window_that_never_verifies_is_left",
        file: "pipeline/copy.rs",
        right: "return Err(within(unsettled(&found, copied), window));",
        wrong: "return Ok(());",
        caught_by: copies!("a_destination_that_loses_samples_is_found_out"),
    },
    Mutant {
        name: "a_window_that_was_mended_is_not_verified",
        file: "pipeline/copy.rs",
        right: "self.settle(stores, window, copied).await?;
            return Ok(None);",
        wrong: "{ let _ = copied; return Ok(None); }",
        caught_by: copies!("what_is_mended_is_verified_too"),
    },
    Mutant {
        name: "metadata_is_not_compared",
        file: "pipeline/digest.rs",
        right: "match «&sample.metadata»",
        wrong: "&None::<Value>",
        caught_by: Unit("pipeline::digest::tests::every_part_of_a_sample_counts"),
    },
    Mutant {
        name: "samples_that_are_different_are_taken_for_equal",
        file: "pipeline/compare.rs",
        right: "u64::from(hash_of(other) != hash)",
        wrong: "{ let _ = other; 0 }",
        caught_by: Unit("pipeline::compare::tests::missing_different_and_extra_are_told_apart"),
    },
    // What is copied.
    Mutant {
        name: "a_copy_drops_the_rest_of_a_window",
        file: "pipeline/copy.rs",
        right: "!batch.records.is_empty()",
        wrong: "batch.records.len() == batch_samples",
        caught_by: copies!("a_copy_is_the_same_and_a_second_finds_nothing_to_do"),
    },
    Mutant {
        name: "a_copy_drops_the_newest_sample",
        file: "pipeline/copy.rs",
        right: "(newest + chrono::Duration::milliseconds(1)).min(end)",
        wrong: "newest.min(end)",
        caught_by: copies!("a_copy_is_the_same_and_a_second_finds_nothing_to_do"),
    },
    Mutant {
        name: "a_copy_trusts_a_window_that_holds_something",
        file: "pipeline/copy.rs",
        right: "«!found.holds_source()» && !stores.options.dry_run",
        wrong: "found.missing == found.source.samples",
        caught_by: copies!("an_interrupted_copy_goes_on_where_it_was"),
    },
    Mutant {
        name: "a_copy_leaves_what_is_different",
        file: "pipeline/copy.rs",
        right: "«!found.holds_source()» && !stores.options.dry_run",
        wrong: "found.missing > 0",
        caught_by: copies!("what_differs_is_replaced_and_what_is_extra_stays"),
    },
    Mutant {
        name: "a_copy_begins_at_the_beginning_again",
        file: "pipeline/copy.rs",
        right: "stores.destination_is_empty(window).await?",
        wrong: "true",
        caught_by: copies!("a_copy_is_the_same_and_a_second_finds_nothing_to_do"),
    },
    Mutant {
        name: "a_dry_run_writes",
        file: "pipeline/copy.rs",
        right: "if «!stores.options.dry_run» && stores.destination_is_empty",
        wrong: "true",
        caught_by: copies!("a_dry_run_into_nothing_counts_everything_and_writes_nothing"),
    },
    Mutant {
        name: "a_copy_flows_as_fast_as_it_can",
        file: "pipeline/copy.rs",
        right: "if let Some(rate) = «self.samples_per_second»",
        wrong: "None::<u64>",
        caught_by: copies!("a_limited_copy_takes_its_time"),
    },
    Mutant {
        name: "a_copy_ignores_its_range",
        file: "pipeline/copy.rs",
        right: "TimeRange::new(oldest.max(start).min(extent_end), extent_end)?",
        wrong: "TimeRange::new(oldest, newest + chrono::Duration::milliseconds(1))?",
        caught_by: copies!("range_and_filter_choose"),
    },
    Mutant {
        name: "empty_windows_end_a_copy",
        file: "pipeline/windows.rs",
        right: "(false, _) => {
                «self.at_ms = end_ms;»",
        wrong: "self.at_ms = self.end_ms;",
        caught_by: Unit("pipeline::windows::tests::every_sample_is_in_one_window"),
    },
];
