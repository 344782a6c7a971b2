//! Files in an object store: S3, Google Cloud Storage, Azure.
//!
//! A file is one object, written by one request; a conditional request creates it where there is
//! none. The store has to honour that (`If-None-Match`): Amazon S3, Google, Azure, MinIO and R2 do.
//! The calls block a thread and wait for the network on the runtime of the handle.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{
    Error as StoreError, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, RetryConfig,
};
use storage_core::{Error, ErrorKind, Outcome, Result};
use tokio::runtime::Handle;

use super::{Files, Listed, Put, ReadAt, Source, Stamp};
use crate::config::config;
use crate::error::{from_object_store, is_maybe_applied};

/// Objects up to this size are read whole when they are opened: one request instead of four.
const WHOLE_BYTES_MAX: u64 = 2 << 20;

/// How often a request is repeated, and how long at most, before the caller hears of it; but for the
/// creation of an object, where the log has to know what each attempt was answered.
const RETRIES_MAX: usize = 6;
const RETRY_TIME_MAX: Duration = Duration::from_secs(30);

/// Files below a prefix of a bucket.
pub(crate) struct ObjectFiles {
    store: Arc<dyn ObjectStore>,
    /// The same without repetitions: for an error after several attempts does not say whether an
    /// earlier one was carried out.
    once: Arc<dyn ObjectStore>,
    root: Path,
    location: String,
    runtime: Handle,
}

impl std::fmt::Debug for ObjectFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectFiles").field("location", &self.location).finish_non_exhaustive()
    }
}

impl ObjectFiles {
    /// Connects to the bucket of `s3://BUCKET/PREFIX`, `gs://` or `az://`, with the options of the
    /// environment and, before them, those given.
    ///
    /// # Errors
    /// `Config` if an option is unknown or missing.
    pub(crate) fn connect(
        url: &str,
        options: &BTreeMap<String, String>,
        runtime: Handle,
    ) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(config("the URL names no bucket"));
        }
        let root = Path::parse(prefix.trim_matches('/'))
            .map_err(|error| config("the prefix in the URL is no path").with_source(error))?;
        let store = build(scheme, bucket, options, RETRIES_MAX)?;
        let once = build(scheme, bucket, options, 0)?;
        Ok(Self { store, once, root, location: url.to_owned(), runtime })
    }

    fn full(&self, path: &str) -> Path {
        let parts = self.root.parts().chain(path.split('/').map(Into::into));
        Path::from_iter(parts)
    }

    /// Waits for a request.
    fn wait<T>(
        &self,
        path: &str,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T> {
        self.runtime.block_on(request).map_err(|error| from_object_store(error, path))
    }

    fn head(&self, path: &str) -> Result<Option<ObjectMeta>> {
        match self.runtime.block_on(self.store.head(&self.full(path))) {
            Err(StoreError::NotFound { .. }) => Ok(None),
            found => found.map(Some).map_err(|error| from_object_store(error, path)),
        }
    }
}

/// Makes a client that repeats requests up to `max_retries` times.
fn build(
    scheme: &str,
    bucket: &str,
    options: &BTreeMap<String, String>,
    max_retries: usize,
) -> Result<Arc<dyn ObjectStore>> {
    let retry =
        RetryConfig { max_retries, retry_timeout: RETRY_TIME_MAX, ..RetryConfig::default() };
    let built: Result<Arc<dyn ObjectStore>, StoreError> = match scheme {
        "s3" => {
            let mut builder =
                AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
            for (name, value) in options {
                builder = builder.with_config(key::<AmazonS3ConfigKey>(name)?, value);
            }
            builder.build().map(|store| Arc::new(store) as _)
        }
        "gs" => {
            let mut builder =
                GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry);
            for (name, value) in options {
                builder = builder.with_config(key::<GoogleConfigKey>(name)?, value);
            }
            builder.build().map(|store| Arc::new(store) as _)
        }
        _ => {
            let mut builder =
                MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry);
            for (name, value) in options {
                builder = builder.with_config(key::<AzureConfigKey>(name)?, value);
            }
            builder.build().map(|store| Arc::new(store) as _)
        }
    };
    built.map_err(|error| config("the object store cannot be set up").with_source(error))
}

/// Returns the key of an option by its name.
fn key<K: FromStr>(name: &str) -> Result<K> {
    name.parse()
        .map_err(|_| config("the object store has no such option").with_context("parameter", name))
}

fn stamp_of(e_tag: Option<&String>, written: impl std::fmt::Debug) -> Stamp {
    // Every store that takes conditional requests has tags.
    Stamp(e_tag.map_or_else(|| format!("{written:?}"), Clone::clone))
}

impl Files for ObjectFiles {
    fn location(&self) -> &str {
        &self.location
    }

