//! Workloads for the benches: data as the TSBS use case `cpu-only` defines it, and timing.
//!
//! | module | what lives there |
//! |---|---|
//! | [`tsbs`] | hosts, fields and values of TSBS `cpu-only` |
//! | [`timing`] | medians, percentiles, rates |

pub mod timing;
pub mod tsbs;
