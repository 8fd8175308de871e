//! `ctrip merchants`: creates, lists and updates merchants. Settings are checked before the first write.

use super::database::{check_name, connect, explain, merchant_not_found, pool, refuse_second_merchant};
use crate::accounts::Account;
use crate::merchant::MAX_BPS;
use anyhow::{Context as _, Result, bail, ensure};
use base::timestamp;
use base::{json, text};
use deadpool_postgres::{GenericClient, Transaction};
use serde_json::value::RawValue;
use tokio_postgres::error::SqlState;
use uuid::Uuid;
use wallet::AccountXpub;

const MAX_METADATA_BYTES: usize = 16 * 1024;

/// Settings to change; `None` leaves one as it is.
#[derive(Debug, Clone, Default)]
pub struct MerchantChanges {
    pub name: Option<String>,
    /// The account of new addresses; the inner `None` is cTrip's own.
    pub xpub: Option<Option<AccountXpub>>,
    /// Hundredths of a percent, 0 to 10,000.
    pub underpaid_tolerance_bps: Option<u32>,
    /// Hundredths of a percent, 0 to 10,000.
    pub overpaid_tolerance_bps: Option<u32>,
    pub accept_late: Option<bool>,
    /// A JSON object.
    pub metadata: Option<String>,
}

/// What was done to a merchant, its keys and its webhooks, as `ctrip merchants history` shows it.
#[derive(Debug, Clone)]
pub struct ChangeRow {
    pub at: String,
    /// `key`, `merchant` or `webhook`.
    pub kind: String,
    /// Its id.
    pub item: String,
    pub change: String,
    /// The id of the API key that asked; `None` for a command, or a role of its own accord.
    pub asked_by: Option<String>,
    /// As whom the change was made in Postgres.
    pub login: String,
}

/// The changes of a merchant, the newest last.
///
/// # Errors
/// When there is no such merchant, or the database fails.
pub async fn history(database_url: &str, name: &str) -> Result<Vec<ChangeRow>> {
    let client = connect(database_url).await?;
    let merchant = id_of(&client, name).await?;
    let sql = "SELECT at, kind, item, change, asked_by, login FROM changes WHERE merchant_id = $1 ORDER BY id";
    let rows = client.query(sql, &[&merchant]).await.map_err(explain)?;
    let row = |row: &tokio_postgres::Row| ChangeRow {
        at: timestamp::truncated(row.get(0)),
        kind: row.get(1),
        item: row.get(2),
        change: row.get(3),
        asked_by: row.get(4),
        login: row.get(5),
    };
    Ok(rows.iter().map(row).collect())
}

/// A merchant as `ctrip merchants list` shows it.
#[derive(Debug, Clone)]
pub struct MerchantRow {
    pub id: Uuid,
    pub name: String,
    /// Fingerprint of its own account, if it has one.
    pub xpub: Option<String>,
    /// The account that an address was of before a restore took `xpub` back.
    pub restored_account: Option<String>,
    /// Hundredths of a percent.
    pub underpaid_tolerance_bps: i32,
    /// Hundredths of a percent.
    pub overpaid_tolerance_bps: i32,
    pub accept_late: bool,
    /// A JSON object, as text.
    pub metadata: Option<String>,
    /// The number of its keys that work.
    pub keys: i64,
    pub created_at: String,
}

/// Creates a merchant; returns its id.
///
/// # Errors
/// When the name is taken, a restore may have left the merchant without it (unless `is_new`), a setting is out of bounds, or the database
/// fails.
pub async fn create_merchant(database_url: &str, name: &str, is_new: bool, changes: MerchantChanges) -> Result<Uuid> {
    check_name(name)?;
    let id = Uuid::now_v7();
    write_merchant(database_url, changes, async |transaction| {
        let inserted = transaction.execute("INSERT INTO merchants (id, name) VALUES ($1, $2)", &[&id, &name]).await;
        match inserted {
            Ok(_) if is_new => Ok(id),
            Ok(_) => refuse_second_merchant(transaction, name).await.map(|()| id),
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => bail!("a merchant {name:?} exists already"),
            Err(error) => Err(explain(error)),
        }
    })
    .await
}

/// Changes a merchant's settings. Running instances of the API apply them once their cached grants expire; payments keep the terms
/// that they were created with.
///
/// # Errors
/// When there is no such merchant, a setting is out of bounds, or the database fails.
pub async fn update_merchant(database_url: &str, name: &str, changes: MerchantChanges) -> Result<Uuid> {
    if let Some(name) = &changes.name {
        check_name(name)?;
    }
    write_merchant(database_url, changes, async |transaction| id_of(transaction, name).await).await
}

