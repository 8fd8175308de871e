//! A token that chains.yaml lists only after it was received: the next replay credits it, and any further one changes nothing.

use crate::books::{Books, CHAINS, X, X_LISTED, chains, failed, payments, static_addresses};
use anyhow::{Context as _, Result, ensure};
use e2e::Stack;
use payments::{Policy, Status, deposit};
use topics::{Address, Amount, B256, BlockRef, Kind, Matches, Source, Transfer, TransferId};

const NOTHING_LISTED: &str = "
- name: one
  chain_id: 1
  rpc_url: http://127.0.0.1:1
  confirmations: 1
- name: two
  chain_id: 2
  rpc_url: http://127.0.0.1:1
";
fn block(sequence: u64, kind: Kind, transfers: Vec<Transfer>) -> Matches {
    let hash = B256::left_padding_from(&sequence.to_be_bytes());
    Matches {
        chain: CHAINS[0],
        sequence: if kind == Kind::Replayed { 0 } else { sequence },
        kind,
        block: BlockRef { number: 50 + sequence, hash },
        parent: B256::left_padding_from(&(sequence - 1).to_be_bytes()),
        parent_number: None,
        timestamp: 1_000,
        safe: None,
        finalized: None,
        witnessed: Some(50 + sequence),
        transfers,
        part: 0,
        parts: 0,
    }
}

fn transfer(sequence: u64, index: u32, to: Address) -> Transfer {
    let block = B256::left_padding_from(&sequence.to_be_bytes());
    Transfer {
        id: TransferId { chain: CHAINS[0], block, transaction: B256::repeat_byte(9), source: Source::Log, index },
        token: Some(X),
        from: Address::ZERO,
        to,
        amount: Amount::from(70),
        transaction_index: 0,
    }
}

/// To a static address it is a deposit, to a payment in the coin something unexpected: each is told once, under one id.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_listed_later_is_credited_once_however_often_its_blocks_are_replayed() -> Result<()> {
    let (before, after) = (chains(NOTHING_LISTED).await?, chains(X_LISTED).await?);
    let coin = payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_none()).context("a payment")?;
    let customer = static_addresses().remove(0);
    let paid = vec![transfer(1, 0, customer.address), transfer(1, 1, coin.address)];
    // The block is followed and then replayed, or replayed before the chain gets there.
    for first in [Kind::Added, Kind::Replayed] {
        let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
        books.apply(&before, &[block(1, first, paid.clone())]).await.map_err(failed)?;
        ensure!(books.events().await?.len() == payments().len(), "an unlisted token was told");
        let live = block(1, Kind::Added, paid.clone());
        let replay = block(1, Kind::Replayed, paid.clone());
        let mut records = vec![replay.clone()];
        if first == Kind::Replayed {
            records.push(live);
        }
        records.extend([replay.clone(), block(2, Kind::Added, Vec::new()), replay]);
        for record in records {
            books.apply(&after, &[record]).await.map_err(failed)?;
        }
        let known = books.all().await?;
        let deposit = known.get(&deposit::deposit_id(&paid[..1], 1_000)).context("the deposit")?;
        ensure!(deposit.policy == Policy::Confirmations(1), "{deposit:?}");
        ensure!((deposit.status(), deposit.received()) == (Status::Confirmed, paid[0].amount), "{deposit:?}");
        ensure!(deposit.transfers.len() == 1 && deposit.transfers[0].confirmed, "{deposit:?}");
        let unexpected = &known[&coin.id];
        ensure!(unexpected.transfers.len() == 1 && unexpected.transfers[0].listed, "{unexpected:?}");
        let told = books.events().await?;
        let told: Vec<&str> =
            told.iter().map(|event| event.r#type.as_str()).filter(|kind| *kind != "payment.created").collect();
        ensure!(told == ["deposit.detected", "payment.unexpected_transfer", "deposit.confirmed"], "{first:?}: {told:?}");
        let client = books.pool.get().await?;
        let ownerless = "SELECT count(*) FROM transfers WHERE payment_id IS NULL OR NOT listed";
        ensure!(client.query_one(ownerless, &[]).await?.get::<_, i64>(0) == 0, "a row without its payment");
    }
    Ok(())
}
