//! The bugs, one a line: what is wrong, and the case meant for it.

macro_rules! bugs {
    ($($bug:ident: $case:literal,)+) => {
        /// What is wrong with a mutant.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Bug {
            /// Nothing: the wrapper alone.
            None,
            $($bug,)+
        }

        impl Bug {
            /// Every bug, with the case that is there to catch it.
            pub(crate) const ALL: &'static [(Self, &'static str)] = &[$((Self::$bug, $case),)+];
        }
    };
}

bugs! {
    // Storing.
    LosesLastValue: "history_write::a_value_comes_back_with_name_and_time",
    StoresUnderFirstName: "history_write::a_batch_of_many_records_comes_back",
    MergesEqualValues: "history_write::equal_values_of_one_time_are_all_kept",
    IgnoresRepeatedBatches: "history_write::what_is_stored_twice_is_there_twice",
    ReversesBatches: "history_write::inside_a_batch_ties_go_by_position",
    SortsTies: "history_write::across_batches_ties_go_by_insertion",
    ReadsNewestFirst: "history_write::values_come_in_any_order_of_time",
    RoundsTimes: "history_write::times_are_floored",
    TruncatesTimes: "history_write::times_are_floored_before_1970",
    RefusesFarTimes: "history_write::first_and_last_times_of_the_calendar",
    ParsesTexts: "history_write::any_json_comes_back_equal",
    MakesFractionsWhole: "history_write::whole_numbers_and_fractions_stay_apart",
    DropsNull: "history_write::null_is_a_value",
    TrimsNames: "history_write::odd_names_are_names_like_any_other",
    RefusesLargeValues: "history_write::the_largest_name_and_value_are_accepted",
    EmptyBatchFails: "history_write::an_empty_batch_does_nothing",
    CutsLargeBatches: "history_write::a_large_batch_is_stored_whole",
    AcceptsBadNames: "history_write::bad_names_are_refused",
    AcceptsBadTimes: "history_write::bad_times_are_refused",
    AcceptsLargeValues: "history_write::values_over_the_limit_are_refused",
    AcceptsDeepValues: "history_write::values_nested_too_deep_are_refused",
    AcceptsNul: "history_write::values_with_nul_are_refused",
    StoresValidPart: "history_write::a_batch_with_one_bad_value_stores_nothing",
    NamesLastBadValue: "history_write::the_first_bad_value_is_named",
    // Asking.
    SortsWithoutCase: "history_query::records_come_by_name_and_values_oldest_first",
    StarNeedsCharacters: "history_query::a_star_is_any_run_of_characters",
    UnderscoreIsWild: "history_query::everything_but_the_star_is_literal",
    IgnoresCase: "history_query::case_matters",
    ExactNamesArePatterns: "history_query::an_exact_name_with_a_star_is_itself",
    TakesFirstNameAlone: "history_query::several_names_at_once",
    NothingIsAnError: "history_query::a_pattern_that_matches_nothing_answers_empty",
    UnknownIsAnError: "history_query::an_unknown_record_answers_empty",
    LimitsAllTogether: "history_query::newest_n_of_each_record",
    CutsTiesAtTheWrongEnd: "history_query::a_limit_cuts_ties_by_insertion",
    WantsAsManyAsAsked: "history_query::a_limit_larger_than_what_is_there",
    ZeroIsNoLimit: "history_query::a_limit_of_zero_answers_empty",
    AnswersTenThousand: "history_query::there_is_no_limit_of_its_own",
    IncludesEnd: "history_query::a_range_holds_its_start_and_not_its_end",
    ExcludesStart: "history_query::a_range_holds_its_start_and_not_its_end",
    EmptyRangeIsAMoment: "history_query::an_empty_range_holds_nothing",
    LimitsBeforeTheRange: "history_query::a_limit_counts_inside_the_range",
    ForgetsBefore1970: "history_query::ranges_before_1970",
    ReadingRemoves: "history_query::asking_changes_nothing",
    SwapsExtent: "history_query::records_have_number_and_extent",
    ListsEveryRecord: "history_query::records_are_chosen_like_values",
    NamesArePrefixes: "history_query::names_run_together_are_apart",
    // Removing.
    RemovesAtTheCutoff: "history_cleanup::a_value_at_the_cutoff_stays",
    RemovesSomething: "history_cleanup::a_cutoff_before_everything_removes_nothing",
    KeepsTheNewest: "history_cleanup::a_cutoff_after_everything_removes_all",
    CountsRecords: "history_cleanup::every_cutoff_inside_removes_what_is_older",
    RoundsCutoffsUp: "history_cleanup::a_cutoff_is_floored",
    TruncatesCutoffs: "history_cleanup::cutoffs_before_1970",
    FarCutoffsFail: "history_cleanup::the_farthest_cutoffs_work",
    CountsAgain: "history_cleanup::a_second_cleanup_removes_nothing",
    CleansFirstRecordAlone: "history_cleanup::several_records_lose_what_is_old",
    CountsTiesOnce: "history_cleanup::values_of_one_time_go_together",
    ListsVanishedRecords: "history_cleanup::a_record_vanishes_with_its_last_value",
    VanishedStayAway: "history_cleanup::a_vanished_record_comes_back",
    HidesLateValues: "history_cleanup::late_values_are_accepted_and_visible",
    CleanupReorders: "history_cleanup::what_stays_keeps_its_order",
    CleansOneStep: "history_cleanup::a_large_history_is_cut_in_the_middle",
    CountsBeforeRemoving: "history_cleanup::concurrent_cleanups_add_up",
    CleanupPrunes: "history_cleanup::a_cleanup_leaves_metrics_alone",
    PruneCleans: "history_cleanup::a_prune_of_metrics_leaves_history_alone",
    DroppedCleanupBreaks: "history_cleanup::a_dropped_cleanup_can_be_repeated",
    // Sharing.
    OpeningStores: "history_sharing::a_fresh_location_holds_no_record",
    HandlesAreApart: "history_sharing::two_handles_see_each_others_values",
    KnowsOwnRecordsAlone: "history_sharing::two_handles_see_each_others_new_records",
    RemembersLongAnswers: "history_sharing::two_handles_see_each_others_cleanups",
    LocationsAreOne: "history_sharing::two_locations_do_not_see_each_other",
    OpeningLoses: "history_sharing::reopening_keeps_everything",
    FortyAreThirty: "history_sharing::what_a_channel_gave_seeds_a_buffer_after_a_restart",
    DroppingLoses: "history_sharing::dropping_a_handle_loses_nothing",
    OpeningExcludes: "history_sharing::sixteen_open_an_empty_location_and_store_at_once",
    LosesUnderLoad: "history_sharing::sixty_four_callers_store_each_value_once",
    SwapsCalls: "history_sharing::callers_keep_their_own_order",
    TearsBatches: "history_sharing::readers_see_whole_batches_alone",
    CountsAsSamples: "history_sharing::metrics_and_history_are_stored_side_by_side",
    CompactLoses: "history_sharing::compact_changes_no_answer",
    CheckFindsNonsense: "history_sharing::a_filled_history_is_found_in_order",
    DroppedBatchesTear: "history_sharing::a_dropped_batch_is_there_whole_or_not_at_all",
    DroppedBatchesComeLate: "history_sharing::a_dropped_batch_comes_before_later_ones",
    DroppedQuestionsBreak: "history_sharing::dropped_questions_leave_the_handle_usable",
    CloseIsIgnored: "history_sharing::a_closed_handle_refuses_every_call",
    CloseClosesAll: "history_sharing::other_handles_go_on_after_a_close",
    AcknowledgesAndLoses: "history_sharing::close_finishes_what_is_under_way",
    ErrorsNameNothing: "history_sharing::errors_name_backend_and_call",
    HasAnotherName: "history_sharing::the_name_is_that_of_the_store",
}
