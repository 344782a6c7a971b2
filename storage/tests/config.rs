//! The configuration as people write it, with everything they get wrong.
#![cfg(feature = "config")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use storage::config::{Age, BackendName, Config};
use storage::pipeline::RetentionPolicy;
use storage::{Error, ErrorKind};

const NONE: &[(&str, &str)] = &[];
const DAY: Duration = Duration::from_secs(86_400);

fn parse(text: &str) -> Result<Config, Error> {
    Config::from_json(text, NONE)
}

/// The first of the two forms that the design gave, comments included.
const WITH_AGES: &str = r#"
{
  "storage": {
    "backend": "sqlite",
    "path": "/var/lib/guardia/metrics.db",
    "retention": {
      "raw_metrics": "7d",       // Keep raw metrics for 7 days
      "aggregated_5min": "30d",  // Keep 5-min aggregates for 30 days
      "aggregated_1hour": "1y"   // Keep hourly aggregates for 1 year
    },
    "pruning_interval": "1h"     // Run cleanup every hour
  }
}"#;

/// The second.
const WITH_DAYS: &str = r#"
{
  "storage": {
    "backend": "sqlite",
    "sqlite": {
      "path": "./data/metrics.db"
    },
    "postgres": {
      "url": "postgres://user:pass@localhost/monitoring",
      "pool_size": 20
    },
    "parquet": {
      "base_path": "./data/parquet",
      "batch_size": 10000
    },
    "buffer_size": 1000,
    "flush_interval_secs": 30,
    "retention": {
      "raw_metrics_days": 7,
      "aggregated_5min_days": 30,
      "aggregated_1hour_days": 365
    }
  }
}"#;

#[test]
fn both_forms_load_as_written() {
    let config = parse(WITH_AGES).unwrap();
    assert_eq!(config.url().unwrap(), "sqlite:///var/lib/guardia/metrics.db");
    let keep = config.storage.retention.keep().unwrap();
    assert_eq!((keep.raw, keep.five_minutes, keep.day), (Some(7 * DAY), Some(30 * DAY), None));
    assert_eq!(keep.hour, Some(365 * DAY + DAY / 4));
    assert_eq!(config.storage.pruning_interval, Age(Duration::from_secs(3600)));

    let mut config = parse(WITH_DAYS).unwrap();
    assert_eq!(config.url().unwrap(), "sqlite://./data/metrics.db");
    let keep = config.storage.retention.keep().unwrap();
    assert_eq!((keep.raw, keep.hour), (Some(7 * DAY), Some(365 * DAY)));
    config.storage.backend = BackendName::Postgres;
    let url = "postgres://user:pass@localhost/monitoring?pool_size=20";
    assert_eq!(config.url().unwrap(), url);
    config.storage.backend = BackendName::Parquet;
    assert_eq!(config.url().unwrap(), "parquet://./data/parquet");
}

#[test]
fn everything_has_a_default_and_the_effective_values_load_again() {
    for text in ["", "{}", r#"{"storage":{}}"#, WITH_AGES, WITH_DAYS] {
        let config = parse(text).unwrap();
        assert_eq!(parse(&config.to_json().to_string()).unwrap(), config);
    }
    assert_eq!(parse("").unwrap(), Config::default());
    assert_eq!(Config::default().url().unwrap(), "sqlite://metrics.db");
}

#[test]
fn a_password_is_not_shown() {
    let config = parse(
        r#"{"storage":{"url":"postgres://a:s3cret@h/d","parquet":{"base_path":"s3://b?key=s3cret"},
            "archive":{"cold":"parquet+s3://b?aws_secret_access_key=s3cret"}}}"#,
    );
    let shown = format!("{:?}", config.unwrap());
    assert!(shown.contains("parquet+s3") && !shown.contains("s3cret"), "{shown}");
    let config = parse(WITH_DAYS).unwrap();
    let shown = format!("{config:?} {:#?}", config.storage.postgres);
    assert!(shown.contains("pool_size: Some(20)") && !shown.contains("user:pass"), "{shown}");
}

