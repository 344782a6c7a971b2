//! The locations of a fixture whose stores are broken, and what the handles of each share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use storage_core::{Error, ErrorKind, InMemory, Result};

use super::moment::pause;

/// What the handles of each location share.
#[derive(Default)]
pub(crate) struct Locations<S>(Mutex<HashMap<String, Arc<S>>>);

impl<S: Default> Locations<S> {
    pub(crate) fn shared(&self, location: &str) -> Arc<S> {
        let mut locations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locations.entry(location.to_owned()).or_default())
    }
}

/// Opens for a moment, and refuses others meanwhile: a bug.
pub(crate) async fn open_alone(opening: &AtomicBool) -> Result<()> {
    if opening.swap(true, Ordering::SeqCst) {
        return Err(Error::new(ErrorKind::Busy, "somebody else opens it"));
    }
    pause().await;
    opening.store(false, Ordering::SeqCst);
    Ok(())
}

/// What a location and those beside it have in common: the process and the run.
pub(crate) fn one(location: &str) -> String {
    location.split('_').take(2).collect::<Vec<_>>().join("_")
}

pub(crate) fn forget(location: &str) {
    InMemory::forget(location);
    InMemory::forget(&one(location));
}
