//! The guide and the README, compiled: every Rust block in them is a documentation test.

macro_rules! pages {
    ($($name:ident: $file:literal),+ $(,)?) => {$(
        #[doc = include_str!($file)]
        #[cfg(doctest)]
        pub mod $name {}
    )+};
}

pages! {
    readme: "../../README.md",
    tutorial: "../guide/tutorial.md",
    contract: "../guide/contract.md",
    history: "../guide/history.md",
    events: "../guide/events.md",
    jobs: "../guide/jobs.md",
    data_model: "../guide/data-model.md",
    errors: "../guide/errors.md",
    layers: "../guide/layers.md",
    copy: "../guide/copy.md",
    tiers: "../guide/tiers.md",
    pipeline: "../guide/pipeline.md",
    rollups: "../guide/rollups.md",
    sqlite: "../guide/backends/sqlite.md",
    postgres: "../guide/backends/postgres.md",
    parquet: "../guide/backends/parquet.md",
    conformance: "../guide/conformance.md",
}
