//! Which series the cold tier holds, remembered for as long as nobody changes it, so that the newest
//! samples need no question to the cold tier, which may be far away, where the hot one has newer ones.
//!
//! Moves and prunes alone change the cold tier, and each begins and ends with another view. One that
//! failed may still take effect later; so what is remembered may say of a series that it reaches
//! farther than it does, and then the cold tier is asked in vain. It never says less: what a move
//! copies is in the hot tier, too, until there is another view. Numbers of samples are not taken from it.

use std::sync::{Arc, Mutex, PoisonError};

use super::Reading;
use super::view::{Phase, View};
use crate::error::Result;
use crate::metrics::{SeriesFilter, SeriesInfo, SeriesSamples};

/// More series are not remembered: each takes about a hundred bytes and its names.
const SERIES_MAX: usize = 100_000;

/// All series of a tier, in order; `None` if they are too many.
type Remembered = Option<Arc<Vec<SeriesInfo>>>;

/// The series of the cold tier as of one view, once they were read.
#[derive(Debug, Default)]
pub(super) struct ColdSeries(Mutex<Option<(u64, Remembered)>>);

impl ColdSeries {
    fn of(&self, view: &View) -> Option<Remembered> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.as_ref().filter(|(generation, _)| *generation == view.generation);
        known.map(|(_, all)| all.clone())
    }

    fn remember(&self, view: &View, all: Vec<SeriesInfo>) -> Remembered {
        let all = (all.len() <= SERIES_MAX).then(|| Arc::new(all));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((view.generation, all.clone()));
        all
    }
}

impl Reading<'_> {
    /// Returns all series of the cold tier, in order; `None` if they are not known, or change just
    /// now. Who asks for all makes them known.
    pub(super) async fn cold_series(&mut self, filter: &SeriesFilter) -> Result<Remembered> {
        // While something is copied the cold tier has to be asked before the hot one.
        while matches!(self.view.phase, Phase::Idle | Phase::Moving) {
            if let Some(known) = self.store.cold_series.of(&self.view) {
                return Ok(known);
            }
            if *filter != SeriesFilter::any() {
                return Ok(None);
            }
            let all = self.store.tiers.cold.series(filter).await?;
            if self.is_settled().await? {
                return Ok(self.store.cold_series.remember(&self.view, all));
            }
        }
        Ok(None)
    }
}

/// Whether none of `cold`, of the series that `filter` chooses, can be among the newest `n` samples, of
/// which `hot` are those in the hot tier. Both are in order.
pub(super) fn is_older(
    cold: &[SeriesInfo],
    filter: &SeriesFilter,
    hot: &[SeriesSamples],
    n: usize,
) -> bool {
    let is_older = |info: &SeriesInfo| {
        let at = hot.binary_search_by(|one| one.series.cmp(&info.series)).ok();
        // The oldest of them.
        let last = at.and_then(|at| n.checked_sub(1).and_then(|last| hot[at].samples.get(last)));
        last.is_some_and(|last| last.timestamp >= info.newest)
    };
    if let Some((server_id, metric_type)) = filter.as_exact() {
        let name = (server_id, metric_type);
        let of = |info: &SeriesInfo| {
            (info.series.server_id.as_str(), info.series.metric_type.as_str()).cmp(&name)
        };
        return cold.binary_search_by(of).map_or(true, |at| is_older(&cold[at]));
    }
    cold.iter().filter(|info| filter.matches_key(&info.series)).all(is_older)
}