async fn id_of(db: &impl GenericClient, name: &str) -> Result<Uuid> {
    let found = db.query_opt("SELECT id FROM merchants WHERE name = $1", &[&name]).await.map_err(explain)?;
    Ok(found.ok_or_else(|| merchant_not_found(name))?.get(0))
}

/// Checks all settings, then lets `merchant` find or insert the row, and writes them.
async fn write_merchant(
    database_url: &str,
    changes: MerchantChanges,
    merchant: impl AsyncFnOnce(&Transaction<'_>) -> Result<Uuid>,
) -> Result<Uuid> {
    let underpaid = bps("--underpaid-tolerance-bps", changes.underpaid_tolerance_bps)?;
    let overpaid = bps("--overpaid-tolerance-bps", changes.overpaid_tolerance_bps)?;
    let metadata = changes.metadata.as_deref().map(check_metadata).transpose()?;
    let fingerprint = match &changes.xpub {
        Some(Some(xpub)) => Some(Account::register(xpub.clone(), &pool(database_url)?).await?.fingerprint().to_owned()),
        Some(None) | None => None,
    };
    let mut client = connect(database_url).await?;
    // A merchant without the settings that were asked for would be paid into another account.
    let transaction = client.transaction().await?;
    let id = merchant(&transaction).await?;
    let updated = transaction
        .execute(
            // Whoever says which account is right has decided.
            "WITH decided AS (DELETE FROM restored_accounts WHERE merchant_id = $1 AND $3)
             UPDATE merchants SET name = coalesce($2, name), xpub = CASE WHEN $3 THEN $4 ELSE xpub END,
                 account_said_at = CASE WHEN $3 THEN now() ELSE account_said_at END,
                 underpaid_tolerance_bps = coalesce($5, underpaid_tolerance_bps),
                 overpaid_tolerance_bps = coalesce($6, overpaid_tolerance_bps), accept_late = coalesce($7, accept_late),
                 metadata = coalesce($8::text::json, metadata)
             WHERE id = $1",
            &[
                &id,
                &changes.name,
                &changes.xpub.is_some(),
                &fingerprint,
                &underpaid,
                &overpaid,
                &changes.accept_late,
                &metadata,
            ],
        )
        .await;
    match updated {
        Ok(_) => {
            transaction.commit().await?;
            Ok(id)
        }
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => bail!("a merchant of the new name exists already"),
        Err(error) => Err(explain(error)),
    }
}

fn bps(option: &str, value: Option<u32>) -> Result<Option<i32>> {
    let Some(value) = value else { return Ok(None) };
    ensure!(value <= MAX_BPS, "{option}: expected 0 to {MAX_BPS} hundredths of a percent, got {value}");
    Ok(Some(i32::try_from(value)?))
}

fn check_metadata(text: &str) -> Result<String> {
    let raw: &RawValue = serde_json::from_str(text).context("--metadata: expected a JSON object")?;
    ensure!(raw.get().starts_with('{'), "--metadata: expected a JSON object, got {}", text::excerpt(raw.get()));
    ensure!(raw.get().len() <= MAX_METADATA_BYTES, "--metadata: expected at most {MAX_METADATA_BYTES} bytes");
    json::check_storable(raw.get()).map_err(|message| anyhow::anyhow!("--metadata: {message}"))?;
    Ok(raw.get().to_owned())
}

/// All merchants, by name.
///
/// # Errors
/// When the database fails.
pub async fn list_merchants(database_url: &str) -> Result<Vec<MerchantRow>> {
    let client = connect(database_url).await?;
    let rows = client
        .query(
            "SELECT m.id, m.name, m.xpub, m.underpaid_tolerance_bps, m.overpaid_tolerance_bps, m.accept_late, m.metadata::text,
                 (SELECT count(*) FROM api_keys k WHERE k.merchant_id = m.id AND k.revoked_at IS NULL
                     AND (k.expires_at IS NULL OR k.expires_at > now())), m.created_at, r.account
             FROM merchants m LEFT JOIN restored_accounts r ON r.merchant_id = m.id ORDER BY m.name",
            &[],
        )
        .await
        .map_err(explain)?;
    let row = |row: &tokio_postgres::Row| MerchantRow {
        id: row.get(0),
        name: row.get(1),
        xpub: row.get(2),
        restored_account: row.get(9),
        underpaid_tolerance_bps: row.get(3),
        overpaid_tolerance_bps: row.get(4),
        accept_late: row.get(5),
        metadata: row.get(6),
        keys: row.get(7),
        created_at: timestamp::truncated(row.get(8)),
    };
    Ok(rows.iter().map(row).collect())
}
