//! Listings: order, choice and pages.

use std::collections::BTreeSet;

use serde_json::json;
use storage_core::{
    Cursor, ExecutionPatch, ExecutionQuery, ExecutionStatus, JobPatch, JobQuery, NewJob,
    NewPipeline, Page, RunResult, Schedule,
};

use super::{
    HOUR, MINUTE, add_hourly, all_executions, all_jobs, claim, ended, hourly, ids, job_ids, running,
};
use crate::data::{NOON, at, at_us};
use crate::failure::{CaseResult, Failure, expect_refused};
use crate::harness::Ctx;

job_cases! { "listings":
    an_empty_store_lists_nothing,
    jobs_and_pipelines_come_by_name_byte_by_byte,
    executions_come_newest_first,
    pages_of_jobs_give_each_once,
    pages_of_pipelines_give_each_once,
    pages_of_executions_give_each_once,
    a_page_that_holds_the_rest_has_no_next,
    jobs_are_chosen_by_what_they_are,
    due_jobs_are_those_that_could_be_claimed,
    executions_are_chosen_by_job_and_status,
    pages_go_on_while_others_add_and_remove,
    a_cursor_outlives_what_it_points_to,
    bad_pages_are_refused,
    bad_queries_are_refused,
}

/// No items and no next page.
async fn an_empty_store_lists_nothing(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let listed = jobs.jobs(&JobQuery::default()).await?;
    ensure_eq!((listed.items, listed.next), (vec![], None));
    let listed = jobs.pipelines(&Page::default()).await?;
    ensure_eq!((listed.items, listed.next), (vec![], None));
    let listed = jobs.executions(&ExecutionQuery::of_job("nobody")).await?;
    ensure_eq!((listed.items, listed.next), (vec![], None));
    Ok(())
}

/// Not by locale, nor by when they were added.
async fn jobs_and_pipelines_come_by_name_byte_by_byte(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let names = ["b", "a", "B", "\u{e9}", "a ", "_", "\u{1f600}", "Z", "aa", "\u{fffd}"];
    add_hourly(&**jobs, &names).await?;
    for name in names {
        jobs.add_pipeline(&NewPipeline::new(name, json!(1)), at(NOON)).await?;
    }
    let sorted = ["B", "Z", "_", "a", "a ", "aa", "b", "\u{e9}", "\u{fffd}", "\u{1f600}"];
    ensure_eq!(job_ids(&all_jobs(jobs).await?), sorted);
    let found = jobs.pipelines(&Page::default()).await?.items;
    ensure!(found.iter().map(|pipeline| &*pipeline.name).eq(sorted), "pipelines");
    Ok(())
}

/// By start, those of one start by id backwards.
async fn executions_come_newest_first(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b"]).await?;
    for (id, job_id, ms) in
        [("m", "a", 5), ("k", "b", 9), ("l", "a", 5), ("z", "b", -7), ("n", "b", 5)]
    {
        jobs.add_execution(&ended(id, job_id, ms, RunResult::Failed)).await?;
    }
    let found = all_executions(jobs, ExecutionQuery::default()).await?;
    ensure_eq!(ids(&found), ["k", "n", "m", "l", "z"]);
    Ok(())
}

/// Limits that tests of pages use, below and above what there is.
const LIMITS: [usize; 6] = [1, 2, 5, 24, 25, 1000];

/// In the order of the listing, whatever the size of the page.
async fn pages_of_jobs_give_each_once(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let names: Vec<_> = (0..25).map(|n| format!("j{n:02}")).collect();
    add_hourly(&**jobs, &names.iter().rev().map(String::as_str).collect::<Vec<_>>()).await?;
    for limit in LIMITS {
        let mut query = JobQuery::default().page(Page::first(limit));
        let mut found = Vec::new();
        loop {
            let listed = jobs.jobs(&query).await?;
            ensure!((1..=limit).contains(&listed.items.len()), "a page of {}", listed.items.len());
            found.extend(listed.items.into_iter().map(|job| job.id));
            let Some(next) = listed.next else { break };
            // A cursor is a text that can be handed on.
            query.page.after = Some(Cursor::new(next.as_str()));
        }
        ensure_eq!(found, names, "by pages of {limit}");
    }
    Ok(())
}

