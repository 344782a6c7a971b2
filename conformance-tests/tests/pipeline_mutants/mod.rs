//! Bugs of what is made of stores, as changes of the source.

mod actor;
pub(crate) mod build;
mod copy;
mod mirrored;
mod rolled;
pub(crate) mod run;
mod spool;
mod tiered;
mod weave;

/// A bug: what stands in the source, and what somebody might have written instead.
#[derive(Debug, Hash)]
pub(crate) struct Mutant {
    /// What is wrong.
    pub(crate) name: &'static str,
    /// Below `storage-core/src`.
    pub(crate) file: &'static str,
    /// An expression, or whole statements that bind no name, between « and » where it takes more
    /// to find it; stands there once, whatever the white space.
    pub(crate) right: &'static str,
    pub(crate) wrong: &'static str,
    /// The test that is there to catch it.
    pub(crate) caught_by: Test,
}

/// A test of `storage-core`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Test {
    /// Beside the code.
    Unit(&'static str),
    /// In `tests/pipeline`.
    Pipeline(&'static str),
}

impl Test {
    pub(crate) fn name(self) -> &'static str {
        let (Self::Unit(name) | Self::Pipeline(name)) = self;
        name
    }
}

pub(crate) fn all() -> impl Iterator<Item = &'static Mutant> {
    let parts = [tiered::ALL, mirrored::ALL, rolled::ALL, copy::ALL, spool::ALL, actor::ALL];
    parts.into_iter().flatten()
}
