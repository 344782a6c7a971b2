//! What moves records between stores, over the contract alone: it works on every backend.
//!
//! | function | what it does |
//! |---|---|
//! | [`copy()`] | copies samples from one store to another, verified window by window |
//! | [`compare()`] | says how two stores differ |
//! | [`archive()`] | moves old samples of [`Tiered`](crate::compose::Tiered) from its hot tier to its cold one |
//! | [`digest()`] | number and checksum of samples, the same on every backend |

mod archive;
mod compare;
mod copy;
pub(crate) mod cursor;
mod digest;
pub(crate) mod windows;

pub use archive::{ArchiveOptions, ArchiveProgress, ArchiveReport, ArchiveStep, archive};
pub use compare::{Comparison, compare};
pub use copy::{CopyOptions, CopyProgress, CopyReport, copy};
pub use digest::{Digest, digest};
