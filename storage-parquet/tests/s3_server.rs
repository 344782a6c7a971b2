//! The S3 server that the suite runs against does what a commit needs: object_store's own cases
//! pass, and of many that create one object at once a single one succeeds.
//!
//! Needs `scripts/with-s3`, like `s3`.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;

use futures_util::TryStreamExt;
use libtest_mimic::{Arguments, Failed, Trial};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::integration::{
    get_opts, list_uses_directories_correctly, list_with_delimiter, put_get_delete_list, put_opts,
    rename_and_copy, stream_get,
};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};

fn main() -> ExitCode {
    let server = std::env::var("STORAGE_TEST_S3");
    let required = std::env::var("CONFORMANCE_REQUIRE").unwrap_or_default();
    let is_required =
        required.split(',').any(|word| ["parquet_s3", "all", "1"].contains(&word.trim()));
    let reason = "needs scripts/with-s3";
    let trial = match server {
        Ok(server) => Trial::test("a_server_fit_for_commits", move || test(&server)),
        Err(_) if is_required => {
            Trial::test("a_server_fit_for_commits", move || Err(Failed::from(reason)))
        }
        Err(_) => Trial::test("a_server_fit_for_commits", || Ok(()))
            .with_ignored_flag(true)
            .with_kind(reason),
    };
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn bucket(server: &str, name: &str) -> AmazonS3 {
    AmazonS3Builder::new()
        .with_endpoint(server)
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_access_key_id("test")
        .with_secret_access_key("test")
        .with_bucket_name(name)
        .build()
        .unwrap()
}

async fn clear(client: &AmazonS3) {
    let all: Vec<_> = client.list(None).try_collect().await.unwrap();
    for object in all {
        client.delete(&object.location).await.unwrap();
    }
}

fn test(server: &str) -> Result<(), Failed> {
    tokio::runtime::Runtime::new()?.block_on(async {
        // Those cases want a bucket of their own, and some leave objects in it.
        let client = bucket(server, "storage-cases");
        put_get_delete_list(&client).await;
        clear(&client).await;
        get_opts(&client).await;
        clear(&client).await;
        stream_get(&client).await;
        clear(&client).await;
        list_uses_directories_correctly(&client).await;
        clear(&client).await;
        list_with_delimiter(&client).await;
        clear(&client).await;
        rename_and_copy(&client).await;
        clear(&client).await;
        put_opts(&client, true).await;
        for round in 0..20 {
            let path = Path::from(format!("race/{round}"));
            let creates = (0..8).map(|no| {
                let body = vec![no; 100];
                client.put_opts(&path, body.into(), PutMode::Create.into())
            });
            let done = futures_util::future::join_all(creates).await;
            let winners = done.iter().filter(|put| put.is_ok()).count();
            assert_eq!(winners, 1, "round {round}");
        }
    });
    Ok(())
}
