//! The accounts that deposit addresses are derived from, rows of `xpubs`: cTrip's own, and those of merchants who have their own.
//!
//! Each account has a Postgres sequence of address indices. A sequence never goes back, so no address is given out twice; a rollback
//! leaves a gap. An xpub whose key another account has, under whatever text, is refused here.

use crate::ahead::{Ahead, LOOK_INTERVAL};
use anyhow::{Context as _, ensure};
use deadpool_postgres::{Client, GenericClient, Pool};
use runtime::Failure;
use runtime::db::lock;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use tokio_postgres::Row;
use tokio_util::sync::CancellationToken;
use topics::Address;
use wallet::AccountXpub;

/// An account xpub with its sequence. Cheap to clone.
#[derive(Clone)]
pub struct Account(Arc<AccountParts>);

struct AccountParts {
    xpub: AccountXpub,
    fingerprint: String,
    sequence: String,
    is_exhausted: AtomicBool,
    is_replaced: AtomicBool,
    ahead: Ahead,
}

impl AccountParts {
    /// The address of an index that was taken; `None` if it has none.
    fn address(&self, index: u32) -> Option<Address> {
        self.ahead.take(index).or_else(|| self.xpub.address(index).ok())
    }
}

/// Accounts whose addresses are derived ahead: those that have given one out last.
const MAX_ACCOUNTS_AHEAD: usize = 32;

/// The indices of an account that a statement takes.
const MAX_TAKEN: i64 = 10_000_000;

impl Account {
    fn new(xpub: AccountXpub, sequence: String) -> Self {
        let (fingerprint, is_exhausted, is_replaced) = (xpub.fingerprint(), AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(AccountParts { xpub, fingerprint, sequence, is_exhausted, is_replaced, ahead: Ahead::default() }))
    }

    /// Whether it was found to have given out all its addresses. Its merchant needs another xpub.
    pub fn is_exhausted(&self) -> bool {
        self.0.is_exhausted.load(Ordering::Relaxed)
    }

    /// Whether it was found to be cTrip's own no more, by the word of an operator at another process: no address of it is given
    /// out.
    pub fn is_replaced(&self) -> bool {
        self.0.is_replaced.load(Ordering::Relaxed)
    }

    /// Notes whether it is replaced, for all who have it.
    pub fn note_replaced(&self, is_replaced: bool) {
        self.0.is_replaced.store(is_replaced, Ordering::Relaxed);
    }

    /// Writes the account to the database, unless it is there. Its sequence is created once and never reset.
    ///
    /// # Errors
    /// When another account has the same addresses: two xpub texts can hold the same key, such as that of an export under another
    /// parent, and each would give out the other's addresses again. When the database fails.
    pub async fn register(xpub: AccountXpub, pool: &Pool) -> anyhow::Result<Self> {
        let mut client = pool.get().await.context("connecting to DATABASE_URL")?;
        let sequence = register(&xpub, &mut client).await?;
        Ok(Self::new(xpub, sequence))
    }

    /// Lets addresses be derived ahead before the first is taken.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn expect_next(&self, pool: &Pool) -> anyhow::Result<()> {
        let client = pool.get().await.context("connecting to DATABASE_URL")?;
        let next = next_index(&client, &self.0.sequence).await.context("reading the position of the xpub's addresses")?;
        if let Ok(next) = u32::try_from(next) {
            self.0.ahead.expect(next);
        }
        Ok(())
    }

    /// [`register`](Self::register) in a database that took the place of the one before, and may lack it.
    ///
    /// # Errors
    /// `Halt` when another account has the same addresses, or what is registered of another can't be read; `Retry` when the database
    /// fails.
    pub async fn register_again(&self, client: &mut Client) -> Result<(), Failure> {
        register(&self.0.xpub, client).await.map(drop)
    }

    /// Names the account in the database, such as in a payment's row.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }
}

