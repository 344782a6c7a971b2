//! A location with its open handles, each a whole store, and a model of one part beside it.

use storage_core::Store as WholeStore;

use crate::failure::{CaseResult, Failure};
use crate::harness::Fixture;

/// The backend with its open handles, and the model beside it.
pub(super) struct Pair<'a, M> {
    fixture: &'a dyn Fixture,
    location: &'a str,
    handles: Vec<WholeStore>,
    pub(super) model: M,
}

impl<'a, M> Pair<'a, M> {
    pub(super) async fn new(
        fixture: &'a dyn Fixture,
        location: &'a str,
        model: M,
    ) -> Result<Self, Failure> {
        let mut pair = Self { fixture, location, handles: Vec::new(), model };
        pair.open().await?;
        Ok(pair)
    }

    /// The handle of a step: its number modulo how many are open.
    pub(super) fn handle(&self, number: usize) -> WholeStore {
        self.handles[number % self.handles.len()].clone()
    }

    /// Opens another handle.
    pub(super) async fn open(&mut self) -> CaseResult {
        self.handles.push(self.fixture.open_store(self.location).await?);
        Ok(())
    }

    /// Closes the handle of a step; `refused`, which is looked at then, says whether it refuses
    /// calls. Where it was the only one, another is opened.
    pub(super) async fn close(
        &mut self,
        number: usize,
        refused: impl Future<Output = CaseResult>,
    ) -> CaseResult {
        let number = number % self.handles.len();
        self.handles[number].close().await?;
        self.handles.remove(number);
        refused.await?;
        if self.handles.is_empty() {
            self.open().await?;
        }
        Ok(())
    }

    /// Closes the handles that are open.
    pub(super) async fn close_all(self) -> CaseResult {
        for handle in self.handles {
            handle.close().await?;
        }
        Ok(())
    }
}