/// The same for pipelines.
async fn pages_of_pipelines_give_each_once(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let names: Vec<_> = (0..25).map(|n| format!("p{n:02}")).collect();
    for name in &names {
        jobs.add_pipeline(&NewPipeline::new(name, json!(1)), at(NOON)).await?;
    }
    for limit in LIMITS {
        let (mut page, mut found) = (Page::first(limit), Vec::new());
        loop {
            let listed = jobs.pipelines(&page).await?;
            ensure!((1..=limit).contains(&listed.items.len()), "a page of {}", listed.items.len());
            found.extend(listed.items.into_iter().map(|pipeline| pipeline.name));
            let Some(next) = listed.next else { break };
            page.after = Some(Cursor::new(next.as_str()));
        }
        ensure_eq!(found, names, "by pages of {limit}");
    }
    Ok(())
}

/// The same for executions, many of which started at once.
async fn pages_of_executions_give_each_once(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b"]).await?;
    let mut expected = Vec::new();
    for n in 0..25_i64 {
        let (id, job_id) = (format!("x:{n:02}"), if n % 2 == 0 { "a" } else { "b" });
        jobs.add_execution(&running(&id, job_id, NOON + n / 10)).await?;
        expected.insert(0, id);
    }
    for limit in LIMITS {
        for (query, expected) in [
            (ExecutionQuery::default(), expected.clone()),
            (ExecutionQuery::of_job("a"), expected.iter().step_by(2).cloned().collect()),
        ] {
            let (mut query, mut found) = (query.page(Page::first(limit)), Vec::new());
            loop {
                let listed = jobs.executions(&query).await?;
                ensure!(
                    (1..=limit).contains(&listed.items.len()),
                    "a page of {}",
                    listed.items.len()
                );
                found.extend(listed.items.into_iter().map(|one| one.id));
                let Some(next) = listed.next else { break };
                query.page.after = Some(Cursor::new(next.as_str()));
            }
            ensure_eq!(found, expected, "by pages of {limit}");
        }
    }
    Ok(())
}

/// Exactly as many as fit are one page.
async fn a_page_that_holds_the_rest_has_no_next(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b", "c"]).await?;
    for name in ["a", "b", "c"] {
        jobs.add_pipeline(&NewPipeline::new(name, json!(1)), at(NOON)).await?;
        jobs.add_execution(&running(name, name, NOON)).await?;
    }
    for (limit, more) in [(2, true), (3, false), (4, false)] {
        let page = Page::first(limit);
        let of_jobs = jobs.jobs(&JobQuery::default().page(page.clone())).await?.next;
        let of_pipelines = jobs.pipelines(&page).await?.next;
        let of_executions = jobs.executions(&ExecutionQuery::default().page(page)).await?.next;
        let found = [of_jobs.is_some(), of_pipelines.is_some(), of_executions.is_some()];
        ensure_eq!(found, [more; 3], "pages of {limit}");
    }
    Ok(())
}

