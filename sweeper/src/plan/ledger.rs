//! What addresses have: what has arrived there, by `transfers`, and what their own transactions have spent, by `outgoing`.
//!
//! Both are read by one statement, so of one moment. Nothing of it is kept, so a reorg, a backfill and a database that went
//! back change what the next look finds.

use super::rules::Holding;
use super::settings::Settings;
use super::store::capped;
use crate::engine::rows::number;
use alloy::primitives::{Address, B256, U256};
use deadpool_postgres::GenericClient;
use futures::TryStreamExt as _;
use payments::Policy;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::HashMap;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use topics::{BlockRef, ChainId};

/// What a transaction that did not tell its gas may have used: more than one that only takes a nonce does.
const MIN_GAS: u64 = 50_000;

/// How far a chain has come, and so which credits may leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ripe {
    /// The hash of the chain's head, up to which what has arrived is known.
    pub head: B256,
    /// Amounts from which the numbers beside them count, the first one 0.
    from: Vec<String>,
    /// A credit of such an amount may leave if its block is not above this number; -1 for none.
    until: Vec<i64>,
}

impl Ripe {
    /// Up to which block any credit may leave.
    pub fn until(&self) -> i64 {
        self.until.iter().copied().max().unwrap_or(-1)
    }

    fn new(head: BlockRef, safe: Option<u64>, finalized: Option<u64>, witnessed: Option<u64>, settings: &Settings) -> Self {
        let reached = |policy: Policy| {
            let reached = policy.reached(head.number, safe, finalized, witnessed)?;
            reached.checked_sub(policy.due(0))
        };
        let until = |policy: Policy| match settings.is_final_only {
            true => reached(policy).min(reached(Policy::Finalized)),
            false => reached(policy),
        };
        Self {
            head: head.hash,
            from: settings.policies.iter().map(|(from, _)| from.to_string()).collect(),
            until: settings.policies.iter().map(|(_, policy)| until(*policy).map_or(-1, bigint)).collect(),
        }
    }
}

/// How far a chain has come; `None` while it has no block.
///
/// # Errors
/// When the database fails.
pub async fn ripe(db: &impl GenericClient, chain: ChainId, settings: &Settings) -> Result<Option<Ripe>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT number, safe_number, finalized_number, witnessed_number, hash FROM chain_heads
             WHERE chain_id = $1 AND hash IS NOT NULL",
        )
        .await?;
    let Some(row) = db.query_opt(&statement, &[&bigint(chain.0)]).await? else { return Ok(None) };
    let number = |column: usize| row.get::<_, Option<i64>>(column).map(unsigned);
    let head = BlockRef { number: number(0).unwrap_or_default(), hash: B256::from_slice(row.get(4)) };
    Ok(Some(Ripe::new(head, number(1), number(2), number(3), settings)))
}

/// A credited transfer may leave once its payment has it as confirmed, and no other earlier than the chain's policy says.
const IS_RIPE: &str = "t.block_number <= ($3::bigint[])[width_bucket(t.amount, $2::text[]::numeric[])]
    AND (NOT t.credited OR part.confirmed = part.credited)";
const PARTS: &str = "LEFT JOIN payment_parts part ON t.credited AND part.payment_id = t.payment_id
    AND part.chain_id = t.chain_id AND part.block_hash = t.block_hash";
/// Coin on this chain that is there.
const ARRIVED: &str = "t.chain_id = $1 AND t.token_address IS NULL AND t.listed AND NOT t.removed";

/// Credits of all addresses: the tables are read whole.
fn all_credits() -> String {
    format!(
        "SELECT coalesce(p.address, d.address) AS address, coalesce(p.merchant_id, d.merchant_id) AS merchant_id, t.amount,
             coalesce({IS_RIPE}, false) AS ripe
         FROM transfers t LEFT JOIN payments p ON p.id = t.payment_id
         LEFT JOIN deposit_addresses d ON d.id = t.deposit_address AND t.payment_id IS NULL {PARTS}
         WHERE {ARRIVED} AND coalesce(p.xpub, d.xpub) = ANY($4)"
    )
}

