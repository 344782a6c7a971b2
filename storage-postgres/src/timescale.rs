//! TimescaleDB: which edition is there, and the SQL that each takes.
//!
//! Written for TimescaleDB 2.19 and later (`by_range` came with 2.13). Everything that the Apache
//! edition lacks stands in `sql/timescale_community.sql`.

use storage_core::Result;
use tokio_postgres::Client;

use crate::error::from_pg;

const HYPERTABLE: &str = include_str!("sql/timescale_apache.sql");
const COMPRESSION: &str = include_str!("sql/timescale_community.sql");

const PROBE: &str = "SELECT quote_ident(n.nspname), current_setting('timescaledb.license', true)
    FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
    WHERE e.extname = 'timescaledb'";

const COMPRESSION_JOB: &str = "SELECT job_id FROM timescaledb_information.jobs
    WHERE proc_name = 'policy_compression' AND hypertable_name = 'samples'
    AND hypertable_schema = current_schema() ORDER BY job_id LIMIT 1";

/// What keeps the samples, by what the database offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tier {
    /// PostgreSQL alone.
    Plain,
    /// TimescaleDB's Apache edition: hypertables.
    Apache,
    /// TimescaleDB's Community edition: hypertables, old chunks compressed.
    Community,
}

/// The extension as it is installed.
#[derive(Debug)]
pub(crate) struct Extension {
    pub(crate) tier: Tier,
    /// The schema of its functions, quoted.
    schema: String,
}

/// Says which edition the database has, if it has one.
pub(crate) async fn probe(client: &Client) -> Result<Option<Extension>> {
    let row = client.query_opt(PROBE, &[]).await.map_err(from_pg)?;
    let Some(row) = row else { return Ok(None) };
    let license: Option<String> = row.try_get(1).map_err(from_pg)?;
    let tier = match license.as_deref() {
        Some("timescale") => Tier::Community,
        _ => Tier::Apache,
    };
    Ok(Some(Extension { tier, schema: row.try_get(0).map_err(from_pg)? }))
}

impl Extension {
    /// Returns the SQL that creates the table of samples.
    pub(crate) fn create_samples(&self) -> String {
        let compression = if self.tier == Tier::Community { COMPRESSION } else { "" };
        format!("{HYPERTABLE}{compression}").replace("{timescaledb}", &self.schema)
    }

    /// Returns the SQL that drops the chunks before `$1`.
    pub(crate) fn drop_chunks(&self) -> String {
        let schema = &self.schema;
        format!(
            "SELECT count(*) FROM {schema}.drop_chunks('samples', older_than => $1::timestamptz)"
        )
    }

    /// Returns the SQL that compresses the chunks which the policy would compress next, also those
    /// that late samples have opened again; `None` where there is no such policy.
    pub(crate) async fn compress(&self, client: &Client) -> Result<Option<String>> {
        if self.tier != Tier::Community {
            return Ok(None);
        }
        let job = client.query_opt(COMPRESSION_JOB, &[]).await.map_err(from_pg)?;
        let Some(job) = job else { return Ok(None) };
        let id: i32 = job.try_get(0).map_err(from_pg)?;
        Ok(Some(format!("CALL {}.run_job({id})", self.schema)))
    }

    /// Returns the SQL that gives the bytes of all chunks.
    pub(crate) fn size(&self) -> String {
        format!("SELECT {}.hypertable_size('samples')", self.schema)
    }
}
