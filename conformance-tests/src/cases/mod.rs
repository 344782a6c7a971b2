//! The table of cases: what each needs, how its data lies, and the function that runs it.
//!
//! One file per theme; each case is one clause of the contract, named after it. A case marked
//! `layouts` runs three times: on data as written, compacted, and half compacted, because no
//! answer may depend on how a backend keeps its data.

use std::future::Future;
use std::pin::Pin;

use storage_core::Capabilities;

use crate::failure::CaseResult;
use crate::harness::Ctx;

/// What a case does, given its context.
pub type Run = for<'a> fn(&'a Ctx) -> Pin<Box<dyn Future<Output = CaseResult> + Send + 'a>>;

/// One named test of one clause of the contract.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The name, `theme::clause` and, where the data lies otherwise, `::layout`.
    pub name: &'static str,
    /// What the backend must have, or lack, for the case to make sense.
    pub needs: Need,
    /// How the data of the case lies.
    pub layout: Layout,
    /// What it does.
    pub run: Run,
}

/// Which backends a case is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// All.
    Nothing,
    /// Those that have the capability.
    Has(Capability),
    /// Those that lack it: the twin, which proves that the calls refuse.
    Lacks(Capability),
    /// Those that keep record history.
    History,
    /// Those that keep events.
    Events,
    /// Those that keep jobs.
    Jobs,
}

/// A field of [`Capabilities`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// [`Capabilities::series`].
    Series,
    /// [`Capabilities::check`].
    Check,
    /// [`Capabilities::close`].
    Close,
}

impl Capability {
    /// Every capability.
    pub const ALL: &'static [Self] = &[Self::Series, Self::Check, Self::Close];

    /// The name of the field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Series => "series",
            Self::Check => "check",
            Self::Close => "close",
        }
    }

    /// Whether `capabilities` has it.
    pub fn of(self, capabilities: Capabilities) -> bool {
        match self {
            Self::Series => capabilities.series,
            Self::Check => capabilities.check,
            Self::Close => capabilities.close,
        }
    }
}

/// How the data of a case lies in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As it was written.
    AsWritten,
    /// All compacted.
    Compacted,
    /// The earlier half of the records compacted, the later half as written.
    HalfCompacted,
}

/// Lists the cases of a theme: `once name` or `layouts name`, then `needs Capability` or
/// `lacks Capability` where it applies.
macro_rules! cases {
    ($theme:literal: $($mode:ident $name:ident $($need:ident $capability:ident)?),+ $(,)?) => {
        pub(crate) fn cases() -> Vec<$crate::cases::Case> {
            let mut cases = Vec::new();
            $($mode!(cases, $theme, $name, need!($($need $capability)?));)+
            cases
        }
    };
}

/// Lists the cases of a theme of record history.
macro_rules! history_cases {
    ($theme:literal: $($name:ident),+ $(,)?) => {
        pub(crate) fn cases() -> Vec<$crate::cases::Case> {
            let mut cases = Vec::new();
            $(once!(cases, $theme, $name, $crate::cases::Need::History);)+
            cases
        }
    };
}

/// Lists the cases of a theme of the event store.
macro_rules! event_cases {
    ($theme:literal: $($name:ident),+ $(,)?) => {
        pub(crate) fn cases() -> Vec<$crate::cases::Case> {
            let mut cases = Vec::new();
            $(once!(cases, $theme, $name, $crate::cases::Need::Events);)+
            cases
        }
    };
}

/// Lists the cases of a theme of jobs.
macro_rules! job_cases {
    ($theme:literal: $($name:ident),+ $(,)?) => {
        pub(crate) fn cases() -> Vec<$crate::cases::Case> {
            let mut cases = Vec::new();
            $(once!(cases, $theme, $name, $crate::cases::Need::Jobs);)+
            cases
        }
    };
}

macro_rules! need {
    () => {
        $crate::cases::Need::Nothing
    };
    (needs $capability:ident) => {
        $crate::cases::Need::Has($crate::cases::Capability::$capability)
    };
    (lacks $capability:ident) => {
        $crate::cases::Need::Lacks($crate::cases::Capability::$capability)
    };
}

macro_rules! once {
    ($cases:ident, $theme:literal, $name:ident, $needs:expr) => {
        push!($cases, concat!($theme, "::", stringify!($name)), $name, $needs, AsWritten)
    };
}

macro_rules! layouts {
    ($cases:ident, $theme:literal, $name:ident, $needs:expr) => {
        push!($cases, concat!($theme, "::", stringify!($name)), $name, $needs, AsWritten);
        push!(
            $cases,
            concat!($theme, "::", stringify!($name), "::compacted"),
            $name,
            $needs,
            Compacted
        );
        push!(
            $cases,
            concat!($theme, "::", stringify!($name), "::half_compacted"),
            $name,
            $needs,
            HalfCompacted
        )
    };
}

macro_rules! push {
    ($cases:ident, $name:expr, $run:ident, $needs:expr, $layout:ident) => {
        $cases.extend([$crate::cases::Case {
            name: $name,
            needs: $needs,
            layout: $crate::cases::Layout::$layout,
            run: |ctx| Box::pin($run(ctx)),
        }])
    };
}

mod aggregate;
mod cancel;
mod capabilities;
mod concurrency;
mod content;
mod errors;
mod events;
mod history;
mod jobs;
mod latest;
mod lifecycle;
mod limits;
mod model;
mod prune;
mod query;
mod scan;
mod series;
mod stats;
mod windows;
mod write;

/// Returns every case, in the order of the contract.
pub fn table() -> Vec<Case> {
    let themes = [
        lifecycle::cases,
        write::cases,
        content::cases,
        limits::cases,
        query::cases,
        aggregate::cases,
        prune::cases,
        stats::cases,
        series::cases,
        latest::cases,
        windows::cases,
        scan::cases,
        concurrency::cases,
        cancel::cases,
        errors::cases,
        capabilities::cases,
        model::cases,
        history::write::cases,
        history::query::cases,
        history::cleanup::cases,
        history::sharing::cases,
        history::model::cases,
        events::append::cases,
        events::expect::cases,
        events::read::cases,
        events::project::cases,
        events::prune::cases,
        events::sharing::cases,
        events::model::cases,
        jobs::job::cases,
        jobs::pipeline::cases,
        jobs::execution::cases,
        jobs::claim::cases,
        jobs::listing::cases,
        jobs::health::cases,
        jobs::sharing::cases,
        jobs::model::cases,
    ];
    themes.into_iter().flat_map(|cases| cases()).collect()
}