    fn create(&self, path: &str, bytes: &Bytes) -> Result<Put> {
        let full = self.full(path);
        let request = self.once.put_opts(&full, bytes.clone().into(), PutMode::Create.into());
        match self.runtime.block_on(request) {
            Ok(put) => Ok(Put::Created(stamp_of(put.e_tag.as_ref(), ()))),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                Ok(Put::Exists)
            }
            Err(error) => {
                let error = from_object_store(error, path);
                let maybe = is_maybe_applied(&error);
                Err(if maybe { error.with_outcome(Outcome::Unknown) } else { error })
            }
        }
    }

    fn write(&self, path: &str, bytes: &Bytes) -> Result<()> {
        let full = self.full(path);
        self.wait(path, self.store.put(&full, bytes.clone().into())).map(drop)
    }

    fn sync(&self, _directories: &BTreeSet<String>) -> Result<()> {
        // What was acknowledged is durable.
        Ok(())
    }

    fn stamp(&self, path: &str) -> Result<Option<Stamp>> {
        let found = self.head(path)?;
        Ok(found.map(|found| stamp_of(found.e_tag.as_ref(), found.last_modified)))
    }

    fn open(&self, path: &str) -> Result<Option<Source>> {
        let full = self.full(path);
        let name: Arc<str> = Arc::from(path);
        let got = self.runtime.block_on(async {
            let got = self.store.get(&full).await?;
            let meta = got.meta.clone();
            let whole = if meta.size <= WHOLE_BYTES_MAX { Some(got.bytes().await?) } else { None };
            Ok((meta, whole))
        });
        let (meta, whole) = match got {
            Err(StoreError::NotFound { .. }) => return Ok(None),
            got => got.map_err(|error| from_object_store(error, path))?,
        };
        let reader: Arc<dyn ReadAt> = match whole {
            Some(bytes) => Arc::new(Whole { bytes, path: Arc::clone(&name) }),
            None => Arc::new(Remote {
                store: Arc::clone(&self.store),
                full,
                path: Arc::clone(&name),
                bytes: meta.size,
                runtime: self.runtime.clone(),
            }),
        };
        let stamp = stamp_of(meta.e_tag.as_ref(), meta.last_modified);
        Ok(Some(Source { path: name, bytes: meta.size, stamp, reader }))
    }

    fn list(&self, directory: &str) -> Result<Vec<Listed>> {
        let full = self.full(directory);
        let found: Vec<ObjectMeta> =
            self.wait(directory, self.store.list(Some(&full)).try_collect())?;
        let listed = found.into_iter().filter_map(|meta| {
            let parts = meta.location.prefix_match(&self.root)?;
            let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
            Some(Listed {
                path: parts.join("/"),
                modified: SystemTime::from(meta.last_modified),
                bytes: meta.size,
            })
        });
        Ok(listed.collect())
    }

    fn remove(&self, path: &str) -> Result<()> {
        match self.runtime.block_on(self.store.delete(&self.full(path))) {
            Err(StoreError::NotFound { .. }) => Ok(()),
            removed => removed.map_err(|error| from_object_store(error, path)),
        }
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn make_root(&self) -> Result<()> {
        // A bucket is made by who pays for it; a prefix is nothing by itself.
        Ok(())
    }
}

/// A small object, read whole.
#[derive(Debug)]
struct Whole {
    bytes: Bytes,
    path: Arc<str>,
}

impl ReadAt for Whole {
    fn read_at(&self, start: u64, length: usize) -> Result<Bytes> {
        let from = usize::try_from(start).unwrap_or(usize::MAX);
        match from.checked_add(length).filter(|end| *end <= self.bytes.len()) {
            Some(end) => Ok(self.bytes.slice(from..end)),
            None => Err(too_short(&self.path)),
        }
    }

    fn held_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// An object that is read in parts.
struct Remote {
    store: Arc<dyn ObjectStore>,
    full: Path,
    path: Arc<str>,
    bytes: u64,
    runtime: Handle,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ReadAt for Remote {
    fn read_at(&self, start: u64, length: usize) -> Result<Bytes> {
        let Some(end) = start.checked_add(length as u64).filter(|end| *end <= self.bytes) else {
            return Err(too_short(&self.path));
        };
        let request = self.store.get_range(&self.full, start..end);
        self.runtime.block_on(request).map_err(|error| from_object_store(error, &self.path))
    }
}

fn too_short(path: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "the object is shorter than it says")
        .with_context(crate::error::FILE, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(url: &str, options: &[(&str, &str)]) -> Result<ObjectFiles> {
        let options = options.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        ObjectFiles::connect(url, &options.collect(), Handle::current())
    }

    /// A service account of nobody: no request is made with it.
    const ACCOUNT: &str = r#"{"private_key": "private_key", "private_key_id": "private_key_id",
        "client_email": "client_email", "disable_oauth": true}"#;

    #[tokio::test]
    async fn every_kind_of_location_takes_its_options_and_refuses_those_of_others() {
        let s3 = [
            ("aws_region", "us-east-1"),
            ("aws_access_key_id", "a"),
            ("aws_secret_access_key", "private_key"),
        ];
        let gs = [("google_service_account_key", ACCOUNT)];
        let az = [("azure_storage_account_name", "a"), ("azure_storage_account_key", "a2V5")];
        for (scheme, options, other) in
            [("s3", &s3[..], gs[0]), ("gs", &gs[..], az[0]), ("az", &az[..], s3[0])]
        {
            let files = connect(&format!("{scheme}://bucket/some/prefix/"), options).unwrap();
            assert_eq!(files.full("log/1").as_ref(), "some/prefix/log/1");
            assert!(files.is_remote());
            assert!(!format!("{files:?}").contains("private_key"), "{files:?}");
            let files = connect(&format!("{scheme}://bucket"), options).unwrap();
            assert_eq!(files.full("log/1").as_ref(), "log/1");
            let error = connect(&format!("{scheme}://bucket"), &[other]).unwrap_err();
            assert_eq!(
                (error.kind(), error.context("parameter")),
                (ErrorKind::Config, Some(other.0))
            );
            let error = connect(&format!("{scheme}:///prefix"), options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
        }
        let error = connect("gs://bucket", &[("google_service_account_key", "no JSON")]);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Config);
    }
}
