//! The questions of TSBS as one writes them in SQL for these tables.

use std::collections::HashMap;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use storage_benches::queries::{Draw, Question, Row};
use storage_benches::tsbs::FIELDS;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use crate::Outcome;

const RANGE: &str = "p.ts >= $1 AND p.ts < $2";

type Parameters<'a> = Vec<&'a (dyn ToSql + Sync)>;

/// A program that asks by hand, with its prepared statements.
pub(crate) struct ByHand<'a> {
    client: &'a Client,
    statements: HashMap<String, Statement>,
}

impl<'a> ByHand<'a> {
    pub(crate) fn new(client: &'a Client) -> Self {
        Self { client, statements: HashMap::new() }
    }

    /// Asks and returns the rows of the answer.
    pub(crate) async fn ask(&mut self, question: Question, draw: &Draw) -> Outcome<Vec<Row>> {
        let (start, end) = bounds(question, draw);
        let (some, first_host): (Vec<&str>, Option<&String>) = match question {
            Question::SingleGroupby { fields, .. } | Question::DoubleGroupby { fields } => {
                (FIELDS[..fields].to_vec(), None)
            }
            _ => (FIELDS.to_vec(), draw.hosts.first()),
        };
        let mut parameters: Parameters<'_> = vec![&start, &end];
        match question {
            Question::SingleGroupby { .. } | Question::CpuMaxAll { .. } => {
                parameters.extend([&draw.hosts as &(dyn ToSql + Sync), &some]);
            }
            Question::DoubleGroupby { .. } => parameters.push(&some),
            Question::Lastpoint => parameters.clear(),
            Question::GroupbyOrderbyLimit => {}
            Question::HighCpu => parameters.extend(first_host.map(|h| h as &(dyn ToSql + Sync))),
        }
        let statement = self.prepared(&sql(question)).await?;
        let rows = self.client.query(&statement, &parameters).await?;
        let row = |row: &tokio_postgres::Row| {
            let time: DateTime<Utc> = row.try_get::<_, SystemTime>(1)?.into();
            Ok((row.try_get(0)?, time.timestamp_millis(), row.try_get(2)?))
        };
        rows.iter().map(row).collect()
    }

    async fn prepared(&mut self, sql: &str) -> Outcome<Statement> {
        if let Some(known) = self.statements.get(sql) {
            return Ok(known.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

fn sql(question: Question) -> String {
    match question {
        Question::SingleGroupby { .. } | Question::CpuMaxAll { .. } => {
            let hourly = matches!(question, Question::CpuMaxAll { .. });
            format!(
                "SELECT s.metric_type, {} AS t, max(p.value) FROM samples p
                 JOIN series s ON s.id = p.series_id
                 WHERE s.server_id = ANY($3) AND s.metric_type = ANY($4) AND {RANGE}
                 GROUP BY 1, 2 ORDER BY 1, 2",
                bin(if hourly { "hour" } else { "minute" })
            )
        }
        Question::DoubleGroupby { .. } => format!(
            "WITH w AS (SELECT series_id, {} AS t, avg(value) AS mean FROM samples p
                WHERE series_id IN (SELECT id FROM series WHERE metric_type = ANY($3)) AND {RANGE}
                GROUP BY 1, 2)
             SELECT s.server_id || ' ' || s.metric_type, t, mean FROM w
             JOIN series s ON s.id = w.series_id",
            bin("hour")
        ),
        Question::Lastpoint => "SELECT s.server_id || ' ' || s.metric_type, p.ts, p.value
             FROM series s CROSS JOIN LATERAL
                (SELECT ts, value FROM samples WHERE series_id = s.id ORDER BY ts DESC LIMIT 1) p"
            .to_owned(),
        Question::GroupbyOrderbyLimit => format!(
            "SELECT 'max', {} AS t, max(p.value) FROM samples p
             JOIN series s ON s.id = p.series_id
             WHERE s.metric_type = 'usage_user' AND {RANGE}
             GROUP BY 2 ORDER BY 2 DESC LIMIT 5",
            bin("minute")
        ),
        Question::HighCpu => format!(
            "SELECT s.metric_type, p.ts, p.value
             FROM samples p JOIN series s ON s.id = p.series_id
             WHERE s.server_id = $3 AND {RANGE} AND p.ts IN (
                SELECT p.ts FROM samples p JOIN series s ON s.id = p.series_id
                WHERE s.server_id = $3 AND s.metric_type = 'usage_user' AND p.value > 90
                AND {RANGE})"
        ),
    }
}

/// The window of a sample.
fn bin(width: &str) -> String {
    format!("date_bin('1 {width}', p.ts, '2000-01-01 00:00:00+00')")
}

fn bounds(question: Question, draw: &Draw) -> (SystemTime, SystemTime) {
    let start = draw.start;
    let (start, end) = match question {
        Question::SingleGroupby { hours, .. } => (start, start + chrono::Duration::hours(hours)),
        Question::CpuMaxAll { .. } => (start, start + chrono::Duration::hours(8)),
        Question::GroupbyOrderbyLimit => (start - chrono::Duration::minutes(5), start),
        _ => (start, start + chrono::Duration::hours(12)),
    };
    (start.into(), end.into())
}
