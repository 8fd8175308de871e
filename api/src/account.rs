//! The account that deposit addresses are derived from: its row in `xpubs`, its sequence of indices, its addresses.

use anyhow::Context as _;
use deadpool_postgres::{GenericClient, Pool};
use runtime::{Failure, db};
use std::sync::Arc;
use topics::Address;
use wallet::AccountXpub;

/// Cheap to clone.
#[derive(Clone)]
pub struct Account {
    xpub: Arc<AccountXpub>,
    fingerprint: String,
    sequence: String,
}

impl Account {
    /// Makes the account known to the database. Its sequence is made once and never reset.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn register(xpub: AccountXpub, pool: &Pool) -> anyhow::Result<Self> {
        let fingerprint = xpub.fingerprint();
        // Hex, so it is safe to put into a statement, where a name can't be a parameter.
        let sequence = format!("address_index_{fingerprint}");
        let mut client = pool.get().await.context("connecting to DATABASE_URL")?;
        let register = async {
            let transaction = client.transaction().await?;
            // CREATE SEQUENCE IF NOT EXISTS alone fails when two processes do it at once.
            transaction.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[&sequence]).await?;
            transaction
                .batch_execute(&format!("CREATE SEQUENCE IF NOT EXISTS {sequence} MINVALUE 0 START 0 MAXVALUE 2147483647"))
                .await?;
            transaction
                .execute(
                    "INSERT INTO xpubs (fingerprint, xpub, index_sequence) VALUES ($1, $2, $3) ON CONFLICT (fingerprint) DO NOTHING",
                    &[&fingerprint, &xpub.as_str(), &sequence],
                )
                .await?;
            transaction.commit().await
        };
        register.await.context("registering the xpub in the database (`ctrip migrate` makes its tables)")?;
        Ok(Self { xpub: Arc::new(xpub), fingerprint, sequence })
    }

    /// What names the account in a payment's row.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// That many indices that nobody had before, and their addresses. In a transaction, so that its commit makes the taking
    /// durable as well; a rollback does not give them back.
    ///
    /// # Errors
    /// When the database fails, or the account has given out 2^31 addresses.
    pub async fn take(&self, db: &impl GenericClient, count: usize) -> Result<Vec<(u32, Address)>, Failure> {
        let statement = db
            .prepare_cached("SELECT nextval($1::text::regclass) FROM generate_series(1, $2::bigint)")
            .await
            .map_err(db::failure)?;
        let count = i64::try_from(count).map_err(Failure::halt)?;
        let rows = db.query(&statement, &[&self.sequence, &count]).await.map_err(db::failure)?;
        let indices: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        let xpub = Arc::clone(&self.xpub);
        // A point multiplication each, some 30 µs: a full batch would hold up the async threads.
        let derived = tokio::task::spawn_blocking(move || {
            let derive = |index: i64| {
                let index = u32::try_from(index).map_err(Failure::halt)?;
                Ok((index, xpub.address(index).map_err(Failure::halt)?))
            };
            indices.into_iter().map(derive).collect()
        });
        derived.await.map_err(Failure::halt)?
    }
}
