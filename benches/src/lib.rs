//! Workloads for the benches: data as the TSBS use case `cpu-only` defines it, and timing.
//!
//! | module | what lives there |
//! |---|---|
//! | [`tsbs`] | hosts, fields and values of TSBS `cpu-only` |
//! | [`queries`] | the questions of the suite, over any backend |
//! | [`timing`] | medians, percentiles, rates |

pub mod queries;
pub mod timing;
pub mod tsbs;
