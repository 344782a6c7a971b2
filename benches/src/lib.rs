//! Workloads for the benches: data as the TSBS use case `cpu-only` defines it, timing, reports.
//!
//! | module | what lives there |
//! |---|---|
//! | [`tsbs`] | hosts, fields and values of TSBS `cpu-only` |
//! | [`disorder`] | the same data with a part of it late |
//! | [`queries`] | the questions of the suite, over any backend |
//! | [`timing`] | medians, percentiles, rates |
//! | [`ours`] | our backend in a folder of its own |
//! | [`machine`] | what it runs on, memory, room for files |
//! | [`options`] | the arguments of a bench |
//! | [`report`] | figures as Markdown and JSON |
//! | [`bars`] | what the figures are held against |
//! | [`readme`] | the tables in the documents, out of the figures |

pub mod bars;
pub mod disorder;
pub mod machine;
pub mod options;
pub mod ours;
pub mod queries;
pub mod readme;
pub mod report;
pub mod timing;
pub mod tsbs;
