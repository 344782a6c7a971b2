//! Rows and checkpoints of projections: a step is one transaction.

use futures_util::TryStreamExt;
use serde_json::Value;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use storage_core::events::Row;
use storage_core::{Error, ErrorKind, Matcher, ProjectionInfo, ProjectionStep, Result};

use super::read::extent;
use crate::error::{from_sqlx, of_commit};
use crate::list::json_list;
use crate::schema::{begin, finish};
use crate::store::Store;

/// Changes that one statement makes at most, so that its text stays small.
const STATEMENT_CHANGES: usize = 256;

/// A step with its rows as text.
#[derive(Debug)]
pub(super) struct Changes {
    /// Without its changes.
    step: ProjectionStep,
    rows: Vec<Change>,
    bytes: u64,
}

/// Table, key and, unless the row goes, its value.
type Change = (String, String, Option<String>);

impl Changes {
    /// Takes a step that is valid. Of several changes of one key the last one stays.
    pub(super) fn of(step: &ProjectionStep) -> Result<Self> {
        let mut last = std::collections::BTreeMap::new();
        for change in &step.changes {
            last.insert((&change.table, &change.key), change.value.as_ref());
        }
        let row = |((table, key), value): ((&String, &String), Option<&Value>)| {
            let value = value.map(serde_json::to_string).transpose().map_err(|error| {
                Error::invalid("the row cannot be written as JSON").with_source(error)
            })?;
            Ok((table.clone(), key.clone(), value))
        };
        let rows = last.into_iter().map(row).collect::<Result<Vec<Change>>>()?;
        let bytes = rows.iter().map(|row| 64 + row.2.as_ref().map_or(0, String::len) as u64).sum();
        let step = ProjectionStep {
            reset: step.reset,
            ..ProjectionStep::new(&*step.projection, step.from, step.to)
        };
        Ok(Self { step, rows, bytes })
    }
}

impl Store {
    pub(super) async fn project(&self, changes: Changes) -> Result<()> {
        let mut writer = self.writer().await?;
        let connection = writer.connection()?;
        let mut transaction = begin(connection).await?;
        let made = make_step(&mut transaction, &changes).await;
        let made = finish(transaction, made).await.map_err(of_commit);
        made.inspect_err(|error| self.note_write_error(error))?;
        self.checkpoint_if_due(connection, changes.bytes).await;
        Ok(())
    }

    pub(super) async fn projections(&self) -> Result<Vec<ProjectionInfo>> {
        if !self.finds_events().await? {
            return Ok(Vec::new());
        }
        let mut connection = self.readers.acquire().await.map_err(from_sqlx)?;
        checkpoints(&mut connection).await
    }

    /// The rows of a table whose keys match, by key.
    pub(super) async fn projected_rows(
        &self,
        projection: &str,
        table: &str,
        keys: &Matcher,
    ) -> Result<Vec<Row>> {
        if !self.finds_events().await? {
            return Ok(Vec::new());
        }
        let mut connection = self.readers.acquire().await.map_err(from_sqlx)?;
        let statement = match keys.names() {
            Some(names) => sqlx::query(
                "SELECT r.key, r.value_json FROM projections AS p
                 CROSS JOIN json_each(?3) AS chosen
                 CROSS JOIN projection_rows AS r
                     ON r.projection_id = p.id AND r.table_name = ?2 AND r.key = chosen.value
                 WHERE p.name = ?1 ORDER BY r.key",
            )
            .bind(projection)
            .bind(table)
            .bind(json_list(names)?),
            None => sqlx::query(
                "SELECT r.key, r.value_json FROM projections AS p
                 CROSS JOIN projection_rows AS r
                     ON r.projection_id = p.id AND r.table_name = ?2 AND r.key >= ?3
                 WHERE p.name = ?1 ORDER BY r.key",
            )
            .bind(projection)
            .bind(table)
            .bind(keys.literal_prefix().to_owned()),
        };
        let mut rows = statement.fetch(&mut *connection);
        let mut found = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(from_sqlx)? {
            let key: &str = row.try_get(0).map_err(from_sqlx)?;
            if keys.names().is_none() && !key.starts_with(keys.literal_prefix()) {
                break;
            }
            if keys.matches(key) {
                found.push(row_of(&row, projection, table)?);
            }
        }
        Ok(found)
    }

    pub(super) async fn forget_projection(&self, name: &str) -> Result<bool> {
        let mut writer = self.writer().await?;
        let connection = writer.connection()?;
        let mut transaction = begin(connection).await?;
        let forgotten = forget(&mut transaction, name).await;
        let forgotten = finish(transaction, forgotten).await.map_err(of_commit);
        forgotten.inspect_err(|error| self.note_write_error(error))
    }
}