#[test]
fn unknown_keys_are_errors_with_a_suggestion() {
    for (text, key, meant) in [
        (r#"{"storge":{}}"#, "storge", "storage"),
        (r#"{"storage":{"bufer_size":1}}"#, "storage.bufer_size", "buffer_size"),
        (r#"{"storage":{"sqlite":{"Path":"x"}}}"#, "storage.sqlite.Path", "path"),
        (
            r#"{"storage":{"retention":{"raw_metric":"7d"}}}"#,
            "storage.retention.raw_metric",
            "raw_metrics",
        ),
        (r#"{"storage":{"flush_interval":30}}"#, "storage.flush_interval", "flush_interval_secs"),
        (r#"{"storage":{"spool":{"pth":"x"}}}"#, "storage.spool.pth", "path"),
        (r#"{"storage":{"archive":{"aftr":"1d"}}}"#, "storage.archive.aftr", "after"),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_eq!(error.context("key"), Some(key));
        assert_eq!(error.context("did_you_mean"), Some(meant), "{text}");
    }
    let error = parse(r#"{"storage":{"sqlite":{"zzz":"x"}}}"#).unwrap_err();
    assert_eq!((error.context("did_you_mean"), error.context("known")), (None, Some("path")));
}

#[test]
fn wrong_values_are_named_and_not_shown() {
    for (text, key) in [
        (r#"{"storage":{"buffer_size":"s3cret"}}"#, "storage.buffer_size"),
        (r#"{"storage":{"buffer_size":0}}"#, "storage.buffer_size"),
        (r#"{"storage":{"buffer_size":-1}}"#, "storage.buffer_size"),
        (r#"{"storage":{"backend":"s3cret"}}"#, "storage.backend"),
        (r#"{"storage":{"pruning_interval":"s3cret"}}"#, "storage.pruning_interval"),
        (r#"{"storage":{"pruning_interval":"1ms"}}"#, "storage.pruning_interval"),
        (r#"{"storage":{"retention":{"raw_metrics":7}}}"#, "storage.retention.raw_metrics"),
        (r#"{"storage":{"retention":{"raw_metrics":"0s"}}}"#, "storage.retention.raw_metrics"),
        (
            r#"{"storage":{"retention":{"raw_metrics":"7d","raw_metrics_days":7}}}"#,
            "storage.retention.raw_metrics",
        ),
        (r#"{"storage":{"sqlite":[]}}"#, "storage.sqlite"),
        (r#"{"storage":{"backend":"postgres"}}"#, "storage.postgres.url"),
        (r#"{"storage":{"backend":"postgres","path":"x"}}"#, "storage.path"),
        (r#"{"storage":{"collect":{"interval":"1ms"}}}"#, "storage.collect.interval"),
        (r#"{"storage":{"rollup_interval":"1ms"}}"#, "storage.rollup_interval"),
        (r#"{"storage":{"archive":{}}}"#, "storage.archive.cold"),
        (
            r#"{"storage":{"url":"rolled://?samples=s3cret","archive":{"cold":"x"}}}"#,
            "storage.archive",
        ),
        (
            r#"{"storage":{"url":"tiered://?hot=memory://a&cold=memory://b","archive":{"cold":"x"}}}"#,
            "storage.archive.cold",
        ),
        (
            r#"{"storage":{"archive":{"cold":"memory://a","interval":"1ms"}}}"#,
            "storage.archive.interval",
        ),
        (
            r#"{"storage":{"archive":{"cold":"memory://a","window":"1ms"}}}"#,
            "storage.archive.window",
        ),
        (
            r#"{"storage":{"archive":{"cold":"memory://a","samples_per_second":0}}}"#,
            "storage.archive.samples_per_second",
        ),
        (
            r#"{"storage":{"archive":{"cold":"memory://a","after":"7d"},"retention":{"raw_metrics_days":7}}}"#,
            "storage.archive.after",
        ),
        (r#"{"storage":{"listen":{"addresses":"s3cret"}}}"#, "storage.listen.addresses"),
        (r#"{"storage":{"listen":{"addresses":["[::1]:1","unix:"]}}}"#, "storage.listen.addresses"),
        (r#"{"storage":{"listen":{"addresses":"0.0.0.0:8094"}}}"#, "storage.listen.allow_remote"),
        (r#"{"storage":{"listen":{"connections_max":0}}}"#, "storage.listen.connections_max"),
        (r#"{"storage":{"listen":{"line_bytes_max":1000}}}"#, "storage.listen.line_bytes_max"),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!((error.kind(), error.context("key")), (ErrorKind::Config, Some(key)), "{text}");
        assert!(!format!("{error:#} {error:?}").contains("s3cret"), "{error:#}");
    }
}

#[test]
fn broken_text_is_found_where_it_is() {
    let error = parse("{\n  \"storage\": {\n    \"buffer_size\": 1,,\n").unwrap_err();
    assert_eq!((error.context("line"), error.kind()), (Some("3"), ErrorKind::Config));
    // A comment before it moves nothing, and what looks like one in a text is none.
    let error = parse("// one\n/* two */ {\n  \"storage\": nope }").unwrap_err();
    assert_eq!(error.context("line"), Some("3"));
    let config = parse(r#"{"storage":{"sqlite":{"path":"a//b"}}}"#).unwrap();
    assert_eq!(config.storage.sqlite.path, "a//b");
}

#[test]
fn the_environment_goes_before_the_file() {
    let variables = [
        ("STORAGE__BACKEND", "postgres"),
        ("STORAGE__POSTGRES__URL", "postgres://a:b@c/d"),
        ("STORAGE__POSTGRES__POOL_SIZE", "7"),
        ("STORAGE__FLUSH_INTERVAL_SECS", "5"),
        ("STORAGE__RETENTION__RAW_METRICS", "2d"),
        ("STORAGE__COLLECT__SERVER", "12"),
        ("STORAGE__SPOOL__PATH", "spool.db"),
        ("STORAGE__LISTEN__ADDRESSES", "unix:/run/metrics.sock"),
        ("STORAGE_URL", "not ours"),
        ("PATH", "/bin"),
    ];
    let config =
        Config::from_json(WITH_AGES.replace("\"path\"", "// \"path\"").as_str(), &variables);
    let config = config.unwrap().storage;
    assert_eq!(config.url().unwrap(), "postgres://a:b@c/d?pool_size=7");
    assert_eq!(
        (config.flush_interval_secs, config.retention.keep().unwrap().raw),
        (5, Some(2 * DAY))
    );
    assert_eq!(config.collect.server.as_deref(), Some("12"));
    assert_eq!(config.spool.unwrap().records_max, 10_000_000);
    assert_eq!(config.listen.addresses, ["unix:/run/metrics.sock".parse().unwrap()]);

    let error = Config::from_json("", &[("STORAGE__SQLITE__PTH", "x")]).unwrap_err();
    assert_eq!(error.context("variable"), Some("STORAGE__SQLITE__PTH"));
    assert_eq!(error.context("did_you_mean"), Some("path"));
    let error = Config::from_json("", &[("STORAGE__BUFFER_SIZE", "s3cret")]).unwrap_err();
    assert_eq!(error.context("key"), Some("storage.buffer_size"));
    assert!(!format!("{error:#}").contains("s3cret"));
    assert!(Config::from_json("", &[("STORAGE__BUFFER_SIZE__X", "1")]).is_err());
}

#[test]
fn the_environment_replaces_what_says_the_same_in_another_way() {
    let url_of = |file: &str, variables: &[(&str, &str)]| {
        let config = Config::from_json(file, variables);
        config.unwrap().storage.url().unwrap()
    };
    let path = r#"{"storage":{"path":"file.db","parquet":{"base_path":"file"}}}"#;
    assert_eq!(url_of(path, &[("STORAGE__SQLITE__PATH", "mine.db")]), "sqlite://mine.db");
    let parquet = [("STORAGE__BACKEND", "parquet"), ("STORAGE__PARQUET__BASE_PATH", "mine")];
    assert_eq!(url_of(path, &parquet), "parquet://mine");
    let url = r#"{"storage":{"url":"postgres://a@b/c"}}"#;
    assert_eq!(url_of(url, &[("STORAGE__BACKEND", "memory")]), "memory://");
    assert_eq!(url_of(url, &[("STORAGE__PATH", "mine.db")]), "sqlite://mine.db");
    assert_eq!(url_of(url, &[("STORAGE__BUFFER_SIZE", "7")]), "postgres://a@b/c");
    // What does not concern the backend changes nothing.
    assert_eq!(url_of(url, &[("STORAGE__BACKEND", "postgres")]), "postgres://a@b/c");
    assert_eq!(url_of(url, &[("STORAGE__SQLITE__PATH", "mine.db")]), "postgres://a@b/c");
    assert_eq!(url_of(path, &[("STORAGE__PARQUET__BASE_PATH", "mine")]), "sqlite://file.db");
    let parquet = r#"{"storage":{"backend":"parquet","path":"file"}}"#;
    assert_eq!(url_of(parquet, &[("STORAGE__SQLITE__PATH", "mine.db")]), "parquet://file");

    let days = r#"{"storage":{"retention":{"raw_metrics_days":7}}}"#;
    let ages = r#"{"storage":{"retention":{"raw_metrics":"7d"}}}"#;
    for (file, variable, text) in [
        (days, "STORAGE__RETENTION__RAW_METRICS", "2d"),
        (ages, "STORAGE__RETENTION__RAW_METRICS_DAYS", "2"),
    ] {
        let config = Config::from_json(file, &[(variable, text)]).unwrap().storage;
        assert_eq!(config.retention.keep().unwrap().raw, Some(2 * DAY));
    }
    let both =
        [("STORAGE__RETENTION__RAW_METRICS", "2d"), ("STORAGE__RETENTION__RAW_METRICS_DAYS", "2")];
    assert!(Config::from_json("", &both).is_err());
}

#[test]
fn addresses_to_listen_at_are_one_or_several() {
    let text =
        |addresses: &str| format!(r#"{{"storage":{{"listen":{{"addresses":{addresses}}}}}}}"#);
    let listen = |addresses: &str| parse(&text(addresses)).unwrap().storage.listen.addresses;
    assert_eq!(listen(r#""127.0.0.1:8094""#), ["127.0.0.1:8094".parse().unwrap()]);
    assert_eq!(listen(r#"["unix:x.sock", "[::1]:1"]"#).len(), 2);
    assert_eq!(listen("[]"), []);
    let open = r#"{"storage":{"listen":{"addresses":"0.0.0.0:1","allow_remote":true}}}"#;
    assert!(!parse(open).unwrap().storage.listen.addresses[0].is_local());
    let variables = [("STORAGE__LISTEN__ADDRESSES", r#"["unix:a", "unix:b"]"#)];
    let config = Config::from_json("", &variables).unwrap();
    assert_eq!(config.storage.listen.addresses.len(), 2);
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn the_store_and_the_spool_are_made_with_their_directories() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let text = serde_json::json!({ "storage": {
        "sqlite": { "path": at("data/50%/what?.db") },
        "spool": { "path": at("spool/spool.db"), "records_max": 5 },
    }});
    let config = parse(&text.to_string()).unwrap().storage;
    let store = config.connect().await.unwrap();
    assert_eq!(store.name(), "sqlite");
    assert!(dir.path().join("data/50%/what?.db").exists());
    let spool = config.open_spool().await.unwrap().unwrap();
    assert!(spool.is_empty() && dir.path().join("spool/spool.db").exists());
    // Two processes would replace each other's batches.
    let error = config.open_spool().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    spool.close().await.unwrap();
    drop(spool);
    assert!(config.open_spool().await.unwrap().is_some());
    store.close().await.unwrap();
}

#[test]
fn rollups_are_made_where_one_is_given_an_age() {
    let upkeep = |text: &str| parse(text).unwrap().storage.upkeep().unwrap();
    for text in [WITH_AGES, WITH_DAYS] {
        let upkeep = upkeep(text).unwrap();
        assert!(upkeep.has_rollups() && upkeep.retention_interval == Duration::from_secs(3600));
    }
    assert_eq!(upkeep(WITH_DAYS).unwrap().policy, {
        let policy = RetentionPolicy::default().keep_samples(7 * DAY).unwrap();
        let policy = policy.keep_rollups(Duration::from_secs(300), 30 * DAY).unwrap();
        policy.keep_rollups(Duration::from_secs(3600), 365 * DAY).unwrap()
    });
    assert!(upkeep("").is_none());
    let plain = upkeep(r#"{"storage":{"retention":{"raw_metrics":"7d"}}}"#).unwrap();
    assert!(!plain.has_rollups());
    let asked = upkeep(r#"{"storage":{"rollups":true,"rollup_delay":"1m"}}"#).unwrap();
    assert!(asked.has_rollups() && asked.delay == Duration::from_secs(60));
    let text = r#"{"storage":{"rollups":false,"retention":{"aggregated_1hour":"1y"}}}"#;
    assert_eq!(parse(text).unwrap_err().context("key"), Some("storage.rollups"));
    let text = r#"{"storage":{"retention":{"raw_metrics_bytes_max":0}}}"#;
    let key = "storage.retention.raw_metrics_bytes_max";
    assert_eq!(parse(text).unwrap_err().context("key"), Some(key));
}

#[test]
fn rollups_of_any_widths_are_kept_for_any_time() {
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    let config = |rollups: &str, retention: &str| {
        let text = format!(r#"{{"storage":{{"rollups":{rollups},"retention":{{{retention}}}}}}}"#);
        parse(&text)
    };
    let upkeep = |rollups: &str, retention: &str| {
        config(rollups, retention).unwrap().storage.upkeep().unwrap()
    };
    let tiers = r#"[{"width":"1d"},{"width":"1m","keep":"14d"},{"width":"15m","keep":"1y"}]"#;
    let kept = upkeep(tiers, r#""raw_metrics":"7d","aggregated_1day":"9y""#).unwrap();
    assert_eq!(kept.widths, [minutes(1), minutes(15), DAY]);
    let policy = RetentionPolicy::default().keep_samples(7 * DAY).unwrap();
    let policy = policy.keep_rollups(minutes(1), 14 * DAY).unwrap();
    let policy = policy.keep_rollups(minutes(15), 365 * DAY + DAY / 4).unwrap();
    assert_eq!(kept.policy, policy.keep_rollups(DAY, 9 * (365 * DAY + DAY / 4)).unwrap());
    let bounded = upkeep(r#"[{"width":"15m","bytes_max":1000}]"#, "").unwrap();
    let bound = RetentionPolicy::default().rollups_bytes_max(minutes(15), 1000);
    assert_eq!(bounded.policy, bound);
    assert_eq!(upkeep("true", "").unwrap().widths.len(), 3);
    assert!(upkeep("[]", "").is_none() && upkeep("false", "").is_none());
    let round = config(tiers, "").unwrap();
    assert_eq!(parse(&round.to_json().to_string()).unwrap(), round);
    let variables = [("STORAGE__ROLLUPS", r#"[{"width":"2h"}]"#)];
    let config_of_environment = Config::from_json("", &variables).unwrap().storage;
    assert_eq!(config_of_environment.upkeep().unwrap().unwrap().widths, [minutes(120)]);

    for (rollups, retention, key) in [
        (r#"[{"width":"1500ms"}]"#, "", "storage.rollups"),
        (r#"[{"width":"0s"}]"#, "", "storage.rollups"),
        (r#"[{"width":"5m"},{"width":"7m"}]"#, "", "storage.rollups"),
        (r#"[{"width":"5m"},{"width":"300s"}]"#, "", "storage.rollups"),
        (r#"[{"width":"5m","keep":"0s"}]"#, "", "storage.rollups"),
        (r#"[{"width":"5m","bytes_max":0}]"#, "", "storage.rollups"),
        (r#"[{"keep":"1d"}]"#, "", "storage.rollups"),
        (r#"["5m"]"#, "", "storage.rollups"),
        (r#"[{"width":"5m","kep":"1d"}]"#, "", "storage.rollups[0].kep"),
        ("3", "", "storage.rollups"),
        (r#"[{"width":"1m"}]"#, r#""aggregated_5min":"1d""#, "storage.retention.aggregated_5min"),
        (
            r#"[{"width":"1h","keep":"2d"}]"#,
            r#""aggregated_1hour_days":1"#,
            "storage.retention.aggregated_1hour",
        ),
    ] {
        let error = config(rollups, retention).unwrap_err();
        assert_eq!(
            (error.kind(), error.context("key")),
            (ErrorKind::Config, Some(key)),
            "{rollups}"
        );
    }
    let error = config(r#"[{"width":"5m","kep":"1d"}]"#, "").unwrap_err();
    assert_eq!(error.context("did_you_mean"), Some("keep"));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load("/nowhere/storage.json").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.context("path"), Some("/nowhere/storage.json"));
}

#[test]
fn what_is_archived_makes_two_tiers_of_the_store() {
    let text = r#"{"storage":{"path":"a%b.db","archive":{"cold":"parquet+s3://b/p?aws_region=x&aws_key=y"}}}"#;
    let config = parse(text).unwrap().storage;
    assert_eq!(config.hot_url().unwrap(), "sqlite://a%25b.db");
    let urls = storage::TierUrls::parse(&config.url().unwrap()).unwrap();
    assert_eq!((&*urls.hot, &*urls.control), ("sqlite://a%25b.db", "sqlite://a%25b.db.tiers"));
    assert_eq!(urls.cold, "parquet+s3://b/p?aws_region=x&aws_key=y");
    let archive = config.archive.unwrap();
    assert_eq!(archive.policy().age(), 30 * DAY);

    let both = "tiered://?hot=memory://a&cold=memory://b&control=memory://c";
    let text = format!(r#"{{"storage":{{"url":"{both}","archive":{{"after":"1d"}}}}}}"#);
    let config = parse(&text).unwrap().storage;
    assert_eq!((&*config.url().unwrap(), &*config.hot_url().unwrap()), (both, "memory://a"));
    assert!(Config::default().storage.archive.is_none());
}

#[tokio::test]
async fn tiers_of_a_configuration_are_opened_with_rollups_over_both() {
    use storage::{MetricRecord, StorageBackend};

    let text = r#"{"storage":{"url":"memory://config-hot","rollups":true,
        "archive":{"cold":"memory://config-cold"},"retention":{"raw_metrics":"90d"}}}"#;
    let config = parse(text).unwrap().storage;
    let (tiers, upkeep) =
        (config.connect_tiered().await.unwrap().unwrap(), config.upkeep().unwrap());
    let store = config.connect_rolled_over(Arc::clone(&tiers), &upkeep.unwrap()).await.unwrap();
    let old = chrono::Utc::now() - 100 * DAY;
    store.write_batch(&[MetricRecord::new("a", old, "b", 1.0)]).await.unwrap();
    let policy = config.retention_policy().unwrap();
    assert_eq!(store.retain(&policy).await.unwrap().rows_removed(), 0, "it is not archived");
    let options = storage::pipeline::ArchiveOptions::before(chrono::Utc::now() - 30 * DAY);
    storage::pipeline::archive(&tiers, &options, |_| {}).await.unwrap();
    assert_eq!(store.retain(&policy).await.unwrap().entries[0].rows_removed, 1);
    assert!(Config::default().storage.connect_tiered().await.unwrap().is_none());
}
