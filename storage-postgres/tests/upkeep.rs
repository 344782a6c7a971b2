//! Upkeep in the way of others and others in its way: a network that stalls in a prune, a lock that
//! is held when a handle writes first, rows that are dead but counted by nobody yet.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed};
use storage_core::metrics::time::from_ms;
use storage_core::{ErrorKind, MetricRecord, Outcome, StorageBackend};
use storage_postgres::PostgresBackend;

#[path = "support/mod.rs"]
mod support;

use support::proxy::{Proxy, Then};
use support::server::{Server, shared_trial, trial};
use support::{block_on, eventually, start_ms};

fn main() -> ExitCode {
    let trials = vec![
        shared_trial("a_prune_that_stalls_ends_and_writes_go_on", stalled_prune),
        shared_trial("a_lock_held_at_the_first_write_is_waited_for_once", held_at_first),
        shared_trial("partitions_that_cannot_be_made_ahead_cost_one_wait", ahead_in_vain),
        shared_trial("partitions_are_made_ahead", made_ahead),
        shared_trial("two_prunes_at_once_remove_everything_once", two_prunes),
        trial("an_autovacuum_lets_go_of_what_is_pruned", false, autovacuum),
        shared_trial("compaction_frees_what_a_prune_has_just_removed", compaction_frees),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn fresh_schema() -> String {
    format!("upkeep_{}_{:08x}", std::process::id(), fastrand::u32(..))
}

fn batch(range: std::ops::Range<i64>) -> Vec<MetricRecord> {
    let record = |second| MetricRecord::new("a", from_ms(start_ms() + second * 1000), "m", 1.0);
    range.map(record).collect()
}

/// The network stalls in the middle of a prune, which holds back the writes of its handle.
fn stalled_prune() -> Result<(), Failed> {
    block_on(async {
        let (url, schema) = (support::url().unwrap(), fresh_schema());
        let (proxy, by_proxy) = Proxy::before(&url).await;
        // Tables and partitions are there, however long that takes.
        let first = PostgresBackend::open(support::options(&url, &schema)).await.unwrap();
        first.write_batch(&batch(0..1000)).await.unwrap();
        first.close().await.unwrap();
        let options = support::options(&by_proxy, &schema);
        // A step of upkeep may take ten times as long.
        let options = options.statement_timeout(Duration::from_millis(300));
        let store = Arc::new(PostgresBackend::open(options).await.unwrap());
        // Another writes it again, so that the handle has looked around.
        store.write_batch(&batch(0..1000)).await.unwrap();
        // Past what connecting takes, in front of the end.
        proxy.strike_after(4_000, Then::Stall);
        let cutoff = from_ms(start_ms() + 500_000);
        let pruned = tokio::time::timeout(Duration::from_secs(20), store.prune_before(cutoff));
        let error = pruned.await.expect("the prune ends").unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{error:#}");
        proxy.heal();
        assert!(proxy.struck() > 0, "nothing stalled");
        // The server may still hold the locks of the prune; the handle is not stuck.
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = store.write_batch(&batch(1000..1100)).await {
            assert!(error.is_retryable(), "{error:#}");
            assert!(Instant::now() < deadline, "{error:#}");
        }
        // Where the outcome is unknown it is pruned already, or is now.
        let removed = store.prune_before(cutoff).await.unwrap();
        assert!(removed == 500 || error.outcome() == Outcome::Unknown, "{removed} removed");
        assert_eq!(store.stats().await.unwrap().total_metrics, 600);
        assert_eq!(store.check().await.unwrap().problems, Vec::<String>::new());
        store.close().await.unwrap();
        support::drop_schema(&url, &schema).await;
    });
    Ok(())
}

/// A handle looks around before it writes first; what is locked then is `Busy` after one timeout.
fn held_at_first() -> Result<(), Failed> {
    block_on(async {
        let (url, schema) = (support::url().unwrap(), fresh_schema());
        let timeout = Duration::from_secs(1);
        let options = support::options(&url, &schema).lock_timeout(timeout);
        let store = PostgresBackend::open(options).await.unwrap();
        let holder = support::raw(&url).await;
        let lock = format!("BEGIN; LOCK TABLE {schema}.series IN ACCESS EXCLUSIVE MODE");
        holder.batch_execute(&lock).await.unwrap();
        let before = Instant::now();
        let error = store.write_batch(&batch(0..10)).await.unwrap_err();
        assert!(before.elapsed() < 5 * timeout, "{:?}", before.elapsed());
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Busy, Outcome::NotApplied));
        holder.batch_execute("ROLLBACK").await.unwrap();
        store.write_batch(&batch(0..10)).await.unwrap();
        assert_eq!(store.stats().await.unwrap().total_metrics, 10);
        store.close().await.unwrap();
        support::drop_schema(&url, &schema).await;
    });
    Ok(())
}

/// Somebody analyzes the table, so that nothing can be attached to it.
fn ahead_in_vain() -> Result<(), Failed> {
    block_on(async {
        let (url, schema) = (support::url().unwrap(), fresh_schema());
        let first = support::options(&url, &schema).partitions_ahead(0);
        let first = PostgresBackend::open(first).await.unwrap();
        first.write_batch(&batch(0..10)).await.unwrap();
        first.close().await.unwrap();
        let holder = support::raw(&url).await;
        let lock =
            format!("BEGIN; LOCK TABLE ONLY {schema}.samples IN SHARE UPDATE EXCLUSIVE MODE");
        holder.batch_execute(&lock).await.unwrap();
        let name = format!("ahead {schema}");
        let options = support::options(&url, &schema).application_name(&name);
        let options = options.lock_timeout(Duration::from_millis(200)).partitions_ahead(3);
        let store = PostgresBackend::open(options).await.unwrap();
        let connections = async || {
            let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY pid";
            let rows = support::raw(&url).await.query(sql, &[&name]).await.unwrap();
            rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>()
        };
        store.write_batch(&batch(10..20)).await.unwrap();
        let before = connections().await;
        for no in 2..6 {
            store.write_batch(&batch(no * 10..no * 10 + 10)).await.unwrap();
        }
        assert_eq!(connections().await, before);
        holder.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(store.stats().await.unwrap().total_metrics, 60);
        store.close().await.unwrap();
        support::drop_schema(&url, &schema).await;
    });
    Ok(())
}

/// Today and three days more, once something was written.
fn made_ahead() -> Result<(), Failed> {
    block_on(async {
        let (url, schema) = (support::url().unwrap(), fresh_schema());
        let options = support::options(&url, &schema).partitions_ahead(3);
        let store = PostgresBackend::open(options).await.unwrap();
        let admin = support::raw(&url).await;
        let days = format!(
            "SELECT array_agg((low AT TIME ZONE 'UTC')::date
                 - (now() AT TIME ZONE 'UTC')::date ORDER BY low)
             FROM {schema}.partitions WHERE high > now() AND high - low = interval '1 day'"
        );
        // Written again: midnight may come in between.
        eventually(Duration::from_secs(30), "partitions are made", async || {
            let record = MetricRecord::new("a", chrono::Utc::now(), "m", 1.0);
            store.write_batch(&[record]).await.unwrap();
            let found = admin.query_one(&days, &[]).await.unwrap();
            found.get::<_, Option<Vec<i32>>>(0).is_some_and(|days| days == [0, 1, 2, 3])
        })
        .await;
        store.close().await.unwrap();
        support::drop_schema(&url, &schema).await;
    });
    Ok(())
}

