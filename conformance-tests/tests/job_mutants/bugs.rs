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
    // Jobs.
    LosesNames: "jobs::a_job_comes_back_as_it_was_added",
    PlansAtTheAdd: "jobs::the_next_run_is_the_first_after_the_add",
    PlansDisabled: "jobs::a_job_that_is_not_enabled_has_no_next_run",
    RoundsTimes: "jobs::times_are_floored",
    RefusesFarTimes: "jobs::first_and_last_times_of_the_calendar",
    TrimsIds: "jobs::odd_ids_are_ids_like_any_other",
    RefusesLongNames: "jobs::the_longest_names_are_accepted",
    TidiesSchedules: "jobs::schedules_come_back_as_they_were_written",
    AcceptsBadNames: "jobs::bad_names_are_refused",
    AcceptsBadTimes: "jobs::bad_times_are_refused",
    AddsReplace: "jobs::an_id_that_is_taken_is_a_conflict",
    LooksUpWithoutCase: "jobs::an_unknown_job_is_not_found",
    UpdatesClear: "jobs::an_update_changes_what_it_says_and_nothing_else",
    SkipsEmptyUpdates: "jobs::every_update_counts",
    IgnoresVersions: "jobs::an_update_that_expects_another_version_changes_nothing",
    KeepsThePlan: "jobs::another_schedule_plans_anew",
    AlwaysPlansAnew: "jobs::the_same_schedule_plans_nothing_anew",
    MakesUpForDisabled: "jobs::enabled_again_a_job_is_planned_from_then_on",
    IgnoresNextRun: "jobs::a_next_run_may_be_set",
    TakesAnyNextRun: "jobs::a_job_that_is_not_enabled_takes_no_next_run",
    UpdatesDropLeases: "jobs::an_update_leaves_the_lease",
    AppliesGoodPart: "jobs::bad_patches_change_nothing",
    RunsCount: "jobs::runs_leave_the_version_alone",
    MiscountsExecutions: "jobs::removing_a_job_removes_its_executions_and_counts_them",
    RemembersRemoved: "jobs::a_removed_id_can_be_added_again",
    // Pipelines.
    LosesDescriptions: "pipelines::a_pipeline_comes_back_as_it_was_added",
    ParsesTexts: "pipelines::any_configuration_comes_back_equal",
    RefusesLargeJson: "pipelines::the_largest_configuration_is_accepted",
    AcceptsBadJson: "pipelines::bad_fields_are_refused",
    PipelinesTakeJobs: "pipelines::removing_a_pipeline_leaves_its_jobs",
    NamesAreShared: "pipelines::names_of_jobs_pipelines_and_executions_are_apart",
    // Executions.
    LosesWorkers: "executions::an_execution_comes_back_as_it_was_added",
    AcceptsBadExecutions: "executions::bad_fields_are_refused",
    MakesMissingJobs: "executions::an_execution_needs_its_job",
    IgnoresTaken: "executions::an_id_that_is_taken_is_a_conflict",
    LosesErrors: "executions::an_execution_under_way_can_be_ended",
    EndsAgain: "executions::an_end_stays_as_it_is",
    RefusesEarlyEnds: "executions::an_end_before_the_start_is_taken_for_the_start",
    PatchesClear: "executions::what_it_did_is_kept",
    LastEndedIsLastRun: "executions::the_last_run_is_the_one_that_started_last",
    AddedHoldLeases: "executions::an_added_execution_holds_no_lease",
    RemovesAtTheCutoff: "executions::removing_old_ones_keeps_the_cutoff_and_what_came_after",
    RemovesRunning: "executions::removing_old_ones_keeps_those_under_way",
    RoundsCutoffsUp: "executions::removing_old_ones_floors_its_cutoff",
    FarCutoffsFail: "executions::removing_old_ones_takes_any_cutoff",
    CountsFifty: "executions::removing_old_ones_counts_exactly",
    ForgetsLastRun: "executions::removing_old_ones_leaves_jobs_alone",
    // Claims.
    ClaimsEarly: "claims::nothing_is_claimed_before_it_is_due",
    PlansFromTheLastRun: "claims::a_claim_plans_the_next_run",
    IgnoresLeases: "claims::a_claimed_job_is_given_to_nobody_else",
    CountsNoMissedRuns: "claims::missed_runs_are_counted_and_not_made_up_for",
    TakesFirstId: "claims::the_job_that_has_been_due_longest_comes_first",
    TakesLastId: "claims::of_jobs_due_at_once_the_first_id_comes_first",
    ClaimsDisabled: "claims::jobs_that_are_not_enabled_are_not_claimed",
    IgnoresWhichJob: "claims::one_job_can_be_asked_for",
    BusyIsNothing: "claims::one_job_with_a_lease_is_a_conflict",
    NeverTakesOver: "claims::a_lease_that_is_over_is_taken_over",
    AttemptsStayOne: "claims::attempts_are_counted",
    ExtendsNothing: "claims::an_extended_lease_keeps_others_off",
    LateEndsAreRefused: "claims::after_its_lease_an_execution_can_still_be_ended",
    EndsKeepLeases: "claims::an_end_gives_up_the_lease",
    RepeatsAreConflicts: "claims::a_claim_can_be_repeated",
    TakenIdsAreChanged: "claims::an_execution_id_that_is_taken_is_a_conflict",
    GivesWhatWasAdded: "claims::an_execution_id_that_is_taken_is_a_conflict",
    AcceptsBadClaims: "claims::bad_claims_are_refused",
    ClaimsRace: "claims::workers_get_each_job_once",
    // Listings.
    NothingIsNotFound: "listings::an_empty_store_lists_nothing",
    SortsWithoutCase: "listings::jobs_and_pipelines_come_by_name_byte_by_byte",
    OldestFirst: "listings::executions_come_newest_first",
    PagesLoseOne: "listings::pages_of_jobs_give_each_once",
    AlwaysHasNext: "listings::a_page_that_holds_the_rest_has_no_next",
    IgnoresPipelines: "listings::jobs_are_chosen_by_what_they_are",
    IgnoresDue: "listings::due_jobs_are_those_that_could_be_claimed",
    IgnoresStatus: "listings::executions_are_chosen_by_job_and_status",
    PagesByNumber: "listings::pages_go_on_while_others_add_and_remove",
    CursorsMustExist: "listings::a_cursor_outlives_what_it_points_to",
    ClampsPages: "listings::bad_pages_are_refused",
    BadQueriesAreEmpty: "listings::bad_queries_are_refused",
    // Health.
    NeverHealthy: "job_health::jobs_that_are_served_are_healthy",
    NeverOverdue: "job_health::a_job_that_nobody_claims_is_overdue",
    NeverStalled: "job_health::a_lease_that_is_over_is_stalled",
    NeverDown: "job_health::a_closed_store_is_down",
    OpeningPlansAnew: "job_health::a_start_finds_every_job_with_what_was_missed",
    // Sharing.
    OpeningAdds: "job_sharing::a_fresh_location_holds_no_job",
    HandlesAreApart: "job_sharing::two_handles_see_each_others_changes",
    LocationsAreOne: "job_sharing::two_locations_do_not_see_each_other",
    OpeningLoses: "job_sharing::reopening_keeps_everything",
    DroppingLoses: "job_sharing::dropping_a_handle_loses_nothing",
    OpeningExcludes: "job_sharing::sixteen_open_an_empty_location_and_add_at_once",
    ClaimsTear: "job_sharing::readers_see_jobs_and_executions_together",
    CountsAsSamples: "job_sharing::parts_of_a_store_are_used_side_by_side",
    CompactLoses: "job_sharing::compact_changes_no_answer",
    CheckFindsNonsense: "job_sharing::a_store_that_was_used_is_found_in_order",
    DroppedRemovalsTear: "job_sharing::a_dropped_change_is_made_whole_or_not_at_all",
    DroppedClaimsStick: "job_sharing::a_dropped_claim_gives_its_job_or_leaves_it",
    DroppedQuestionsBreak: "job_sharing::dropped_questions_leave_the_handle_usable",
    CloseIsIgnored: "job_sharing::a_closed_handle_refuses_every_call",
    CloseClosesAll: "job_sharing::other_handles_go_on_after_a_close",
    AcknowledgesAndLoses: "job_sharing::close_finishes_what_is_under_way",
    ErrorsNameNothing: "job_sharing::errors_name_backend_and_call",
    HasAnotherName: "job_sharing::the_name_is_that_of_the_store",
}
