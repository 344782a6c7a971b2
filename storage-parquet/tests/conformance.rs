//! Parquet files in a directory pass the suite, with nothing ignored. Rows are merged early and days
//! split early, so that merged, unmerged and half merged data and files of hours all occur.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use conformance_tests::Fixture;
use storage_core::{Result, StorageBackend};
use storage_parquet::{ParquetBackend, ParquetOptions};

struct Parquet(PathBuf);

#[async_trait]
impl Fixture for Parquet {
    fn name(&self) -> &str {
        "parquet"
    }

    async fn open(&self, location: &str) -> Result<Arc<dyn StorageBackend>> {
        let options = ParquetOptions::new(self.0.join(location))
            .merge_samples(500)
            .merge_files(20)
            .hour_samples(50);
        Ok(Arc::new(ParquetBackend::open(options).await?))
    }

    async fn destroy(&self, location: &str) -> Result<()> {
        // What was never created need not be removed.
        let _ = std::fs::remove_dir_all(self.0.join(location));
        Ok(())
    }
}

fn main() {
    conformance_tests::main(Parquet(std::env::temp_dir()))
}