fn row_of(row: &SqliteRow, projection: &str, table: &str) -> Result<Row> {
    let key: String = row.try_get(0).map_err(from_sqlx)?;
    let text: &str = row.try_get(1).map_err(from_sqlx)?;
    let value = serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "a stored row is no JSON")
            .with_context("projection", projection)
            .with_context("table", table)
            .with_context("key", &key)
            .with_source(error)
    })?;
    Ok(Row { key, value })
}

/// Every projection by name, with its checkpoint.
pub(super) async fn checkpoints(connection: &mut SqliteConnection) -> Result<Vec<ProjectionInfo>> {
    let rows = sqlx::query("SELECT name, checkpoint FROM projections ORDER BY name")
        .fetch_all(connection)
        .await
        .map_err(from_sqlx)?;
    let info = |row: &SqliteRow| {
        let checkpoint: i64 = row.try_get(1)?;
        Ok(ProjectionInfo { projection: row.try_get(0)?, checkpoint: checkpoint.cast_unsigned() })
    };
    rows.iter().map(info).collect::<sqlx::Result<_>>().map_err(from_sqlx)
}

async fn make_step(connection: &mut SqliteConnection, changes: &Changes) -> Result<()> {
    let Changes { step, rows, .. } = changes;
    let found = sqlx::query("SELECT id, checkpoint FROM projections WHERE name = ?")
        .bind(&step.projection)
        .fetch_optional(&mut *connection)
        .await
        .and_then(|row| {
            row.map(|row| Ok((row.try_get::<i64, _>(0)?, row.try_get::<i64, _>(1)?))).transpose()
        })
        .map_err(from_sqlx)?;
    let checkpoint = found.map_or(0, |(_, checkpoint)| checkpoint.cast_unsigned());
    step.check(checkpoint, extent(connection).await?)?;
    let id: i64 = sqlx::query(
        "INSERT INTO projections (name, checkpoint) VALUES (?, ?)
         ON CONFLICT (name) DO UPDATE SET checkpoint = excluded.checkpoint RETURNING id",
    )
    .bind(&step.projection)
    .bind(step.to.cast_signed())
    .fetch_one(&mut *connection)
    .await
    .and_then(|row| row.try_get(0))
    .map_err(from_sqlx)?;
    if step.reset {
        delete_rows(connection, id).await?;
    }
    for some in rows.chunks(STATEMENT_CHANGES) {
        change_rows(connection, id, some).await?;
    }
    Ok(())
}

/// Sets and removes rows, each of which is there once.
async fn change_rows(connection: &mut SqliteConnection, id: i64, rows: &[Change]) -> Result<()> {
    let (set, removed): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.2.is_some());
    if !set.is_empty() {
        let places = vec!["(?,?,?,?)"; set.len()].join(",");
        let sql = format!(
            "INSERT OR REPLACE INTO projection_rows (projection_id, table_name, key, value_json)
             VALUES {places}"
        );
        // The places alone vary. Kept prepared are the two sizes that come again and again.
        let is_usual = set.len() == STATEMENT_CHANGES || set.len() == 1;
        let mut statement = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(is_usual);
        for (table, key, value) in set {
            statement = statement.bind(id).bind(table).bind(key).bind(value);
        }
        statement.execute(&mut *connection).await.map_err(from_sqlx)?;
    }
    for (table, key, _) in removed {
        sqlx::query(
            "DELETE FROM projection_rows WHERE projection_id = ? AND table_name = ? AND key = ?",
        )
        .bind(id)
        .bind(table)
        .bind(key)
        .execute(&mut *connection)
        .await
        .map_err(from_sqlx)?;
    }
    Ok(())
}

async fn delete_rows(connection: &mut SqliteConnection, id: i64) -> Result<()> {
    sqlx::query("DELETE FROM projection_rows WHERE projection_id = ?")
        .bind(id)
        .execute(connection)
        .await
        .map(drop)
        .map_err(from_sqlx)
}

async fn forget(connection: &mut SqliteConnection, name: &str) -> Result<bool> {
    let found = sqlx::query("DELETE FROM projections WHERE name = ? RETURNING id")
        .bind(name)
        .fetch_all(&mut *connection)
        .await
        .map_err(from_sqlx)?;
    for row in &found {
        delete_rows(connection, row.try_get(0).map_err(from_sqlx)?).await?;
    }
    Ok(!found.is_empty())
}
