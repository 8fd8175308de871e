//! The accounts that deposit addresses are derived from, rows of `xpubs`: cTrip's own, and those of merchants who have their own.
//!
//! Each account has a Postgres sequence of address indices. A sequence never goes back, so no address is given out twice; a rollback
//! leaves a gap.

use anyhow::Context as _;
use deadpool_postgres::{GenericClient, Pool};
use runtime::Failure;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use topics::Address;
use wallet::AccountXpub;

/// An account xpub with its sequence. Cheap to clone.
#[derive(Clone)]
pub struct Account(Arc<AccountParts>);

struct AccountParts {
    xpub: AccountXpub,
    fingerprint: String,
    sequence: String,
}

impl Account {
    fn new(xpub: AccountXpub, sequence: String) -> Self {
        Self(Arc::new(AccountParts { fingerprint: xpub.fingerprint(), sequence, xpub }))
    }

    /// Writes the account to the database, unless it is there. Its sequence is created once and never reset.
    ///
    /// # Errors
    /// When the database fails.
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
        register.await.context("registering the xpub in the database (`ctrip migrate` creates its tables)")?;
        Ok(Self::new(xpub, sequence))
    }

    /// Names the account in the database, such as in a payment's row.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }
}

/// cTrip's own account, and a cache of the others.
pub struct Accounts {
    own: Account,
    known: RwLock<HashMap<String, Account>>,
}

impl Accounts {
    pub fn new(own: Account) -> Self {
        Self { own, known: RwLock::default() }
    }

    /// The account of this fingerprint; without one cTrip's own. Each is read once, since a fingerprint's account never changes.
    ///
    /// # Errors
    /// When the database fails, or has no such account.
    pub async fn get(&self, pool: &Pool, fingerprint: Option<&str>) -> Result<Account, Failure> {
        let Some(fingerprint) = fingerprint.filter(|fingerprint| *fingerprint != self.own.fingerprint()) else {
            return Ok(self.own.clone());
        };
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(fingerprint).cloned();
        if let Some(account) = known {
            return Ok(account);
        }
        let db = pool.get().await?;
        let row = db.query_one("SELECT xpub, index_sequence FROM xpubs WHERE fingerprint = $1", &[&fingerprint]).await?;
        let account = Account::new(AccountXpub::parse(row.get(0)).map_err(Failure::halt)?, row.get(1));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        Ok(known.entry(fingerprint.to_owned()).or_insert(account).clone())
    }
}

/// Addresses with their indices, in order, by the fingerprint of their account.
pub type TakenAddresses = HashMap<String, VecDeque<(u32, Address)>>;

/// Takes that many new indices from each account's sequence and derives their addresses. An account may be `wanted` once. It has to
/// run in a transaction, whose commit makes the new position of the sequences durable; a rollback does not give indices back.
///
/// # Errors
/// When the database fails, or an account has given out 2^31 addresses.
pub async fn take_addresses(db: &impl GenericClient, wanted: Vec<(Account, usize)>) -> Result<TakenAddresses, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT place, nextval(sequence::regclass)
             FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS t (sequence, count, place), generate_series(1, count)",
        )
        .await?;
    let sequences: Vec<&str> = wanted.iter().map(|(account, _)| account.0.sequence.as_str()).collect();
    let counts: Vec<i64> =
        wanted.iter().map(|(_, count)| i64::try_from(*count)).collect::<Result<_, _>>().map_err(Failure::halt)?;
    let rows = db.query(&statement, &[&sequences, &counts]).await?;
    let indices: Vec<(i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    // A point multiplication per address takes some 30 µs: a full batch would block the async threads.
    let derived = tokio::task::spawn_blocking(move || {
        let mut taken = TakenAddresses::new();
        for (place, index) in indices {
            let place = usize::try_from(place - 1).map_err(Failure::halt)?;
            let (Account(parts), _) =
                wanted.get(place).ok_or_else(|| Failure::Halt(anyhow::anyhow!("an index of no account")))?;
            let index = u32::try_from(index).map_err(Failure::halt)?;
            let address = parts.xpub.address(index).map_err(Failure::halt)?;
            match taken.get_mut(&parts.fingerprint) {
                Some(addresses) => addresses.push_back((index, address)),
                None => drop(taken.insert(parts.fingerprint.clone(), VecDeque::from([(index, address)]))),
            }
        }
        Ok(taken)
    });
    derived.await.map_err(Failure::halt)?
}
