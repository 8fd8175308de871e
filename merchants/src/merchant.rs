//! A merchant's settings: the account and the terms of its payments, unless a request sets other terms.

use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::time::SystemTime;
use topics::{Amount, U256};
use uuid::Uuid;

/// Hundredths of a percent in a whole.
pub(crate) const MAX_BPS: u32 = 10_000;

/// A merchant's settings. They may be some seconds old, since [`KeyCache`](crate::KeyCache) holds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merchant {
    pub id: Uuid,
    /// Fingerprint of the account that its addresses are derived from; `None` is cTrip's own.
    pub xpub: Option<String>,
    /// The account that an address was of before a restore took `xpub` back, until an operator has decided.
    pub restored_account: Option<String>,
    pub terms: DefaultTerms,
}

/// The terms of a payment as shares of its amount, which is not known yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DefaultTerms {
    /// The part of the amount that may be missing when a payment counts as paid.
    pub underpaid: BasisPoints,
    /// The part of the amount that may come on top without an exception.
    pub overpaid: BasisPoints,
    /// Transfers after a payment's expiry count.
    pub accept_late: bool,
}

/// A share in hundredths of a percent, 0 to 10,000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BasisPoints(u32);

/// Writes merchants that a restored database lost, by their ids. Their names and settings are an operator's to give again.
///
/// # Errors
/// When the database fails.
pub async fn restore_merchants(db: &impl GenericClient, ids: &[Uuid]) -> Result<(), Failure> {
    let statement = db
        .prepare_cached(
            "INSERT INTO merchants (id, name) SELECT DISTINCT id, 'restored ' || id FROM unnest($1::uuid[]) AS t (id)
             ON CONFLICT DO NOTHING RETURNING name",
        )
        .await?;
    for row in db.query(&statement, &[&ids]).await? {
        let name: &str = row.get(0);
        tracing::error!(
            "a merchant is known from payment.intents alone, and is now called {name:?}: give its name, settings and keys again with \
             `ctrip merchants update` and `ctrip keys create`"
        );
    }
    Ok(())
}

/// Notes the accounts of addresses that a restored database had lost, given as merchant, account, and id of the payment or static address,
/// where the merchants' settings name others: those are as old as the backup, and their money would go to another wallet. The newest of
/// such addresses counts, whatever is newer: a replica that has not seen the change yet goes on with the account of before. Those that
/// were given out before an operator said which account is right count no more.
///
/// # Errors
/// When the database fails.
pub async fn note_restored_accounts(db: &impl GenericClient, restored: &[(Uuid, &str, Uuid)]) -> Result<(), Failure> {
    let statement = db
        .prepare_cached(
            "WITH newest AS (
                 SELECT DISTINCT ON (merchant) merchant, account, issued
                 FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::timestamptz[]) AS t (merchant, account, issued, issued_at)
                 JOIN merchants m ON m.id = merchant
                 WHERE account IS DISTINCT FROM coalesce(m.xpub, (SELECT own_account FROM installation))
                     AND coalesce(issued_at > m.account_said_at, true)
                 ORDER BY merchant, issued DESC
             ), noted AS (
                 INSERT INTO restored_accounts AS r (merchant_id, account, issued) SELECT merchant, account, issued FROM newest
                 ON CONFLICT (merchant_id) DO UPDATE SET account = EXCLUDED.account, issued = EXCLUDED.issued
                     WHERE EXCLUDED.issued > r.issued
                 RETURNING merchant_id, account
             )
             SELECT m.name, n.account FROM noted n JOIN merchants m ON m.id = n.merchant_id",
        )
        .await?;
    let merchants: Vec<Uuid> = restored.iter().map(|(merchant, ..)| *merchant).collect();
    let accounts: Vec<&str> = restored.iter().map(|(_, account, _)| *account).collect();
    let issued: Vec<Uuid> = restored.iter().map(|(.., issued)| *issued).collect();
    let issued_at: Vec<Option<SystemTime>> = issued.iter().map(|id| id.get_timestamp().map(SystemTime::from)).collect();
    for row in db.query(&statement, &[&merchants, &accounts, &issued, &issued_at]).await? {
        let (name, account): (&str, &str) = (row.get(0), row.get(1));
        tracing::error!(
            "merchant {name:?} gets no addresses: a restore has taken back one of account {account}, and the database has another for it. \
             Say which is right: `ctrip merchants update NAME --own-xpub XPUB`, or `--no-own-xpub` for cTrip's own account"
        );
    }
    Ok(())
}

/// How many merchants get no addresses until an operator has said which account is theirs.
///
/// # Errors
/// When the database fails.
pub async fn count_restored_accounts(db: &impl GenericClient) -> Result<i64, Failure> {
    let statement = db.prepare_cached("SELECT count(*) FROM restored_accounts").await?;
    Ok(db.query_one(&statement, &[]).await?.get(0))
}

/// The largest tolerance of underpayment for an amount: all but one base unit, since something has to be paid.
pub fn max_underpaid_tolerance(amount: Amount) -> Amount {
    Amount::new(amount.units().saturating_sub(U256::ONE))
}

impl DefaultTerms {
    /// The tolerance of underpayment for this amount, in base units: always less than the amount.
    pub fn underpaid_of(&self, amount: Amount) -> Amount {
        self.underpaid.of(amount).min(max_underpaid_tolerance(amount))
    }
}

impl BasisPoints {
    /// From a column whose constraint has the same bounds.
    ///
    /// # Errors
    /// When it is out of bounds.
    pub fn new(bps: i32) -> Result<Self, Failure> {
        let bps = u32::try_from(bps).ok().filter(|bps| *bps <= MAX_BPS);
        bps.map(Self).ok_or_else(|| Failure::Halt(anyhow::anyhow!("a tolerance is not within 0 to {MAX_BPS} bps")))
    }

    /// This share of an amount, rounded down to base units.
    pub fn of(self, amount: Amount) -> Amount {
        let (share, whole) = (U256::from(self.0), U256::from(MAX_BPS));
        let units = amount.units();
        // Quotient and rest apart, since the product of a large amount would not fit into 256 bits.
        let (quotient, rest) = (units / whole, units % whole);
        Amount::new(quotient * share + rest * share / whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_down_and_never_overflows() {
        let of = |bps, units: u64| BasisPoints::new(bps).unwrap().of(Amount::from(units));
        assert_eq!(of(50, 1_000), Amount::from(5));
        assert_eq!(of(50, 199), Amount::ZERO);
        assert_eq!(of(1, 19_999), Amount::from(1));
        assert_eq!(of(0, u64::MAX), Amount::ZERO);
        assert_eq!(of(10_000, 7), Amount::from(7));
        assert_eq!(BasisPoints::new(10_000).unwrap().of(Amount::new(U256::MAX)), Amount::new(U256::MAX));
        assert!(BasisPoints::new(-1).is_err() && BasisPoints::new(10_001).is_err());
    }
}
