//! Projections, with their bugs.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use storage_core::events::Row;
use storage_core::{Error, ErrorKind, EventStore, Matcher, ProjectionInfo, ProjectionStep, Result};

use super::{Broken, Bug};
use crate::mutant_runner::moment::pause;

impl Broken {
    async fn checkpoint(&self, projection: &str) -> Result<u64> {
        let all = self.inner.projections().await?;
        let own = all.into_iter().find(|info| info.projection == projection);
        Ok(own.map_or(0, |info| info.checkpoint))
    }

    pub(super) async fn try_project(&self, step: &ProjectionStep) -> Result<()> {
        let mut step = step.clone();
        let log = self.inner.extent().await?;
        let stands = self.checkpoint(&step.projection).await?;
        match self.bug {
            Bug::StepsLoseRows => step.changes.clear(),
            Bug::EmptyStepsDoNothing if step.changes.is_empty() && step.to == step.from => {
                return step.validate();
            }
            Bug::FirstChangeStays => {
                let mut seen = BTreeSet::new();
                step.changes.retain(|of| seen.insert((of.table.clone(), of.key.clone())));
            }
            Bug::RemovingNothingFails => self.check_removals(&step).await?,
            Bug::ResetsKeepTables if step.reset => return self.reset_in_part(&step).await,
            Bug::TablesAreOne => {
                step.changes.iter_mut().for_each(|of| of.table = "t".to_owned());
            }
            Bug::TrimsKeys => {
                for of in step.changes.iter_mut().filter(|of| !of.key.trim().is_empty()) {
                    of.key = of.key.trim().to_owned();
                }
            }
            Bug::NullRemoves => {
                for of in &mut step.changes {
                    of.value = of.value.take().filter(|value| !value.is_null());
                }
            }
            Bug::CutsLargeSteps => step.changes.truncate(4000),
            Bug::StepsFromAnywhere => step.from = stands,
            Bug::StepsEndAtTheEnd => step.to = step.to.min(log.last),
            Bug::StepsSkipPruned => step.to = step.to.max(log.first - 1),
            Bug::StepsGoBack if !step.reset => step.to = step.to.max(step.from),
            Bug::MakesValidPart if step.validate().is_err() => {
                let ok = |name: &str| (1..=512).contains(&name.len()) && !name.contains('\0');
                step.changes.retain(|of| ok(&of.table) && ok(&of.key));
            }
            Bug::ChecksStepsBeforehand => {
                step.check(stands, log)?;
                pause().await;
                step.from = self.checkpoint(&step.projection).await?;
            }
            Bug::CheckpointsComeFirst => {
                let rows = std::mem::take(&mut step.changes);
                self.inner.project(&step).await?;
                pause().await;
                let to = step.to;
                let rows = ProjectionStep {
                    changes: rows,
                    ..ProjectionStep::new(step.projection, to, to)
                };
                return self.inner.project(&rows).await;
            }
            Bug::DroppedStepsTear => {
                let rest = step.changes.split_off(step.changes.len() / 2);
                let first = ProjectionStep { to: step.from, ..step.clone() };
                self.inner.project(&first).await?;
                pause().await;
                step.changes = rest;
            }
            _ => {}
        }
        self.inner.project(&step).await
    }

    async fn check_removals(&self, step: &ProjectionStep) -> Result<()> {
        for of in step.changes.iter().filter(|of| of.value.is_none()) {
            let key = Matcher::exact(&of.key)?;
            if self.inner.rows(&step.projection, &of.table, &key).await?.is_empty() {
                return Err(Error::new(ErrorKind::NotFound, "there is no such row"));
            }
        }
        Ok(())
    }

    /// Leaves the rows of some tables where they are.
    async fn reset_in_part(&self, step: &ProjectionStep) -> Result<()> {
        let mut kept = ProjectionStep::new(&*step.projection, step.to, step.to);
        for table in ["u", "streams"] {
            for row in self.inner.rows(&step.projection, table, &Matcher::any()).await? {
                kept = kept.put(table, row.key, row.value);
            }
        }
        self.inner.project(step).await?;
        self.inner.project(&kept).await
    }

    pub(super) async fn try_projections(&self) -> Result<Vec<ProjectionInfo>> {
        let mut found = self.inner.projections().await?;
        if self.is(Bug::SortsProjectionsWithoutCase) {
            found.sort_by_key(|info| info.projection.to_lowercase());
        }
        Ok(found)
    }

    pub(super) async fn try_rows(
        &self,
        projection: &str,
        table: &str,
        keys: &Matcher,
    ) -> Result<Vec<Row>> {
        let every = Matcher::any();
        let keys = if self.is(Bug::GivesEveryRow) { &every } else { keys };
        let table = if self.is(Bug::TablesAreOne) { "t" } else { table };
        let found = self.inner.rows(projection, table, keys).await;
        match self.bug {
            Bug::BadTablesAreEmpty => return Ok(found.unwrap_or_default()),
            Bug::UnknownRowsFail if found.as_ref().is_ok_and(Vec::is_empty) => {
                return Err(Error::new(ErrorKind::NotFound, "there are no such rows"));
            }
            _ => {}
        }
        let mut found = found?;
        if self.is(Bug::SortsRowsWithoutCase) {
            found.sort_by_key(|row| row.key.to_lowercase());
        }
        if self.is(Bug::RemembersRows) {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            found =
                remembered.entry(format!("{projection}/{table}/{keys}")).or_insert(found).clone();
        }
        Ok(found)
    }

    pub(super) async fn try_forget(&self, projection: &str) -> Result<bool> {
        let found = self.inner.projections().await?;
        let is_there = found.iter().any(|info| info.projection == projection);
        self.shared.log().forgotten |= is_there;
        if self.is(Bug::ForgettingResets) && is_there {
            let stands = self.checkpoint(projection).await?;
            self.inner.project(&ProjectionStep::reset(projection, stands)).await?;
            return Ok(true);
        }
        self.inner.forget_projection(projection).await
    }
}
