//! The suite against an S3 server (moto, see `scripts/with-s3`), and before it object_store's own
//! cases, so that a server that does not honour conditional requests is noticed.
//!
//! Where `STORAGE_TEST_S3` names no server the cases show as ignored, and fail if
//! `CONFORMANCE_REQUIRE` names `parquet_s3`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use conformance_tests::Fixture;
use storage_core::{Result, StorageBackend};
use storage_parquet::{ParquetBackend, ParquetOptions};

struct S3;

#[async_trait]
impl Fixture for S3 {
    fn name(&self) -> &str {
        "parquet_s3"
    }

    async fn open(&self, location: &str) -> Result<Arc<dyn StorageBackend>> {
        let server = std::env::var("STORAGE_TEST_S3").unwrap_or_default();
        let url = format!(
            "parquet+s3://storage-tests/{location}?aws_endpoint={server}&allow_http=true\
             &aws_region=us-east-1&aws_access_key_id=test&aws_secret_access_key=test"
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
        std::env::var_os("STORAGE_TEST_S3").is_none().then(|| "needs scripts/with-s3".to_owned())
    }
}

/// The server is a Python program that answers a request in some ten milliseconds when it is alone,
/// and in several times that when cases run side by side on a busy machine.
const CASE_TIME_MAX: Duration = Duration::from_secs(300);

fn main() {
    conformance_tests::main(S3)
}
