//! A chain's records are a stack. What does not stand on the head is refused, and all that a block brought leaves with it, also
//! where a batch has both.

use crate::books::{self, Books, CHAINS, X_LISTED, block, block_hash, chains, payments};
use anyhow::{Context as _, Result, ensure};
use chain::Chains;
use e2e::Stack;
use payments::{Payment, Policy, Status};
use runtime::Failure;
use topics::{Address, Amount, B256, BlockRef, Kind, Matches, Transfer};

pub struct Scene {
    pub stack: Stack,
    pub chains: Chains,
    /// In X on the first chain, confirmed by its own block.
    pub payment: Payment,
}

impl Scene {
    pub async fn start() -> Result<Self> {
        let is_meant = |p: &Payment| p.chain == CHAINS[0] && p.asset.token.is_some() && p.policy == Policy::Confirmations(1);
        let payment = payments().into_iter().find(is_meant).context("a payment")?;
        Ok(Self { stack: Stack::attach()?, chains: chains(X_LISTED).await?, payment })
    }

    pub async fn books(&self, applied: &[Matches]) -> Result<Books> {
        let mut books = Books::open(&self.stack, usize::MAX).await?;
        books.apply(&self.chains, applied).await?;
        Ok(books)
    }

    pub async fn now(&self, books: &Books) -> Result<Payment> {
        books.payment(self.payment.id).await
    }

    /// A transfer of so much in a block.
    fn pays(&self, hash: B256, index: u32, amount: u64) -> Transfer {
        books::transfer(hash, index, self.payment.address, amount)
    }

    /// Block 2, on which a payment is paid.
    fn paying(&self) -> Matches {
        block(CHAINS[0], 2, vec![self.pays(block_hash(2), 0, 100)])
    }
}

pub fn empty(sequence: u64, number: u64) -> Matches {
    Matches { sequence, ..block(CHAINS[0], number, Vec::new()) }
}