/// By pipeline and by whether they are enabled, together and alone, on every page.
async fn jobs_are_chosen_by_what_they_are(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for (n, pipeline) in ["p", "q", "p", "p", "q", "P"].into_iter().enumerate() {
        let job = NewJob::new(format!("j{n}"), pipeline, Schedule::parse("@daily")?);
        jobs.add_job(&job.enabled(n % 2 == 0), at(NOON)).await?;
    }
    for (pipeline, enabled, expected) in [
        (None, None, &["j0", "j1", "j2", "j3", "j4", "j5"][..]),
        (Some("p"), None, &["j0", "j2", "j3"]),
        (None, Some(true), &["j0", "j2", "j4"]),
        (None, Some(false), &["j1", "j3", "j5"]),
        (Some("p"), Some(false), &["j3"]),
        (Some("nobody"), None, &[]),
    ] {
        let pipeline = pipeline.map(str::to_owned);
        let mut query = JobQuery { pipeline, enabled, ..JobQuery::default() };
        ensure_eq!(job_ids(&jobs.jobs(&query).await?.items), expected, "{query:?}");
        query.page = Page::first(2);
        let first = jobs.jobs(&query).await?;
        ensure_eq!(job_ids(&first.items), expected[..expected.len().min(2)].to_vec(), "{query:?}");
        ensure_eq!(first.next.is_some(), expected.len() > 2, "{query:?}");
        if first.next.is_some() {
            query.page = Page { limit: 100, after: first.next };
            let rest = jobs.jobs(&query).await?;
            ensure_eq!(job_ids(&rest.items), expected[2..].to_vec(), "{query:?}");
        }
    }
    Ok(())
}

/// What is due by its run or its lease.
async fn due_jobs_are_those_that_could_be_claimed(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b", "c", "d"]).await?;
    let patch = JobPatch { enabled: Some(false), ..JobPatch::default() };
    jobs.update_job("b", &patch, at(NOON)).await?;
    jobs.claim(&claim("r", NOON + HOUR).of_job("c")).await?;
    for (ms, due) in [
        (NOON + HOUR - 1, &[][..]),
        (NOON + HOUR, &["a", "d"]),
        (NOON + HOUR + MINUTE - 1, &["a", "d"]),
        (NOON + HOUR + MINUTE, &["a", "c", "d"]),
    ] {
        let found = jobs.jobs(&JobQuery::due(at(ms))).await?.items;
        ensure_eq!(job_ids(&found), due, "{} ms after noon", ms - NOON);
        let fine = JobQuery::due(at_us(ms * 1000 + 999));
        ensure_eq!(job_ids(&jobs.jobs(&fine).await?.items), due, "floored");
    }
    Ok(())
}

/// Together and alone.
async fn executions_are_chosen_by_job_and_status(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b"]).await?;
    for (n, result) in (0..).zip(RunResult::ALL) {
        jobs.add_execution(&ended(&format!("a{n}"), "a", NOON + n, result)).await?;
        jobs.add_execution(&ended(&format!("b{n}"), "b", NOON + n, result)).await?;
    }
    jobs.add_execution(&running("a9", "a", NOON)).await?;
    for (n, result) in RunResult::ALL.into_iter().enumerate() {
        let query = ExecutionQuery::default().status(ExecutionStatus::Ended(result));
        let (a, b) = (format!("a{n}"), format!("b{n}"));
        ensure_eq!(ids(&all_executions(jobs, query).await?), [&*b, &*a]);
        let query = ExecutionQuery::of_job("a").status(ExecutionStatus::Ended(result));
        ensure_eq!(ids(&all_executions(jobs, query).await?), [&*a]);
    }
    let running = ExecutionQuery::default().status(ExecutionStatus::Running);
    ensure_eq!(ids(&all_executions(jobs, running.clone()).await?), ["a9"]);
    let end = ExecutionPatch::end(RunResult::Failed);
    jobs.update_execution("a9", &end, at(NOON)).await?;
    ensure_eq!(all_executions(jobs, running).await?, []);
    ensure_eq!(all_executions(jobs, ExecutionQuery::of_job("a")).await?.len(), 5);
    Ok(())
}

