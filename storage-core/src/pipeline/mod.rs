//! What moves records, over the contract alone: every backend will do, a third party's too.
//!
//! Into a store:
//!
//! | | |
//! |---|---|
//! | [`StorageActor`] | takes records from channels and streams, buffers and stores them; never breaks its host |
//! | [`StorageHandle`] | asks it, flushes it, ends it; [`ActorHealth`], [`ActorCounters`] |
//! | [`Source`], [`Backpressure`] | where records come from, and what happens when they outrun the store |
//! | [`Spool`] | a bounded queue of batches on any store |
//! | [`Spooled`] | a backend that accepts batches while the store behind is away |
//!
//! Between stores:
//!
//! | | |
//! |---|---|
//! | [`copy()`] | copies samples from one store to another, verified window by window |
//! | [`compare()`] | says how two stores differ |
//! | [`archive()`] | moves old samples of [`Tiered`](crate::compose::Tiered) from its hot tier to its cold one |
//! | [`ArchivePolicy`], [`ArchiveTask`] | which samples are archived, again and again |
//! | [`Rolled`] | keeps rollups beside samples, and answers from both |
//! | [`RetentionPolicy`], [`RetentionTask`] | how long samples and rollups are kept |
//! | [`digest()`] | number and checksum of samples, the same on every backend |

mod actor;
mod archive;
mod buffer;
mod compare;
mod copy;
mod counters;
pub(crate) mod cursor;
mod digest;
mod handle;
mod health;
mod receive;
mod retention;
mod rollup;
mod source;
mod spool;
mod spool_codec;
mod spooled;
mod state;
pub(crate) mod windows;
mod writer;

pub use actor::{ActorOptions, StorageActor};
pub use archive::{
    ArchiveCounts, ArchiveOptions, ArchivePolicy, ArchiveProgress, ArchiveReport, ArchiveStep,
    ArchiveTask, archive,
};
pub use compare::{Comparison, compare};
pub use copy::{CopyOptions, CopyProgress, CopyReport, copy};
pub use counters::{ActorCounters, SetAside, SourceCounters};
pub use digest::{Digest, digest};
pub use handle::{DrainReport, StorageCommand, StorageHandle};
pub use health::ActorHealth;
pub use retention::{
    RetentionCounts, RetentionEntry, RetentionPolicy, RetentionReport, RetentionTask,
};
pub use rollup::{
    PercentileWindow, RefreshReport, Rolled, RolledWindows, RollupOptions, RollupTier,
    SeriesPercentiles, Stretch, WindowSource,
};
pub use source::{Backpressure, IntoRecords, Source};
pub use spool::{Spool, SpoolBacklog, SpoolLimits};
pub use spooled::{Spooled, SpooledReads};
