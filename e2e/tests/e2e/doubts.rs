//! A block that too few endpoints have given is in doubt: it may come again under its hash with other content. What was applied
//! of it is not confirmed by what is lost or replayed since.

use crate::books::{self, Books, CHAINS, block, block_hash};
use crate::stacks::{Scene, empty as witnessed};
use anyhow::{Context as _, Result, ensure};
use payments::{Status, store};
use topics::{Address, B256, BlockRef, Kind, Matches, Source, Transfer, TransferId};

impl Scene {
    /// What block 2 brings, which is in doubt on block 1, which is witnessed: it pays the payment.
    fn lie(&self) -> Vec<Transfer> {
        vec![pays(self.payment.address, 100)]
    }

    /// The outcome after these records in batches of this size, and the payment's status.
    async fn after(&self, applied: &[Matches], records: &[Matches], size: usize) -> Result<(Result<()>, Status)> {
        let mut books = self.books(applied).await?;
        let outcome = books.apply_by(size, &self.chains, records).await.map_err(anyhow::Error::from);
        Ok((outcome, self.now(&books).await?.status()))
    }

    /// The records are refused, for this reason, wherever a batch ends.
    async fn refuses(&self, applied: &[Matches], records: &[Matches], cause: &str) -> Result<()> {
        for size in 1..=records.len() {
            let (outcome, status) = self.after(applied, records, size).await?;
            let said = outcome.err().map(|error| error.to_string()).unwrap_or_default();
            ensure!(said.contains(cause), "{said:?}, {size} records per batch: {records:?}");
            ensure!(status == Status::Detected, "{status}, {size} records per batch: {records:?}");
        }
        Ok(())
    }

    /// The records are applied, and the payment confirmed, wherever a batch ends.
    async fn confirms(&self, applied: &[Matches], records: &[Matches]) -> Result<()> {
        for size in 1..=records.len() {
            let (outcome, status) = self.after(applied, records, size).await?;
            outcome.with_context(|| format!("{size} records per batch: {records:?}"))?;
            ensure!(status == Status::Confirmed, "{status}, {size} records per batch: {records:?}");
        }
        Ok(())
    }
}

fn pays(to: Address, amount: u64) -> Transfer {
    books::transfer(block_hash(2), 0, to, amount)
}

/// To an address of nobody.
fn orphan() -> Vec<Transfer> {
    vec![pays(Address::with_last_byte(99), 100)]
}

fn in_doubt(sequence: u64, transfers: Vec<Transfer>) -> Matches {
    Matches { sequence, witnessed: None, ..block(CHAINS[0], 2, transfers) }
}

fn replayed(transfers: Vec<Transfer>) -> Matches {
    Matches { sequence: 0, kind: Kind::Replayed, ..in_doubt(0, transfers) }
}