/// Credits of some addresses, along indexes: those that count for a payment, and dust.
fn credits_of_addresses() -> String {
    format!(
        "SELECT o.address, o.merchant_id, t.amount, coalesce({IS_RIPE}, false) AS ripe
         FROM (SELECT id, address, merchant_id FROM payments
                   WHERE address = ANY($7) AND deposit_address IS NULL AND xpub = ANY($4)
               UNION ALL SELECT p.id, d.address, d.merchant_id FROM deposit_addresses d
                   JOIN payments p ON p.deposit_address = d.id WHERE d.address = ANY($7) AND d.xpub = ANY($4)) o
         CROSS JOIN LATERAL (
             SELECT * FROM transfers WHERE payment_id = o.id AND listed AND NOT below_minimum AND NOT removed
             UNION ALL SELECT * FROM transfers WHERE payment_id = o.id AND listed AND below_minimum AND NOT removed) t {PARTS}
         WHERE {ARRIVED}
         UNION ALL
         SELECT d.address, d.merchant_id, t.amount, coalesce({IS_RIPE}, false) FROM deposit_addresses d
         JOIN transfers t ON t.deposit_address = d.id AND t.payment_id IS NULL AND t.below_minimum {PARTS}
         WHERE d.address = ANY($7) AND d.xpub = ANY($4) AND {ARRIVED}"
    )
}

/// What senders have spent. What is not over may cost all that it may; what never got into a block has cost nothing.
fn spent(of_addresses: bool) -> String {
    let rows = match of_addresses {
        true => {
            "id IN (SELECT outgoing FROM outgoing_nonces WHERE chain_id = $1 AND sender = ANY($7)
                 UNION SELECT id FROM outgoing WHERE chain_id = $1 AND sender = ANY($7) AND state = 'queued')"
        }
        false => "chain_id = $1",
    };
    let cap = "(SELECT a.cap FROM outgoing_attempts a WHERE a.hash = o.mined_hash)";
    let fee = format!("(coalesce(gas_used, greatest(gas_limit, {MIN_GAS})) * coalesce(gas_price, {cap}) + $6::text::numeric)");
    format!(
        "SELECT sender, bool_or(state NOT IN ('final', 'failed', 'dropped')) AS is_under_way, sum(CASE
             WHEN state = 'final' THEN value + {fee}
             WHEN state = 'failed' OR state = 'dropped' AND mined_hash IS NOT NULL THEN {fee}
             WHEN state = 'dropped' THEN 0
             ELSE value + gas_limit * coalesce(max_fee, $5::text::numeric) + $6::text::numeric END) AS spent
         FROM outgoing o WHERE {rows} GROUP BY sender"
    )
}

/// Whose holdings are asked for.
#[derive(Clone, Copy, Debug)]
pub enum Of<'a> {
    /// All that have so much, deep enough or not: the tables are read whole.
    AtLeast(U256),
    These(&'a [Address]),
}

/// The holdings of addresses.
///
/// # Errors
/// When the database fails.
pub async fn holdings(
    db: &impl GenericClient,
    chain: ChainId,
    settings: &Settings,
    ripe: &Ripe,
    of: Of<'_>,
) -> Result<Vec<Holding>, Failure> {
    let (credits, condition) = match of {
        Of::AtLeast(_) => (all_credits(), "WHERE h.seen >= coalesce(s.spent, 0) + $7::text::numeric"),
        Of::These(_) => (credits_of_addresses(), ""),
    };
    let sql = format!(
        "SELECT h.address, h.merchant_id, {arrived}, {seen}, {spent},
             coalesce(s.is_under_way, false), a.address IS NOT NULL
         FROM (SELECT address, merchant_id, coalesce(sum(amount) FILTER (WHERE ripe), 0) AS arrived, sum(amount) AS seen
               FROM ({credits}) AS credits GROUP BY address, merchant_id) h
         LEFT JOIN ({spendings}) s ON s.sender = h.address
         LEFT JOIN (SELECT DISTINCT address FROM sweeps WHERE chain_id = $1 AND set_aside) a ON a.address = h.address
         {condition}",
        arrived = capped("h.arrived"),
        seen = capped("h.seen"),
        spent = capped("coalesce(s.spent, 0)"),
        spendings = spent(matches!(of, Of::These(_)))
    );
    let statement = db.prepare_cached(&sql).await?;
    let (max_fee, l1_fee) = (settings.terms.max_fee.to_string(), settings.terms.l1_fee.to_string());
    let (least, addresses): (String, Vec<&[u8]>) = match of {
        Of::AtLeast(least) => (least.to_string(), Vec::new()),
        Of::These(some) => (String::new(), some.iter().map(|address| address.as_slice()).collect()),
    };
    let last: &(dyn ToSql + Sync) = if let Of::AtLeast(_) = of { &least } else { &addresses };
    let chain = bigint(chain.0);
    let arguments: [&(dyn ToSql + Sync); 7] = [&chain, &ripe.from, &ripe.until, &settings.accounts, &max_fee, &l1_fee, last];
    // Row by row: there may be millions.
    let rows = db.query_raw(&statement, arguments).await?;
    rows.map_err(Failure::from).and_then(|row| async move { read_holding(&row) }).try_collect().await
}