/// Whatever Postgres says, it says nothing of the account: a retry may help.
fn unregistered(error: tokio_postgres::Error) -> Failure {
    let (Failure::Retry(cause) | Failure::Reopen(cause) | Failure::Halt(cause)) = error.into();
    Failure::Retry(cause.context("registering the xpub in the database"))
}

/// Returns the name of the account's sequence.
async fn register(xpub: &AccountXpub, client: &mut Client) -> Result<String, Failure> {
    let fingerprint = xpub.fingerprint();
    let register = async {
        let transaction = client.transaction().await?;
        // Twins are found among the rows. And CREATE SEQUENCE IF NOT EXISTS fails when two processes do it at once.
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&lock::ACCOUNTS]).await?;
        let rows = transaction.query(KNOWN_ACCOUNTS, &[]).await?;
        let sequence = create_sequence(&transaction, &fingerprint).await?;
        transaction
            .execute(
                // An account that came back from an intent has no xpub yet.
                "INSERT INTO xpubs (fingerprint, xpub, index_sequence) VALUES ($1, $2, $3)
                 ON CONFLICT (fingerprint) DO UPDATE SET xpub = EXCLUDED.xpub WHERE xpubs.xpub IS NULL",
                &[&fingerprint, &xpub.as_str(), &sequence],
            )
            .await?;
        Ok::<_, tokio_postgres::Error>((transaction, sequence, rows))
    };
    let (transaction, sequence, rows) = register.await.map_err(unregistered)?;
    // A transaction that is dropped is rolled back.
    refuse_twin(xpub, rows.iter().map(KnownAccount::of)).map_err(Failure::Halt)?;
    transaction.commit().await.map_err(unregistered)?;
    Ok(sequence)
}

/// Creates the sequence of an account, unless it is there, and returns its name.
async fn create_sequence(db: &impl GenericClient, fingerprint: &str) -> Result<String, tokio_postgres::Error> {
    // A function of the database's owner: a role may create nothing.
    Ok(db.query_one("SELECT make_address_sequence($1)", &[&fingerprint]).await?.get(0))
}

/// What a sequence would give next.
async fn next_index(db: &impl GenericClient, sequence: &str) -> Result<i64, tokio_postgres::Error> {
    let row = db.query_one(&format!("SELECT last_value, is_called FROM {sequence}"), &[]).await?;
    Ok(row.get::<_, i64>(0) + i64::from(row.get::<_, bool>(1)))
}

/// All accounts, and an address of those whose xpub was lost.
const KNOWN_ACCOUNTS: &str =
    "SELECT x.fingerprint, x.xpub, issued.address_index, issued.address FROM xpubs x LEFT JOIN LATERAL (
         (SELECT address_index, address FROM payments WHERE xpub = x.fingerprint AND deposit_address IS NULL LIMIT 1)
         UNION ALL (SELECT address_index, address FROM deposit_addresses WHERE xpub = x.fingerprint LIMIT 1) LIMIT 1
     ) issued ON x.xpub IS NULL";

struct KnownAccount<'a> {
    fingerprint: &'a str,
    text: Option<&'a str>,
    issued: Option<(i64, &'a [u8])>,
}

impl<'a> KnownAccount<'a> {
    fn of(row: &'a Row) -> Self {
        let issued = row.get::<_, Option<i64>>(2).zip(row.get(3));
        Self { fingerprint: row.get(0), text: row.get(1), issued }
    }

    fn has_addresses_of(&self, xpub: &AccountXpub) -> anyhow::Result<bool> {
        Ok(match (self.text, self.issued) {
            (Some(text), _) => AccountXpub::parse(text)?.holds_key_of(xpub),
            (None, Some((index, address))) => xpub.address(u32::try_from(index)?)?.as_slice() == address,
            (None, None) => false,
        })
    }
}

/// Refuses an xpub whose addresses are those of another account.
fn refuse_twin<'a>(xpub: &AccountXpub, known: impl Iterator<Item = KnownAccount<'a>>) -> anyhow::Result<()> {
    for account in known {
        let twin = account.fingerprint != xpub.fingerprint() && account.has_addresses_of(xpub)?;
        ensure!(
            !twin,
            "this xpub holds the key of the account {} under another text; give the xpub as it was registered first",
            account.fingerprint
        );
    }
    Ok(())
}

