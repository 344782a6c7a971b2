//! The suite against an Azure emulator (azurite, see `scripts/with-azure`).
//!
//! Where `STORAGE_TEST_AZURE` names no server the cases show as ignored, and fail if
//! `CONFORMANCE_REQUIRE` names `parquet_azure`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::Fixture;
use storage_core::{Result, StorageBackend};
use storage_parquet::{ParquetBackend, ParquetOptions};

struct Azure;

#[async_trait]
impl Fixture for Azure {
    fn name(&self) -> &str {
        "parquet_azure"
    }

    async fn open(&self, location: &str) -> Result<Arc<dyn StorageBackend>> {
        let url = format!(
            "parquet+az://storage-tests/{location}?azure_storage_use_emulator=true&allow_http=true"
        );
        let options = ParquetOptions::from_url(&url)?.merge_samples(500).merge_files(20);
        Ok(Arc::new(ParquetBackend::open(options).await?))
    }

    async fn destroy(&self, _location: &str) -> Result<()> {
        // The server keeps everything in memory and ends with the tests.
        Ok(())
    }

    fn case_time_max(&self) -> Duration {
        CASE_TIME_MAX
    }

    fn unavailable(&self) -> Option<String> {
        let server = std::env::var_os("STORAGE_TEST_AZURE");
        server.is_none().then(|| "needs scripts/with-azure".to_owned())
    }
}

/// The emulator takes tens of milliseconds for a request when cases run side by side.
const CASE_TIME_MAX: Duration = Duration::from_secs(300);

fn main() {
    conformance_tests::main(Azure)
}
