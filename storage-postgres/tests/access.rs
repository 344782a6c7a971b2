//! Roles that may not do everything, and servers that take no writes: each is told so, by kind.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed};
use storage_core::metrics::time::from_ms;
use storage_core::{
    ErrorKind, HealthStatus, JobStore, MetricRecord, NewJob, Outcome, Schedule, StorageBackend,
    TimeRange,
};
use storage_postgres::{PostgresBackend, PostgresOptions};
use tokio_postgres::Client;

#[path = "support/mod.rs"]
mod support;

use support::block_on;
use support::server::shared_trial;

fn main() -> ExitCode {
    let trials = vec![
        shared_trial("a_role_may_do_what_it_was_granted", granted),
        shared_trial("a_role_may_fill_a_schema_that_was_made_for_it", own_schema),
        shared_trial("a_server_that_takes_no_writes_answers_questions", read_only),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A store in a schema of its own with one sample, and a role that may log in and nothing else.
struct Setting {
    url: String,
    name: String,
    admin: Client,
}

impl Setting {
    async fn new(what: &str) -> Self {
        let url = support::url().unwrap();
        let name = format!("access_{what}_{}_{:08x}", std::process::id(), fastrand::u32(..));
        let admin = support::raw(&url).await;
        let role = format!("CREATE ROLE {name} LOGIN PASSWORD 'sesame'");
        admin.batch_execute(&role).await.unwrap();
        Self { url, name, admin }
    }

    async fn fill(&self) -> PostgresBackend {
        let store = PostgresBackend::open(support::options(&self.url, &self.name)).await.unwrap();
        store.write_batch(&[sample(0)]).await.unwrap();
        store
    }

    async fn sql(&self, sql: &str) {
        self.admin.batch_execute(&sql.replace("NAME", &self.name)).await.unwrap();
    }

    /// The options of the role.
    fn options(&self) -> PostgresOptions {
        self.options_with("")
    }

    fn options_with(&self, parameters: &str) -> PostgresOptions {
        let (_, address) = self.url.split_once('@').unwrap();
        let url = format!("postgres://{}:sesame@{address}?{parameters}", self.name);
        support::options(&url, &self.name)
    }

    async fn remove(self) {
        support::drop_schema(&self.url, &self.name).await;
        self.sql("DROP OWNED BY NAME; DROP ROLE NAME").await;
    }
}

fn sample(second: i64) -> MetricRecord {
    MetricRecord::new("a", from_ms(1_767_225_600_000 + second * 1000), "m", 1.0)
}

async fn refused(options: PostgresOptions) -> ErrorKind {
    let error = PostgresBackend::open(options).await.unwrap_err();
    assert!(!format!("{error:#} {error:?}").contains("sesame"));
    error.kind()
}

/// First nothing, then the schema, then reading: writing is never among it.
fn granted() -> Result<(), Failed> {
    block_on(async {
        let setting = Setting::new("granted").await;
        // It may not create schemas either.
        assert_eq!(refused(setting.options()).await, ErrorKind::PermissionDenied);
        let owner = setting.fill().await;
        assert_eq!(refused(setting.options()).await, ErrorKind::PermissionDenied);
        setting.sql("GRANT USAGE ON SCHEMA NAME TO NAME").await;
        assert_eq!(refused(setting.options()).await, ErrorKind::PermissionDenied);
        setting.sql("GRANT SELECT ON ALL TABLES IN SCHEMA NAME TO NAME").await;
        let reader = PostgresBackend::open(setting.options()).await.unwrap();
        // Also with a connection in the pool.
        reader.stats().await.unwrap();
        let shown = format!("{reader:?} {:?} {:?}", reader.history(), reader.events());
        assert!(shown.contains(&setting.name) && !shown.contains("sesame"), "{shown}");
        let found = reader.query_range("a", "m", TimeRange::all()).await.unwrap();
        assert_eq!(found, [sample(0)]);
        assert_eq!(reader.stats().await.unwrap().total_metrics, 1);
        assert_eq!(reader.check().await.unwrap().problems, Vec::<String>::new());
        let written = reader.write_batch(&[sample(1)]).await;
        let pruned = reader.prune_before(from_ms(i64::MAX / 2)).await.map(drop);
        for refused in [written, pruned] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:#}");
            assert_eq!(error.outcome(), Outcome::NotApplied);
        }
        assert_eq!(owner.stats().await.unwrap().total_metrics, 1);
        reader.close().await.unwrap();
        owner.close().await.unwrap();
        setting.remove().await;
    });
    Ok(())
}

fn own_schema() -> Result<(), Failed> {
    block_on(async {
        let setting = Setting::new("own").await;
        setting.sql("CREATE SCHEMA NAME AUTHORIZATION NAME").await;
        let store = PostgresBackend::open(setting.options()).await.unwrap();
        // Replaced as well, by way of a temporary table.
        for _ in 0..2 {
            store.write_batch(&[sample(0), sample(90_000)]).await.unwrap();
        }
        store.compact().await.unwrap();
        assert_eq!(store.prune_before(sample(1).timestamp).await.unwrap(), 1);
        assert_eq!(store.stats().await.unwrap().total_metrics, 1);
        store.close().await.unwrap();
        setting.remove().await;
    });
    Ok(())
}

/// What a standby says, said by a role whose transactions are read-only.
fn read_only() -> Result<(), Failed> {
    block_on(async {
        let setting = Setting::new("read_only").await;
        let owner = setting.fill().await;
        setting.sql("GRANT USAGE ON SCHEMA NAME TO NAME").await;
        setting.sql("GRANT ALL ON ALL TABLES IN SCHEMA NAME TO NAME").await;
        setting.sql("ALTER ROLE NAME SET default_transaction_read_only = on").await;
        let reader = PostgresBackend::open(setting.options()).await.unwrap();
        assert_eq!(reader.health().await.status, HealthStatus::Degraded);
        assert_eq!(reader.stats().await.unwrap().total_metrics, 1);
        let job = NewJob::new("j", "p", Schedule::parse("0 0 * * *").unwrap());
        // Twice: on a connection that is new and on one that was there.
        for _ in 0..2 {
            let written = reader.write_batch(&[sample(1)]).await;
            let added = reader.jobs().add_job(&job, sample(1).timestamp).await.map(drop);
            let pruned = reader.prune_before(sample(9).timestamp).await.map(drop);
            for refused in [written, added, pruned] {
                let error = refused.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:#}");
                assert_eq!(error.outcome(), Outcome::NotApplied);
                assert!(error.is_retryable());
            }
        }
        assert_eq!(owner.stats().await.unwrap().total_metrics, 1);
        // The same handle goes on when the server takes writes.
        setting.sql("ALTER ROLE NAME SET default_transaction_read_only = off").await;
        reader.write_batch(&[sample(1)]).await.unwrap();
        reader.jobs().add_job(&job, sample(1).timestamp).await.unwrap();
        assert_eq!(owner.stats().await.unwrap().total_metrics, 2);
        // Who asks for a server that takes writes is not content with this one.
        setting.sql("ALTER ROLE NAME SET default_transaction_read_only = on").await;
        let options = setting.options_with("target_session_attrs=read-write");
        assert_eq!(refused(options).await, ErrorKind::Unavailable);
        reader.close().await.unwrap();
        owner.close().await.unwrap();
        setting.remove().await;
    });
    Ok(())
}