/// Moves the sequences of accounts past indices that were given out, in a database that lost them. An account that is not there is
/// written without its xpub, which an operator has to give again. `highest` has the largest index of each by its fingerprint.
///
/// A sequence is moved by taking numbers from it, so that it never goes back, whoever else takes some meanwhile.
///
/// # Errors
/// When a fingerprint is none, or the database fails.
pub async fn move_sequences(db: &impl GenericClient, highest: &BTreeMap<String, u32>) -> Result<(), Failure> {
    for (fingerprint, index) in highest {
        if fingerprint.is_empty() || !fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Failure::Halt(anyhow::anyhow!("{fingerprint:?} is no account's fingerprint")));
        }
        db.execute("SELECT pg_advisory_xact_lock($1)", &[&lock::ACCOUNTS]).await?;
        let known = db.query_opt("SELECT index_sequence FROM xpubs WHERE fingerprint = $1", &[fingerprint]).await?;
        let sequence = match known {
            Some(row) => row.get(0),
            None => {
                tracing::error!(
                    "account {fingerprint} is known from payment.intents alone: give its xpub again, as CTRIP_XPUB or with \
                     `ctrip merchants update NAME --own-xpub XPUB`"
                );
                let sequence = create_sequence(db, fingerprint).await?;
                db.execute("INSERT INTO xpubs (fingerprint, index_sequence) VALUES ($1, $2)", &[fingerprint, &sequence])
                    .await?;
                sequence
            }
        };
        let next = next_index(db, &sequence).await?;
        let take = format!("SELECT max(nextval('{sequence}')) FROM generate_series(1, $1::bigint)");
        let mut missing = i64::from(*index) + 1 - next;
        // All 2^31 at once would take longer than a statement may.
        while missing > 0 {
            let taken: i64 = db.query_one(&take, &[&missing.min(MAX_TAKEN)]).await?.get(0);
            missing = i64::from(*index) - taken;
        }
    }
    Ok(())
}

/// cTrip's own account, and a cache of the others. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    own: Account,
    known: Arc<RwLock<HashMap<String, Account>>>,
}

impl Accounts {
    pub fn new(own: Account) -> Self {
        Self { own, known: Arc::default() }
    }

    /// The account of this fingerprint; without one cTrip's own. A fingerprint's account never changes.
    ///
    /// # Errors
    /// Returns the fingerprint if it has to be [`read`](Self::read) first.
    pub fn known<'a>(&self, fingerprint: Option<&'a str>) -> Result<Account, &'a str> {
        match fingerprint.filter(|fingerprint| *fingerprint != self.own.fingerprint()) {
            None => Ok(self.own.clone()),
            Some(other) => self.known.read().unwrap_or_else(PoisonError::into_inner).get(other).cloned().ok_or(other),
        }
    }

    /// Those that addresses are derived ahead for, by when one was taken last. The others forget theirs.
    fn in_use(&self) -> Vec<Account> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut accounts: Vec<Account> = known.values().chain([&self.own]).cloned().collect();
        drop(known);
        accounts.sort_by_cached_key(|account| Reverse(account.0.ahead.taken_at()));
        for account in accounts.drain(accounts.len().min(MAX_ACCOUNTS_AHEAD)..) {
            account.0.ahead.forget();
        }
        accounts
    }

    /// Whether nothing is to be held up: also none that has been in use only since [`in_use`](Self::in_use) was asked.
    fn are_idle(&self) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().chain([&self.own]).all(|account| account.0.ahead.is_idle())
    }

    /// Reads the account of this fingerprint.
    ///
    /// # Errors
    /// When the database fails, or has no such account.
    pub async fn read(&self, db: &impl GenericClient, fingerprint: &str) -> Result<Account, Failure> {
        let row = db.query_one("SELECT xpub, index_sequence FROM xpubs WHERE fingerprint = $1", &[&fingerprint]).await?;
        let xpub: Option<&str> = row.get(0);
        let xpub = xpub.ok_or_else(|| {
            Failure::Retry(anyhow::anyhow!(
                "the xpub of account {fingerprint} was lost with the database; `ctrip merchants update NAME --own-xpub XPUB` gives it again"
            ))
        })?;
        let account = Account::new(AccountXpub::parse(xpub).map_err(Failure::halt)?, row.get(1));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        Ok(known.entry(fingerprint.to_owned()).or_insert(account).clone())
    }
}