/// Whatever comes and goes: what is there all the while is given once.
async fn pages_go_on_while_others_add_and_remove(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    let staying: BTreeSet<_> = (0..30).map(|n| format!("s{n:02}")).collect();
    add_hourly(&**jobs, &staying.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let passing: Vec<_> = (0..30).map(|n| format!("s{n:02}+")).collect();
    add_hourly(&**jobs, &passing.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let mut query = JobQuery::default().page(Page::first(4));
    let mut found = Vec::new();
    let mut gone = passing.iter();
    loop {
        let listed = jobs.jobs(&query).await?;
        found.extend(listed.items.into_iter().map(|job| job.id));
        query.page.after = listed.next;
        if query.page.after.is_none() {
            break;
        }
        for id in gone.by_ref().take(2) {
            jobs.remove_job(id).await?;
            jobs.add_job(&hourly(&format!("t{id}"))?, at(NOON)).await?;
        }
    }
    let once: BTreeSet<_> = found.iter().collect();
    ensure_eq!(once.len(), found.len(), "one came twice");
    ensure!(staying.iter().all(|id| once.contains(id)), "one that stayed is missing");
    ensure!(found.is_sorted(), "by id");
    Ok(())
}

/// What was the last of a page may be gone.
async fn a_cursor_outlives_what_it_points_to(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    add_hourly(&**jobs, &["a", "b", "c"]).await?;
    for (id, ms) in [("x", 3), ("y", 2), ("z", 1)] {
        jobs.add_execution(&ended(id, "b", NOON + ms, RunResult::Failed)).await?;
    }
    let next = |next: Option<Cursor>| next.ok_or_else(|| Failure::new("no page follows"));
    let of_jobs = next(jobs.jobs(&JobQuery::default().page(Page::first(2))).await?.next)?;
    let query = ExecutionQuery::default().page(Page::first(2));
    let of_executions = next(jobs.executions(&query).await?.next)?;
    jobs.remove_job("b").await?;
    jobs.add_execution(&ended("w", "a", NOON, RunResult::Failed)).await?;
    let query = JobQuery::default().page(Page { limit: 9, after: Some(of_jobs) });
    ensure_eq!(job_ids(&jobs.jobs(&query).await?.items), ["c"]);
    let query = ExecutionQuery::default().page(Page { limit: 9, after: Some(of_executions) });
    ensure_eq!(ids(&jobs.executions(&query).await?.items), ["w"]);
    Ok(())
}

/// A page holds 1 to 1000 items; a cursor is that of such a listing.
async fn bad_pages_are_refused(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for limit in [0, 1001, usize::MAX] {
        let page = Page::first(limit);
        expect_refused(jobs.pipelines(&page).await, Some("limit"), limit)?;
        let refused = jobs.jobs(&JobQuery::default().page(page.clone())).await;
        expect_refused(refused, Some("limit"), limit)?;
        let refused = jobs.executions(&ExecutionQuery::default().page(page)).await;
        expect_refused(refused, Some("limit"), limit)?;
    }
    let after = |text: &str| Page { limit: 1, after: Some(Cursor::new(text)) };
    for text in ["", "a\0b", &"x".repeat(513)] {
        expect_refused(jobs.pipelines(&after(text)).await, Some("after"), text)?;
        let refused = jobs.jobs(&JobQuery::default().page(after(text))).await;
        expect_refused(refused, Some("after"), text)?;
    }
    let far = format!("{}:a", i64::MAX);
    for text in ["", "a", "1:", ":a", "x:a", "1.5:a", "1:a\0b", &far, "99999999999999999999:a"] {
        let refused = jobs.executions(&ExecutionQuery::default().page(after(text))).await;
        expect_refused(refused, Some("after"), text)?;
    }
    Ok(())
}

/// Names that nothing can have.
async fn bad_queries_are_refused(ctx: &Ctx) -> CaseResult {
    let jobs = ctx.jobs()?;
    for name in super::bad_names() {
        let query = JobQuery { pipeline: Some(name.clone()), ..JobQuery::default() };
        expect_refused(jobs.jobs(&query).await, Some("pipeline"), "jobs")?;
        let query = ExecutionQuery::of_job(name);
        expect_refused(jobs.executions(&query).await, Some("job_id"), "executions")?;
    }
    Ok(())
}