/// One clears a part of a day while the other drops the day.
fn two_prunes() -> Result<(), Failed> {
    block_on(async {
        let (url, schema) = (support::url().unwrap(), fresh_schema());
        let open = async || PostgresBackend::open(support::options(&url, &schema)).await.unwrap();
        let (one, other) = (open().await, open().await);
        for _ in 0..5 {
            one.write_batch(&batch(0..86_400)).await.unwrap();
            let (part, whole) =
                (from_ms(start_ms() + 43_200_000), from_ms(start_ms() + 86_400_000));
            let (part, whole) = tokio::join!(one.prune_before(part), other.prune_before(whole));
            assert_eq!(part.unwrap() + whole.unwrap(), 86_400);
            assert_eq!(one.stats().await.unwrap().total_metrics, 0);
        }
        support::assert_sound(&one).await;
        support::drop_schema(&url, &schema).await;
    });
    Ok(())
}

/// Autovacuum goes through a partition so slowly that it would hold it for half a minute.
fn autovacuum() -> Result<(), Failed> {
    let server = Server::start(&["autovacuum_naptime=1s"]);
    block_on(async {
        let schema = fresh_schema();
        let store = PostgresBackend::open(support::options(&server.url, &schema)).await.unwrap();
        store.write_batch(&batch(0..1)).await.unwrap();
        let admin = support::raw(&server.url).await;
        let day = from_ms(start_ms()).format("%Y%m%d");
        let partition = format!("{schema}.samples_{day}");
        let slowly = format!(
            "ALTER TABLE {partition}
             SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)"
        );
        admin.batch_execute(&slowly).await.unwrap();
        store.write_batch(&batch(1..40_000)).await.unwrap();
        let tidied = format!(
            "SELECT count(*) FROM pg_stat_progress_vacuum
             WHERE relid = '{partition}'::regclass"
        );
        eventually(Duration::from_secs(60), "a partition is tidied", async || {
            admin.query_one(&tidied, &[]).await.unwrap().get::<_, i64>(0) > 0
        })
        .await;
        assert_eq!(store.prune_before(from_ms(start_ms() + 86_400_000)).await.unwrap(), 40_000);
        support::assert_sound(&store).await;
        store.close().await.unwrap();
    });
    Ok(())
}

/// The server counts dead rows a second late or more, so that whoever asks it what to vacuum finds
/// nothing to do right after a prune.
fn compaction_frees() -> Result<(), Failed> {
    block_on(async {
        let (url, schema) = (support::url().unwrap(), fresh_schema());
        let store = PostgresBackend::open(support::options(&url, &schema)).await.unwrap();
        store.write_batch(&batch(0..20_000)).await.unwrap();
        assert_eq!(store.prune_before(from_ms(start_ms() + 10_000_000)).await.unwrap(), 10_000);
        store.compact().await.unwrap();
        // Below zero until a table is vacuumed for the first time.
        let untouched = format!(
            "SELECT count(*) FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
             WHERE i.inhparent = '{schema}.samples'::regclass AND c.reltuples < 0"
        );
        let row = support::raw(&url).await.query_one(&untouched, &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), 0, "tables that were not vacuumed");
        store.close().await.unwrap();
        support::drop_schema(&url, &schema).await;
    });
    Ok(())
}
