//! Backends made of several backends.
//!
//! | composition | what it is |
//! |---|---|
//! | [`Tiered`] | a hot store for what is new and a cold one for what is old, with one answer across both |
//! | [`Mirrored`] | two stores that take the same writes |

mod mirrored;
mod tiered;

pub use mirrored::{Divergence, MirrorPolicy, Mirrored, RepairReport};
pub(crate) use tiered::Moving;
pub use tiered::{Tiered, TieredOptions};
