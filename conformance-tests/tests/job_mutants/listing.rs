//! Lists, each with its bugs.

use storage_core::jobs::listing::PAGE_ITEMS_MAX;
use storage_core::jobs::refusal::not_found;
use storage_core::{
    Cursor, Error, Execution, ExecutionQuery, Job, JobQuery, JobStore, Listed, Page, Pipeline,
    Result,
};

use super::{Broken, Bug};

impl Broken {
    /// The page that is asked for with the bug.
    fn page(&self, page: &Page, is_good: bool) -> Page {
        let mut page = page.clone();
        if self.is(Bug::ClampsPages) {
            page.limit = page.limit.clamp(1, PAGE_ITEMS_MAX);
            page.after = page.after.filter(|_| is_good);
        }
        page
    }

    /// A list that the store gave, with the bug.
    fn listed<T>(
        &self,
        page: &Page,
        mut listed: Listed<T>,
        key: impl Fn(&T) -> String,
        cursor: impl Fn(&T) -> Cursor,
    ) -> Result<Listed<T>> {
        match self.bug {
            Bug::NothingIsNotFound if listed.items.is_empty() => {
                return Err(not_found("list", "empty"));
            }
            Bug::SortsWithoutCase => listed.items.sort_by_key(|item| key(item).to_lowercase()),
            Bug::OldestFirst => listed.items.reverse(),
            Bug::PagesLoseOne if page.after.is_some() && listed.items.len() > 1 => {
                drop(listed.items.remove(0));
            }
            Bug::AlwaysHasNext => listed.next = listed.items.last().map(cursor),
            _ => {}
        }
        Ok(listed)
    }

    pub(super) async fn try_jobs(&self, query: &JobQuery) -> Result<Listed<Job>> {
        if self.is(Bug::PagesByNumber) {
            return self.jobs_by_number(query).await;
        }
        let is_good = query.validate().is_ok();
        if self.is(Bug::BadQueriesAreEmpty) && !is_good {
            return Ok(Listed { items: Vec::new(), next: None });
        }
        let mut query = query.clone();
        query.page = self.page(&query.page, is_good);
        match self.bug {
            Bug::IgnoresPipelines => query.pipeline = None,
            Bug::IgnoresDue => query.due_at = None,
            Bug::RoundsTimes => {
                query.due_at = query.due_at.map(|at| self.time(at)).transpose()?;
            }
            Bug::AcceptsBadTimes => {
                query.due_at = query.due_at.map(|at| self.time(at)).transpose()?
            }
            Bug::CursorsMustExist => {
                if let Some(after) = &query.page.after {
                    self.inner.job(after.as_str()).await.map_err(|_| {
                        Error::invalid("the cursor is gone").with_context("field", "after")
                    })?;
                }
            }
            _ => {}
        }
        let mut listed = self.inner.jobs(&query).await?;
        listed.items = listed.items.into_iter().map(|job| self.seen_job(job)).collect();
        self.listed(&query.page, listed, |job| job.id.clone(), |job| Cursor::new(&job.id))
    }

    /// A cursor that says how many came before.
    async fn jobs_by_number(&self, query: &JobQuery) -> Result<Listed<Job>> {
        let after = query.page.after.as_ref().and_then(|after| after.as_str().parse().ok());
        let start: usize = after.unwrap_or_default();
        let all = query.clone().page(Page::first(PAGE_ITEMS_MAX));
        let items: Vec<Job> = self.inner.jobs(&all).await?.items.into_iter().skip(start).collect();
        Ok(query.page.answer(items, |_| Cursor::new((start + query.page.limit).to_string())))
    }

    pub(super) async fn try_pipelines(&self, page: &Page) -> Result<Listed<Pipeline>> {
        let page = self.page(page, page.validate().and(page.after_name()).is_ok());
        let mut listed = self.inner.pipelines(&page).await?;
        listed.items = listed.items.into_iter().map(|one| self.seen_pipeline(one)).collect();
        self.listed(&page, listed, |one| one.name.clone(), |one| Cursor::new(&one.name))
    }

    pub(super) async fn try_executions(&self, query: &ExecutionQuery) -> Result<Listed<Execution>> {
        let mut query = query.clone();
        query.page = self.page(&query.page, query.validate().is_ok());
        if self.is(Bug::IgnoresStatus) {
            query.status = None;
        }
        let mut listed = self.inner.executions(&query).await?;
        let hidden = self.shared.notes().hidden.clone();
        listed.items.retain(|run| !hidden.contains(&run.id));
        listed.items = listed.items.into_iter().map(|run| self.seen_run(run)).collect();
        self.listed(&query.page, listed, |run| run.id.clone(), Cursor::after_execution)
    }
}
