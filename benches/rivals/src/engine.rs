//! What an engine has to do to be measured, and the list of them.

use std::error::Error;
use std::path::Path;

use storage_benches::queries::{Draw, Question, Row};
use storage_core::MetricRecord;

use crate::{duck, influx, ours, rows, tsink, victoria};

/// Whatever goes wrong ends the run.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What an acknowledged batch survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A power cut.
    Durable,
    /// A crash of the process; a power cut loses the last moments.
    Periodic,
}

impl Mode {
    /// The name in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Periodic => "periodic",
        }
    }
}

/// An open store.
pub(crate) trait Engine {
    /// Stores a batch; what the engine needs in types of its own is made here.
    fn write(&mut self, records: &[MetricRecord]) -> Result<()>;

    /// Makes everything as small as the engine makes it by itself sooner or later.
    fn settle(&mut self) -> Result<()>;

    /// Answers a question with the rows that
    /// [`queries::ask`](storage_benches::queries::ask) gives, in any order. `None` if the engine
    /// cannot express it.
    fn ask(&mut self, question: Question, draw: &Draw) -> Result<Option<Vec<Row>>>;

    /// The first and last window of an answer reach beyond the range that was asked for.
    fn has_rough_edges(&self) -> bool {
        false
    }
}

/// An engine that was opened, or why it was not.
pub(crate) type Opened = Result<std::result::Result<Box<dyn Engine>, &'static str>>;

/// An engine that can be measured.
pub(crate) struct Kind {
    /// The name in the results.
    pub(crate) name: &'static str,
    /// Opens an empty store in a folder.
    pub(crate) open: fn(&Path, Mode) -> Opened,
    /// The version, as far as it can be told.
    pub(crate) version: fn() -> Option<String>,
}

/// Ours first, then the rivals.
pub(crate) const KINDS: [Kind; 6] =
    [ours::KIND, rows::KIND, tsink::KIND, duck::KIND, victoria::KIND, influx::KIND];