fn removal(sequence: u64, of: &Matches) -> Matches {
    Matches { sequence, kind: Kind::Removed, witnessed: None, transfers: Vec::new(), ..of.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_stand_on_the_head_is_refused_and_changes_nothing() -> Result<()> {
    let scene = Scene::start().await?;
    let applied = [empty(1, 1), scene.paying()];
    let elsewhere = B256::repeat_byte(9);
    let strange = [
        ("the removal of a block below the head", removal(3, &applied[0])),
        (
            "the removal of another block",
            removal(3, &Matches { block: BlockRef { number: 2, hash: elsewhere }, ..applied[1].clone() }),
        ),
        ("a block on another parent", Matches { parent: elsewhere, ..empty(3, 3) }),
        (
            "a block on the head, and not above it",
            Matches { parent: block_hash(2), block: BlockRef { number: 2, hash: elsewhere }, ..empty(3, 2) },
        ),
    ];
    for (what, record) in strange {
        let mut books = scene.books(&applied).await?;
        let outcome = books.apply(&scene.chains, std::slice::from_ref(&record)).await;
        let is_refusal = matches!(&outcome, Err(Failure::Halt(cause)) if format!("{cause:#}").contains("out of order"));
        ensure!(is_refusal, "{what}: {outcome:?}");
        let now = scene.now(&books).await?;
        ensure!(now.status() == Status::Confirmed && now.sequence == 3, "{what}: {now:?}");
    }
    let mut books = scene.books(&applied).await?;
    books.apply(&scene.chains, &[removal(3, &applied[1])]).await?;
    ensure!(scene.now(&books).await?.status() == Status::Pending, "the removal of the head");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_given_a_removed_block_has_not_given_the_one_that_takes_its_place() -> Result<()> {
    let scene = Scene::start().await?;
    let (paying, other) = (scene.paying(), B256::repeat_byte(9));
    // Shown by one endpoint alone.
    let lone = Matches {
        sequence: 4,
        block: BlockRef { number: 2, hash: other },
        transfers: vec![scene.pays(other, 0, 100)],
        witnessed: None,
        ..paying.clone()
    };
    let tags = Matches { sequence: 5, kind: Kind::Tags, transfers: Vec::new(), witnessed: Some(2), ..lone.clone() };
    let mut books = scene.books(&[empty(1, 1), paying.clone()]).await?;
    for (record, status) in [(removal(3, &paying), Status::Pending), (lone, Status::Detected), (tags, Status::Confirmed)] {
        books.apply(&scene.chains, std::slice::from_ref(&record)).await?;
        let now = scene.now(&books).await?;
        ensure!(now.status() == status, "{} after {record:?}, expected {status}", now.status());
    }
    Ok(())
}

/// First its time, then its transfers: what a block brings that expires a payment is late.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_expires_what_it_pays_too_late_before_it_pays() -> Result<()> {
    let scene = Scene::start().await?;
    let late = Matches { timestamp: scene.payment.expires_at + 1, ..scene.paying() };
    let books = scene.books(&[empty(1, 1), late]).await?;
    let told = books.told(scene.payment.id).await?;
    ensure!(told == ["payment.created", "payment.expired", "payment.late"], "{told:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_block_that_comes_and_goes_in_one_batch() -> Result<()> {
    let scene = Scene::start().await?;
    let mut nobodys = scene.pays(block_hash(2), 1, 100);
    nobodys.to = Address::with_last_byte(99);
    let both = block(CHAINS[0], 2, vec![scene.pays(block_hash(2), 0, 100), nobodys]);
    let again = Matches { sequence: 4, ..both.clone() };
    let mut books = scene.books(&[empty(1, 1), both.clone(), removal(3, &both)]).await?;
    let now = scene.now(&books).await?;
    ensure!(books.orphans().await? == 0, "an orphan of a block that is not on the chain");
    ensure!(now.status() == Status::Pending && now.received().is_zero(), "{now:?}");
    // It comes again, and so does all that it brings.
    books.apply(&scene.chains, &[again, empty(5, 3)]).await?;
    let now = scene.now(&books).await?;
    ensure!(books.orphans().await? == 1 && now.status() == Status::Confirmed, "{now:?}");
    Ok(())
}

/// What stands is known still, however the batch brings it again.
#[tokio::test(flavor = "multi_thread")]
async fn the_block_up_to_which_a_chain_stands_is_credited_once_when_it_is_replayed() -> Result<()> {
    let scene = Scene::start().await?;
    let paying = scene.paying();
    let beginning = Matches { kind: Kind::Replayed, ..empty(10, 2) };
    let replayed = Matches { sequence: 0, kind: Kind::Replayed, ..paying.clone() };
    let stands = [empty(1, 1), paying, empty(3, 3), beginning, replayed, empty(11, 4)];
    // And then it begins anew once more, further down.
    let falls = [&stands[..5], &[Matches { kind: Kind::Replayed, ..empty(20, 1) }, empty(21, 5)]].concat();
    for (records, received, events) in [(stands.as_slice(), 100, 3), (&falls, 0, 4)] {
        for size in 1..=records.len() {
            let mut books = scene.books(&[]).await?;
            let outcome = books.apply_by(size, &scene.chains, records).await;
            outcome.map_err(anyhow::Error::from).with_context(|| format!("{size} records per batch"))?;
            let now = scene.now(&books).await?;
            let is_right = now.received() == Amount::from(received) && now.sequence == events;
            ensure!(is_right, "{size} of {} records per batch: {now:?}", records.len());
        }
    }
    Ok(())
}

/// As long as it is the same transfer: chains.yaml may name another minimum by then.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_about_a_transfer_holds_when_its_block_comes_again() -> Result<()> {
    let scene = Scene::start().await?;
    let part = block(CHAINS[0], 2, vec![scene.pays(block_hash(2), 0, 40)]);
    let mut books = scene.books(&[empty(1, 1), part.clone(), removal(3, &part)]).await?;
    let raised = chains(&X_LISTED.replace("decimals: 6 }", "decimals: 6, min_transfer: 0.00005 }")).await?;
    books.apply(&raised, &[Matches { sequence: 4, ..part }]).await?;
    let now = scene.now(&books).await?;
    ensure!(now.received() == Amount::from(40), "{now:?}");
    Ok(())
}

/// One of its transfers may have been of an endpoint that gave other content.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_came_again_with_fewer_transfers_has_not_left_the_chain() -> Result<()> {
    let scene = Scene::start().await?;
    let pays = |index| scene.pays(block_hash(2), index, 50);
    let doubtful = Matches { witnessed: None, ..block(CHAINS[0], 2, vec![pays(0), pays(1)]) };
    let fewer = Matches { sequence: 4, witnessed: Some(2), transfers: vec![pays(0)], ..doubtful.clone() };
    let replayed = Matches { sequence: 0, kind: Kind::Replayed, ..fewer.clone() };
    let mut books = scene.books(&[empty(1, 1), doubtful.clone(), removal(3, &doubtful), fewer]).await?;
    books.go_back(CHAINS[0]).await?;
    books.apply(&scene.chains, &[replayed]).await?;
    let now = scene.now(&books).await?;
    ensure!(now.received() == Amount::from(50), "{now:?}");
    Ok(())
}

/// Where no root proves a header, an endpoint may give the hash of a block with a number that is not its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_comes_under_another_number_as_well_is_credited_once_and_leaves_the_chain_whole() -> Result<()> {
    let scene = Scene::start().await?;
    let at_static = books::static_addresses()[0].address;
    let one = scene.pays(block_hash(2), 0, 100);
    let to_static = books::transfer(block_hash(2), 1, at_static, 100);
    let own = |sequence| Matches { sequence, ..block(CHAINS[0], 2, vec![one.clone(), to_static.clone()]) };
    let (mut unlisted, mut strange) = (one.clone(), one.clone());
    (unlisted.token, unlisted.id.index) = (Some(Address::repeat_byte(0x66)), 2);
    strange.id.transaction = B256::repeat_byte(9);
    let brings = [vec![one.clone(), to_static.clone()], vec![one.clone(), unlisted], vec![to_static.clone()], vec![strange]];
    for (brings, later) in brings.into_iter().flat_map(|brings| [(brings.clone(), 0), (brings, 5_000)]) {
        let elsewhere = Matches {
            block: BlockRef { number: 1, hash: block_hash(2) },
            timestamp: own(0).timestamp + later,
            kind: Kind::Replayed,
            transfers: brings,
            ..own(0)
        };
        for records in [[empty(1, 1), own(2), elsewhere.clone()], [empty(1, 1), elsewhere.clone(), own(2)]] {
            for size in 1..=records.len() {
                let mut books = Books::open(&scene.stack, usize::MAX).await?;
                books.apply_by(size, &scene.chains, &records).await?;
                let (paid, deposited, _) = sums(&books).await?;
                ensure!((paid, deposited) == (100, 100), "{paid} and {deposited}, {size} records per batch: {records:?}");
                books.apply(&scene.chains, &[removal(3, &own(2))]).await?;
                let left = sums(&books).await?;
                ensure!(left == (0, 0, 0), "{left:?} of a block that is gone, {size} records per batch: {records:?}");
                books.apply(&scene.chains, &[own(4)]).await?;
                let again = sums(&books).await?;
                ensure!(again == (100, 100, 2), "{again:?} once it has come again, {size} records per batch: {records:?}");
            }
        }
    }
    Ok(())
}

/// What payments and deposits have received, and how many transfers are on the chain.
async fn sums(books: &Books) -> Result<(i64, i64, i64)> {
    let sql = "SELECT coalesce(sum(received) FILTER (WHERE deposit_address IS NULL), 0)::bigint,
                   coalesce(sum(received) FILTER (WHERE deposit_address IS NOT NULL), 0)::bigint,
                   (SELECT count(*) FROM transfers WHERE NOT removed) FROM payments";
    let row = books.pool.get().await?.query_one(sql, &[]).await?;
    Ok((row.get(0), row.get(1), row.get(2)))
}