fn read_holding(row: &Row) -> Result<Holding, Failure> {
    let amount = |column: usize| number(row.get(column));
    Ok(Holding {
        address: Address::from_slice(row.get(0)),
        merchant: row.get(1),
        arrived: amount(2)?,
        seen: amount(3)?,
        spent: amount(4)?,
        is_under_way: row.get(5),
        is_set_aside: row.get(6),
    })
}

/// What waits of tokens, which nobody sweeps yet: of each listed one on how many addresses there are how many base units.
///
/// # Errors
/// When the database fails.
pub async fn tokens(
    db: &impl GenericClient,
    chain: ChainId,
    settings: &Settings,
) -> Result<HashMap<Address, (u64, U256)>, Failure> {
    let statement = db
        .prepare_cached(&format!(
            "SELECT t.token_address, count(DISTINCT coalesce(p.address, d.address)), {amount}
             FROM transfers t LEFT JOIN payments p ON p.id = t.payment_id
             LEFT JOIN deposit_addresses d ON d.id = t.deposit_address AND t.payment_id IS NULL
             WHERE t.chain_id = $1 AND t.token_address IS NOT NULL AND t.listed AND NOT t.removed
                 AND coalesce(p.xpub, d.xpub) = ANY($2) GROUP BY 1",
            amount = capped("sum(t.amount)")
        ))
        .await?;
    let read = |row: &Row| Ok((Address::from_slice(row.get(0)), (unsigned(row.get(1)), number(row.get(2))?)));
    db.query(&statement, &[&bigint(chain.0), &settings.accounts]).await?.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::rules::Terms;
    use topics::Amount;

    fn settings(policies: &[(u64, Policy)], is_final_only: bool) -> Settings {
        Settings {
            treasury: None,
            is_final_only,
            policies: policies.iter().map(|(from, policy)| (Amount::from(*from), *policy)).collect(),
            terms: Terms { gas_limit: 21_000, max_fee: 1, l1_fee: U256::ZERO, minimum: None },
            knows_gas: true,
            price: Some(1),
            max_fee: 1,
            refused: None,
            accounts: Vec::new(),
        }
    }

    #[test]
    fn each_amount_waits_for_the_depth_of_its_tier_and_nothing_leaves_where_witnesses_have_not_been() {
        let tiers =
            settings(&[(0, Policy::Confirmations(3)), (100, Policy::Confirmations(12)), (1000, Policy::Finalized)], false);
        let head = BlockRef { number: 50, hash: B256::ZERO };
        let ripe = |settings: &Settings, finalized, witnessed| Ripe::new(head, Some(40), finalized, witnessed, settings).until;
        assert_eq!(ripe(&tiers, Some(30), Some(50)), [48, 39, 30]);
        assert_eq!(ripe(&tiers, Some(30), Some(20)), [18, 9, 20]);
        assert_eq!(ripe(&tiers, None, Some(50)), [48, 39, -1]);
        assert_eq!(ripe(&tiers, Some(30), None), [-1, -1, -1]);
        let once = settings(&[(0, Policy::Confirmations(1)), (7, Policy::Confirmations(0))], false);
        assert_eq!(ripe(&once, None, Some(50)), [50, 50], "0 means 1");
        let deep = settings(&[(0, Policy::Confirmations(60))], false);
        assert_eq!(ripe(&deep, None, Some(50)), [-1], "the chain is not that long");
        let last = settings(&[(0, Policy::Confirmations(3)), (100, Policy::Confirmations(30))], true);
        assert_eq!(ripe(&last, Some(30), Some(50)), [30, 21], "final, and as deep as the policy asks");
        assert_eq!(ripe(&last, None, Some(50)), [-1, -1]);
    }
}
