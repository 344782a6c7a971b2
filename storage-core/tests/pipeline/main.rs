//! The pipeline over stores that fail in every way: nothing lost, nothing doubled, nothing silent,
//! nobody held up. The clock stands still but where all wait, so that hours take moments.
#![allow(clippy::unwrap_used)]

mod backpressure;
mod bugs;
mod day;
mod late;
mod outage;
mod refusals;
mod shutdown;
mod spool;
mod spooled;
mod support;
mod whole_day;