/// Derives addresses ahead while none are taken, until `stop`.
pub async fn derive_ahead(accounts: Accounts, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await.is_some() {
        for account in accounts.in_use() {
            let mut has_more = true;
            while has_more && !stop.is_cancelled() && accounts.are_idle() {
                let parts = Arc::clone(&account.0);
                let derived = tokio::task::spawn_blocking(move || parts.ahead.derive_some(&parts.xpub));
                has_more = derived.await.unwrap_or(false);
            }
        }
    }
}

/// Addresses with their indices, in order, by the fingerprint of their account.
pub type TakenAddresses = HashMap<String, VecDeque<(u32, Address)>>;

/// Takes that many new indices from each account's sequence and derives their addresses. An account may be `wanted` once. It has to
/// run in a transaction, whose commit makes the new position of the sequences durable; a rollback does not give indices back.
///
/// # Errors
/// When the database fails, or accounts have given out 2^31 addresses: [`Account::is_exhausted`] tells which.
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
    // An address that is not derived yet takes a point multiplication: a full batch of them would block the async threads.
    let derived = tokio::task::spawn_blocking(move || {
        let (mut taken, mut exhausted) = (TakenAddresses::new(), None);
        for (place, index) in indices {
            let place = usize::try_from(place - 1).map_err(Failure::halt)?;
            let (Account(parts), _) =
                wanted.get(place).ok_or_else(|| Failure::Halt(anyhow::anyhow!("an index of no account")))?;
            let Some((index, address)) = u32::try_from(index).ok().and_then(|index| Some((index, parts.address(index)?)))
            else {
                parts.is_exhausted.store(true, Ordering::Relaxed);
                exhausted = Some(anyhow::anyhow!(
                    "account {} has given out all its addresses: `ctrip merchants update NAME --own-xpub XPUB` gives its merchant another",
                    parts.fingerprint
                ));
                continue;
            };
            match taken.get_mut(&parts.fingerprint) {
                Some(addresses) => addresses.push_back((index, address)),
                None => drop(taken.insert(parts.fingerprint.clone(), VecDeque::from([(index, address)]))),
            }
        }
        exhausted.map_or(Ok(taken), |exhausted| Err(Failure::Halt(exhausted)))
    });
    derived.await.map_err(Failure::halt)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ahead::tests::XPUBS;
    use std::time::Duration;

    #[tokio::test]
    async fn nothing_is_derived_ahead_while_addresses_of_an_account_are_taken_that_was_not_in_use_before() {
        let [own, other] = XPUBS.map(|xpub| Account::new(AccountXpub::parse(xpub).unwrap(), String::new()));
        // Many seconds' worth.
        own.0.ahead.expect(1_000_000);
        let (accounts, stop) = (Accounts::new(own.clone()), CancellationToken::new());
        let deriving = tokio::spawn(derive_ahead(accounts.clone(), stop.clone()));
        let pause = || tokio::time::sleep(Duration::from_millis(1));
        while own.0.ahead.len() == 0 {
            pause().await;
        }
        accounts.known.write().unwrap().insert(other.fingerprint().to_owned(), other.clone());
        let mut derived = Vec::new();
        for _ in 0..200 {
            other.0.ahead.take(0);
            derived.push(own.0.ahead.len());
            pause().await;
        }
        // Those that were being derived, at most.
        assert!(derived[199] <= derived[0] + 256, "{} and then {}", derived[0], derived[199]);
        stop.cancel();
        deriving.await.unwrap();
    }
}