/// Ingest has taken the lie back, and Kafka has lost that before it was read, and kept the cursor.
#[tokio::test(flavor = "multi_thread")]
async fn a_lie_is_not_confirmed_over_a_gap_in_which_it_was_taken_back() -> Result<()> {
    let scene = Scene::start().await?;
    let lie = scene.lie();
    let applied = [witnessed(1, 1), in_doubt(2, lie.clone())];
    let tags = Matches { kind: Kind::Tags, ..witnessed(5, 2) };
    scene.refuses(&applied, &[witnessed(5, 3)], "are missing").await?;
    scene.refuses(&applied, &[tags, witnessed(6, 3)], "are missing").await?;
    // What is lost of the chain's past says nothing of what came after it.
    scene.refuses(&applied, &[applied[1].clone(), witnessed(5, 3)], "are missing").await?;
    scene.confirms(&applied, &[witnessed(3, 3)]).await?;
    scene.confirms(&applied, &[in_doubt(5, lie.clone()), witnessed(6, 3)]).await?;
    scene.confirms(&applied, &[replayed(lie), witnessed(5, 3)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_block_in_doubt_without_what_was_applied_of_it_is_refused() -> Result<()> {
    let scene = Scene::start().await?;
    let lie = scene.lie();
    let applied = [witnessed(1, 1), in_doubt(2, lie.clone())];
    let elsewhere = pays(Address::with_last_byte(3), 100);
    let later = Matches { timestamp: 999, ..replayed(lie.clone()) };
    for truth in [replayed(Vec::new()), replayed(vec![pays(lie[0].to, 70)]), replayed(vec![elsewhere.clone()]), later] {
        scene.refuses(&applied, &[truth.clone(), witnessed(3, 3)], "lacks").await?;
        let below = [applied.as_slice(), &[Matches { witnessed: None, ..witnessed(3, 3) }]].concat();
        scene.refuses(&below, &[truth, witnessed(4, 4)], "lacks").await?;
    }
    // An address was issued since.
    let mut second = elsewhere;
    second.id.index = 1;
    scene.confirms(&applied, &[replayed(vec![lie[0].clone(), second]), witnessed(3, 3)]).await?;
    // Whoever could trace it then may not be there now.
    let internal = |amount| {
        let paid = Transfer { token: None, ..pays(lie[0].to, amount) };
        Transfer { id: TransferId { source: Source::Trace, ..paid.id }, ..paid }
    };
    let traced = [witnessed(1, 1), in_doubt(2, vec![lie[0].clone(), internal(7)])];
    scene.confirms(&traced, &[replayed(lie.clone()), witnessed(3, 3)]).await?;
    scene.refuses(&traced, &[replayed(vec![lie[0].clone(), internal(8)]), witnessed(3, 3)], "lacks").await?;
    // What enough endpoints have given stays, whatever a replay says.
    scene.confirms(&applied, &[witnessed(3, 3), replayed(Vec::new())]).await?;

    // What waits for its payment is credited once that is there.
    let orphan = [witnessed(1, 1), in_doubt(2, orphan())];
    let (outcome, _) = scene.after(&orphan, &[replayed(Vec::new())], 1).await?;
    ensure!(outcome.is_err_and(|error| error.to_string().contains("lacks")), "an orphan");
    let (outcome, _) = scene.after(&orphan, &[replayed(orphan[1].transfers.clone()), witnessed(3, 3)], 1).await?;
    outcome
}

/// Kafka has lost the end of a topic. A batch may end between a replayed block and the new beginning, or the branch from below the first
/// block, that took it back. What it brings may be a payment's, or wait for one.
#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_block_that_has_left_the_chain_is_not_credited_where_it_is_read_again() -> Result<()> {
    let scene = Scene::start().await?;
    let anew = [Matches { kind: Kind::Replayed, ..witnessed(30, 1) }, witnessed(31, 4)];
    let removed = Matches { kind: Kind::Removed, parent_number: Some(2), ..witnessed(2, 3) };
    let other = BlockRef { number: 2, hash: B256::repeat_byte(9) };
    let branch = [removed, Matches { block: other, ..witnessed(3, 2) }];
    let cases = [(scene.lie(), 4), (scene.lie(), 1), (orphan(), 4), (orphan(), 1)];
    for ((brings, size), [left, next]) in cases.into_iter().flat_map(|case| [(case.clone(), &anew), (case, &branch)]) {
        let all = [witnessed(1, 3), replayed(brings), left.clone(), next.clone()];
        let stands = async |read: &[&[Matches]], goes_back| {
            let mut books = Books::open(&scene.stack, usize::MAX).await?;
            books.apply_by(size, &scene.chains, &all).await?;
            if goes_back {
                books.go_back(CHAINS[0]).await?;
            }
            let mut outcome = Ok(());
            for records in read {
                if outcome.is_ok() {
                    outcome = books.apply(&scene.chains, records).await;
                }
            }
            let orphans = books.orphans().await?;
            let now = scene.now(&books).await?;
            Ok::<_, anyhow::Error>((
                outcome.map_err(|failure| failure.to_string()),
                now.status() != Status::Pending || orphans > 0,
            ))
        };
        for (read, goes_back) in [(&[&all[..1], &all[1..2]] as &[_], false), (&[&all[1..2]], true), (&[&all[..2]], true)] {
            let (outcome, stands) = stands(read, goes_back).await?;
            ensure!(outcome.as_ref().is_err_and(|error| error.contains("has left chain")), "{outcome:?}: {read:?}");
            ensure!(!stands, "{read:?}");
        }
        for read in [&[&all[..1], &all[1..]] as &[_], &[&all[..]], &[&all[1..3], &all[3..]]] {
            ensure!(stands(read, true).await? == (Ok(()), false), "what removed it comes with it: {read:?}");
        }
        // A backfill brings it again, after what removed it.
        for (read, goes_back) in [(&[&all[1..2]] as &[_], false), (&[&all[..], &all[1..2]], true)] {
            ensure!(stands(read, goes_back).await? == (Ok(()), true), "{read:?}");
        }
    }
    Ok(())
}

/// Someone can send as many transfers to nobody as he likes, and there is a row a block.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_left_the_chain_is_forgotten_with_the_record_that_took_it_off() -> Result<()> {
    let scene = Scene::start().await?;
    let beginning = Matches { kind: Kind::Replayed, ..witnessed(30, 1) };
    let books = scene.books(&[witnessed(1, 3), replayed(orphan()), beginning, witnessed(31, 4)]).await?;
    let client = books.pool.get().await?;
    let next = witnessed(32, 5);
    // More than 50,000 records of a chain are not remembered.
    for (records, left) in [(0, 1), (49_990, 1), (20, 0)] {
        store::remember_records(&client, CHAINS[0], &vec![&next; records]).await?;
        let count: i64 = client.query_one("SELECT count(*) FROM left_blocks", &[]).await?.get(0);
        ensure!(count == left, "{count} rows after {records} more records");
    }
    Ok(())
}
