//! The keys of deposit addresses: Postgres says which account an address is of, and at which index.

use crate::engine::work::Keys;
use crate::keys::{Seeds, SeedsError, Signer};
use alloy::primitives::Address;
use deadpool_postgres::{GenericClient, Pool};
use futures::future::{BoxFuture, FutureExt as _};
use runtime::Failure;
use std::sync::Arc;
use wallet::AccountXpub;

/// Signs for the deposit addresses of the accounts whose mnemonics it has.
#[derive(Debug)]
pub struct DepositKeys {
    pub seeds: Arc<Seeds>,
    /// Of its own: whoever asks holds a connection already.
    pub pool: Pool,
}

impl DepositKeys {
    /// Fingerprints of the accounts whose mnemonics it has.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn accounts(&self) -> Result<Vec<String>, Failure> {
        let db = self.pool.get().await?;
        let statement = db.prepare_cached("SELECT fingerprint, xpub FROM xpubs WHERE xpub IS NOT NULL").await?;
        let rows = db.query(&statement, &[]).await?;
        let is_held = |xpub: &str| AccountXpub::parse(xpub).is_ok_and(|xpub| self.seeds.expect(&xpub).is_ok());
        Ok(rows.iter().filter(|row| is_held(row.get(1))).map(|row| row.get(0)).collect())
    }

    async fn find(&self, sender: Address) -> Result<Option<Arc<dyn Signer>>, Failure> {
        let db = self.pool.get().await?;
        let statement = db
            .prepare_cached(
                "SELECT x.xpub, p.address_index FROM payments p JOIN xpubs x ON x.fingerprint = p.xpub
                 WHERE p.address = $1 AND p.deposit_address IS NULL AND x.xpub IS NOT NULL
                 UNION ALL
                 SELECT x.xpub, d.address_index FROM deposit_addresses d JOIN xpubs x ON x.fingerprint = d.xpub
                 WHERE d.address = $1 AND x.xpub IS NOT NULL",
            )
            .await?;
        for row in db.query(&statement, &[&sender.as_slice()]).await? {
            let xpub = AccountXpub::parse(row.get(0)).map_err(Failure::halt)?;
            let Ok(index) = u32::try_from(row.get::<_, i64>(1)) else { continue };
            match self.seeds.key(&xpub, index) {
                Ok(key) if key.address() == sender => return Ok(Some(Arc::new(key))),
                Ok(key) => tracing::error!(%sender, index, "the key at this index is that of {}", key.address()),
                Err(error) => tracing::debug!(%sender, "{error}"),
            }
        }
        Ok(None)
    }
}

impl Keys for DepositKeys {
    fn signer(&self, sender: Address) -> BoxFuture<'_, Option<Arc<dyn Signer>>> {
        async move {
            let found = self.find(sender).await;
            found.inspect_err(|failure| tracing::warn!(%sender, "its key could not be looked up: {failure}")).ok().flatten()
        }
        .boxed()
    }
}

/// Why nothing is signed with these seeds.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("no API has noted its account (CTRIP_XPUB) in Postgres yet")]
    NoAccount,
    #[error("CTRIP_MNEMONIC_FILE: {0}; nothing is signed: restart the sweeper with the right file")]
    OtherAccount(SeedsError),
}

/// Looks whether one of the seeds is that of cTrip's own account, from which addresses are given out to merchants without an
/// account of their own.
///
/// # Errors
/// When the database fails.
pub async fn check(db: &impl GenericClient, seeds: &Seeds) -> Result<Result<(), Unfit>, Failure> {
    let sql = "SELECT x.xpub FROM installation i JOIN xpubs x ON x.fingerprint = i.own_account WHERE x.xpub IS NOT NULL";
    let Some(row) = db.query_opt(sql, &[]).await? else { return Ok(Err(Unfit::NoAccount)) };
    let xpub = AccountXpub::parse(row.get(0)).map_err(Failure::halt)?;
    Ok(seeds.expect(&xpub).map_err(Unfit::OtherAccount))
}
