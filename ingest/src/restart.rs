//! `ctrip chain restart`: lets a chain begin anew after what can't be continued: a gap that nobody wants to fill, records that
//! contradict each other, a lost cursor, or years without it.
//!
//! The new beginning is a record like any other: REPLAYED, with a sequence. Whoever reads the chain in order passes it, and takes
//! what comes next without asking for its parent. It names the block up to which what was applied stands: final, and on the chain as
//! far as enough endpoints say. What later blocks had brought is taken back. It comes again with the blocks that follow, or with the
//! backfill that [`RestartPlan`] names.

use crate::cursor::{StoredCursor, encode};
use crate::depth::last_final_block;
use crate::halt;
use crate::nodes::connect;
use crate::publish::{OutgoingRecords, STAGE, send_cursor};
use crate::records::{block, logs};
use crate::resume::blocking;
use crate::window::Window;
use anyhow::{Context as _, bail, ensure};
use chain::{BlockId, Chain, Chains, Head, Rpc, fetch_below_hole, fetch_head, fetch_standings, find_witnesses, look_at};
use runtime::kafka::{Kafka, PartitionReader, TransactionalProducer};
use runtime::{Failure, Settings};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use topics::wire::{BlockRecord, LogsRecord, MatchesRecord, block_record, logs_record, matches_record};
use topics::{B256, BlockRef, ChainId, Topic, frame, number_below};

/// Blocks with payments that are looked up where the confirmer's head is not on the chain.
pub const MAX_PAID_BLOCKS: u16 = 1_000;

/// What the confirmer has applied of a chain.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Of its last record.
    pub sequence: u64,
    /// Number of the first block.
    pub first: u64,
    /// The head.
    pub number: u64,
    /// `None` if no block is left, or the chain has begun anew above it.
    pub hash: Option<B256>,
    pub finalized: Option<u64>,
    /// The block up to which blocks are known by their hashes; another endpoint may give those above it with other content.
    pub known_by_hash: u64,
    /// Of the block of which some parts were applied.
    pub open: Option<B256>,
    /// Blocks that have brought payments something, newest first, from [`Restart::last_final`] down: at most [`MAX_PAID_BLOCKS`].
    pub paid: Vec<BlockRef>,
}

/// From which offset in `chain.matches` on the confirmer has not applied a chain's records, and whether it will.
#[derive(Clone, Copy, Debug)]
pub enum Unapplied {
    /// It applies them.
    Next(i64),
    /// They wait, set aside.
    Waiting(i64),
}

/// What restarting a chain would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPlan {
    /// The block up to which all that was applied stands; none if nothing was applied.
    pub stands: Option<u64>,
    /// The block up to which every block was applied, at most [`Self::stands`]: above it a backfill may have brought some.
    pub whole: Option<u64>,
    /// The first block that ingest publishes.
    pub begins: u64,
}

impl RestartPlan {
    /// The blocks that nobody reads, unless a backfill brings them.
    pub fn gap(&self) -> Option<(u64, u64)> {
        let from = self.whole? + 1;
        (from < self.begins).then(|| (from, self.begins - 1))
    }
}

/// A chain that may begin anew.
pub struct Restart {
    kafka: Kafka,
    chain: Arc<Chain>,
    rpc: Arc<Rpc>,
    /// Of the chain's cursor; a running ingest that has published since has another.
    sequence: Option<u64>,
    /// The lowest block of the cursor whose content one endpoint alone has given.
    doubtful: Option<u64>,
    /// Of the last record that was matched.
    matched: Option<Matched>,
    last_final: u64,
}

#[derive(Clone, Copy)]
struct Matched {
    sequence: u64,
    offset: i64,
}

impl Restart {
    /// Examines a chain.
    ///
    /// # Errors
    /// If fewer endpoints answer than `witnesses` asks for, or Kafka does not.
    pub async fn open(settings: &Settings, name: &str) -> anyhow::Result<Self> {
        let chains = Chains::load(&settings.chains_file)?.only(name).resolve().await?;
        let (chain, rpc) = connect(chains.named(name)?.clone()).await?;
        let kafka = Kafka::connect(settings).await?;
        let (id, reading) = (chain.id, kafka.clone());
        let (stored, matched) = blocking(move || Ok((halt::read(&reading, id)?, last_matched(&reading, id)?))).await?;
        let sequence = stored.as_ref().map(|stored| stored.cursor.sequence);
        let doubtful = stored.as_ref().and_then(StoredCursor::lowest_doubt);
        let last_final = last_final(&chain, &rpc).await?;
        Ok(Self { kafka, chain, rpc, sequence, doubtful, matched, last_final })
    }

    pub fn chain(&self) -> ChainId {
        self.chain.id
    }

    /// The last block that enough endpoints call final.
    pub const fn last_final(&self) -> u64 {
        self.last_final
    }

    /// What a restart would do. `applied` is none if nothing of the chain was.
    ///
    /// # Errors
    /// If matches wait that the confirmer will apply, or endpoints do not tell which blocks are on the chain.
    pub async fn plan(&self, applied: Option<&Applied>, unapplied: Unapplied) -> anyhow::Result<RestartPlan> {
        if let Some(Matched { sequence, .. }) = self.matched.filter(|matched| is_due(*matched, unapplied)) {
            bail!(
                "chain.matches has records of the chain up to sequence {sequence} that the confirmer has yet to apply: let it, then run \
                 this again"
            );
        }
        let start = self.chain.start_block.filter(|start| *start <= self.last_final);
        let Some(applied) = applied else {
            let begins = start.unwrap_or(self.last_final);
            let whole = self.below_first(unapplied).await?.map(|whole| below_doubt(whole, self.doubtful));
            return Ok(RestartPlan { stands: None, whole, begins });
        };
        let (mut stands, mut whole) =
            standing(self.last_final, applied, async |block| is_on_chain(&self.chain, &self.rpc, block).await).await?;
        if let Some(kept) = self.kept_by_waiting(unapplied).await? {
            (stands, whole) = (stands.min(kept), whole.min(kept));
        }
        // The new window forgets what was in doubt, which would be believed by its hash.
        (stands, whole) = (below_doubt(stands, self.doubtful), below_doubt(whole, self.doubtful));
        Ok(RestartPlan { stands: Some(stands), whole: Some(whole), begins: start.unwrap_or(self.last_final + 1) })
    }

    /// The block below the first one that waits, of a chain of which nothing was applied.
    async fn below_first(&self, unapplied: Unapplied) -> anyhow::Result<Option<u64>> {
        let Unapplied::Waiting(offset) = unapplied else { return Ok(None) };
        let (kafka, chain) = (self.kafka.clone(), self.chain.id);
        let first = blocking(move || first_matched(&kafka, chain, offset)).await?;
        Ok(first.map(|first| first.saturating_sub(1)))
    }

    /// The block up to which records that wait leave what was applied: the confirmer applies those first that it can, and the others say
    /// that what it has applied may not be what the chain has.
    async fn kept_by_waiting(&self, unapplied: Unapplied) -> anyhow::Result<Option<u64>> {
        let Unapplied::Waiting(offset) = unapplied else { return Ok(None) };
        let (kafka, chain) = (self.kafka.clone(), self.chain.id);
        let mut kept: Option<u64> = None;
        blocking(move || {
            read_matched(&kafka, chain, offset, |record| {
                kept = [kept, kept_by(&record)].into_iter().flatten().min();
                ControlFlow::Continue(())
            })?;
            Ok(kept)
        })
        .await
    }

    /// Restarts the chain; a running ingest then begins anew with the next block.
    ///
    /// # Errors
    /// If a running ingest has gone on meanwhile.
    pub async fn execute(self, plan: RestartPlan, applied: Option<&Applied>) -> anyhow::Result<()> {
        let stands = witnessed(&self.chain, &self.rpc, plan.stands.unwrap_or(self.last_final)).await?;
        let below = plan.begins.checked_sub(1).filter(|_| plan.stands.is_some() && plan.begins > self.last_final);
        let window = match below {
            // It goes on from there, whatever becomes final until it does.
            Some(below) => {
                let below = witnessed(&self.chain, &self.rpc, below).await?;
                Window::new([below], false, Some(below.number))
            }
            // As at its first start.
            None => Window::default(),
        };
        let applied = applied.map_or(0, |applied| applied.sequence);
        blocking(move || self.write(stands, &window, applied)).await
    }

    fn write(&self, stands: Head, window: &Window, applied: u64) -> Result<(), Failure> {
        let (kafka, chain) = (&self.kafka, &self.chain);
        let producer = TransactionalProducer::open(kafka, &format!("{STAGE}-{}", chain.id))?;
        let stored = halt::read(kafka, chain.id)?;
        if stored.as_ref().map(|stored| stored.cursor.sequence) != self.sequence {
            return Err(Failure::halt(MovedOn));
        }
        let mut sequence =
            self.sequence.unwrap_or_default().max(self.matched.map_or(0, |matched| matched.sequence)).max(applied);
        let transaction = producer.begin()?;
        if sequence > 0 {
            sequence += 1;
            let (block, logs) = beginning(chain.id, sequence, &stands);
            let mut outgoing = OutgoingRecords::default();
            outgoing.push_block(kafka, chain, block, logs);
            outgoing.send(&transaction, chain.id)?;
        }
        let mut parts = stored.as_ref().map(StoredCursor::outdated_parts).unwrap_or_default();
        send_cursor(kafka, &transaction, &encode(chain.id, sequence, window, "", &mut parts))?;
        transaction.commit()
    }
}

/// The block, or the one below all that are in doubt.
fn below_doubt(number: u64, doubtful: Option<u64>) -> u64 {
    doubtful.map_or(number, |doubtful| number.min(doubtful.saturating_sub(1)))
}

async fn last_final(chain: &Chain, rpc: &Rpc) -> anyhow::Result<u64> {
    last_final_block(&fetch_standings(rpc, None).await, chain.witnesses).with_context(|| {
        format!("fewer than {} endpoints of {} answer, which is what witnesses asks for", chain.witnesses, chain.name)
    })
}

/// The block up to which what was applied stands, and the one up to which every block was applied. Both are final. The tags that
/// were applied are believed as far as the blocks that have brought something bear them out. Those need not be of one branch: a
/// backfill may have brought blocks of the chain beside those of a branch that has left it. So what stands ends below the lowest
/// one that is not on the chain. Nor does a hash bear out a block that was not witnessed when it was applied, or not as a whole.
async fn standing(
    last_final: u64,
    applied: &Applied,
    is_on_chain: impl AsyncFn(BlockRef) -> anyhow::Result<bool>,
) -> anyhow::Result<(u64, u64)> {
    let below_first = applied.first.saturating_sub(1);
    let known_by_hash = applied.known_by_hash;
    let is_in_doubt =
        |block: &BlockRef| block.number > known_by_hash && block.number <= applied.number || Some(block.hash) == applied.open;
    let limit = known_by_hash.min(last_final);
    let mut whole = match applied.hash {
        Some(hash) if !is_on_chain(BlockRef { number: applied.number, hash }).await? => {
            applied.finalized.unwrap_or(below_first).min(limit)
        }
        _ => limit,
    };
    // The highest block on the chain below all that are not or are in doubt, and whether one is down where blocks are believed.
    let (mut highest, mut reached) = (None, None);
    let (mut lowest_off, mut are_all_off) = (None, true);
    for block in applied.paid.iter().filter(|block| block.number <= last_final) {
        if reached.is_some_and(|reached| block.number < reached) {
            break;
        }
        let is_on_chain = is_on_chain(*block).await?;
        are_all_off &= !is_on_chain;
        if !is_on_chain || is_in_doubt(block) {
            lowest_off = Some(block.number);
            (highest, reached) = (None, None);
            whole = whole.min(block.number.saturating_sub(1));
            continue;
        }
        if lowest_off.is_none_or(|off| block.number < off) {
            highest = highest.or(Some(block.number));
            reached = reached.or(Some(block.number).filter(|number| *number <= whole));
        }
    }
    if reached.is_none() && applied.paid.len() >= usize::from(MAX_PAID_BLOCKS) {
        ensure!(
            !are_all_off,
            "none of the last {MAX_PAID_BLOCKS} blocks with payments is on the chain: are its endpoints of the chain that was followed?"
        );
        // Nobody has looked at those further down.
        highest = None;
    }
    Ok((highest.unwrap_or(whole).max(whole), whole))
}

/// Whether a block is on the chain, as far as enough endpoints say.
async fn is_on_chain(chain: &Chain, rpc: &Rpc, block: BlockRef) -> anyhow::Result<bool> {
    let found = find_witnesses(rpc, block.number, block.hash).await;
    if found.confirm(chain.witnesses) {
        return Ok(true);
    }
    if found.refute(chain.witnesses) {
        return Ok(false);
    }
    bail!(
        "of the providers of {}, {} have block {block} and {} have another, of {} that witnesses asks for: run this again \
         when more of them agree",
        chain.name,
        found.count_with(),
        found.count_against(),
        chain.witnesses
    )
}

/// The block of this height that enough endpoints have or, where the chain skips it, the one below.
async fn witnessed(chain: &Chain, rpc: &Rpc, number: u64) -> anyhow::Result<Head> {
    let head = match fetch_head(rpc, Some(BlockId::Number(number))).await? {
        None => below_hole(chain, rpc, number).await?,
        head => head,
    };
    let head = head
        .with_context(|| format!("no endpoint of {} has block {number}, and too few agree that there is none", chain.name))?;
    let block = BlockRef { number: head.number, hash: head.hash };
    ensure!(is_on_chain(chain, rpc, block).await?, "most endpoints of {} have another block than {block}", chain.name);
    Ok(head)
}

/// What an endpoint has at a height: a block, or none, and the blocks above and below.
#[derive(Clone, Copy, Debug)]
enum Look {
    At(Head),
    Hole { above: Head, below: Head },
}

/// The block below a height that the endpoints' chain skips, which is the parent of the one above; or that of the height, if one of
/// them has it after all.
async fn below_hole(chain: &Chain, rpc: &Rpc, number: u64) -> anyhow::Result<Option<Head>> {
    let mut looks = Vec::new();
    for endpoint in rpc.endpoints() {
        let Ok(Some(above)) = look_at(endpoint, number).await else { continue };
        if above.number == number {
            looks.push((endpoint.provider(), Look::At(above)));
        } else if let Some(below) = fetch_below_hole(endpoint, above, number).await {
            looks.push((endpoint.provider(), Look::Hole { above, below }));
        }
    }
    match choose(&looks, chain.witnesses) {
        None => Ok(None),
        Some(Look::At(head)) => Ok(Some(head)),
        Some(Look::Hole { above, below }) => {
            let block = BlockRef { number: above.number, hash: above.hash };
            ensure!(is_on_chain(chain, rpc, block).await?, "most endpoints of {} have another block than {block}", chain.name);
            Ok(Some(below))
        }
    }
}

/// What providers say of a height. A block that one of them has there is in nobody's hole; of holes the one counts whose lower end
/// is the highest, since nothing may lie between, and so many have to name it: its hash does not prove the link between the two.
fn choose(looks: &[(&str, Look)], needed: usize) -> Option<Look> {
    if let Some((_, at)) = looks.iter().find(|(_, look)| matches!(look, Look::At(_))) {
        return Some(*at);
    }
    let below_of = |look: &Look| match look {
        Look::At(below) | Look::Hole { below, .. } => *below,
    };
    let highest = looks.iter().map(|(_, look)| *look).max_by_key(|look| below_of(look).number)?;
    let named = looks.iter().filter(|(_, look)| below_of(look).hash == below_of(&highest).hash);
    (named.map(|(provider, _)| provider).collect::<HashSet<_>>().len() >= needed).then_some(highest)
}

/// Whether the confirmer will apply a record by itself.
const fn is_due(matched: Matched, unapplied: Unapplied) -> bool {
    matches!(unapplied, Unapplied::Next(next) if next <= matched.offset)
}

/// The block up to which a record leaves what was applied, if it takes something back. Another branch may have blocks that are as high
/// as one that this one skips. One that is added, and not above all that was applied, may have been applied with other content.
fn kept_by(record: &MatchesRecord) -> Option<u64> {
    match record.kind() {
        matches_record::Kind::Removed | matches_record::Kind::Added => Some(number_below(record.number, record.parent_number)),
        matches_record::Kind::Replayed if record.sequence != 0 => Some(record.number),
        _ => None,
    }
}

/// The number of the chain's first block in `chain.matches` from an offset on.
fn first_matched(kafka: &Kafka, chain: ChainId, offset: i64) -> Result<Option<u64>, Failure> {
    let mut first = None;
    read_matched(kafka, chain, offset, |record| {
        first = Some(record.number).filter(|_| record.sequence != 0);
        if first.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(first)
}

/// Shows the chain's records in `chain.matches` from an offset on that can be read.
fn read_matched(
    kafka: &Kafka,
    chain: ChainId,
    offset: i64,
    mut see: impl FnMut(MatchesRecord) -> ControlFlow<()>,
) -> Result<(), Failure> {
    let key = chain.to_string();
    let reader = PartitionReader::open(kafka, Topic::Matches, Topic::Matches.partition_of(&key))?;
    reader.seek(offset);
    while let Some(record) = reader.next()? {
        if record.key() == key.as_bytes()
            && let Ok(record) = frame::decode::<MatchesRecord>(record.payload())
            && see(record).is_break()
        {
            break;
        }
    }
    Ok(())
}

/// The chain's last record that was matched.
fn last_matched(kafka: &Kafka, chain: ChainId) -> Result<Option<Matched>, Failure> {
    let key = chain.to_string();
    let mut matched = None;
    PartitionReader::open(kafka, Topic::Matches, Topic::Matches.partition_of(&key))?.read_back(|records| {
        for record in records.iter().rev().filter(|record| record.key() == key.as_bytes()) {
            let offset = record.offset();
            let record: MatchesRecord = frame::decode(record.payload()).map_err(Failure::halt)?;
            if record.sequence != 0 {
                matched = Some(Matched { sequence: record.sequence, offset });
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(matched)
}

/// A running ingest has published meanwhile.
#[derive(Debug, thiserror::Error)]
#[error("ingest has gone on meanwhile: run this again, or stop ingest first")]
struct MovedOn;

/// The records of the new beginning.
fn beginning(chain: ChainId, sequence: u64, stands: &Head) -> (BlockRecord, LogsRecord) {
    let block = block(chain, sequence, stands, block_record::Kind::Replayed);
    (block, logs(chain, sequence, stands, logs_record::Kind::Replayed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(number: u64, branch: u8) -> BlockRef {
        BlockRef { number, hash: B256::repeat_byte(branch) }
    }

    /// Of branch 2, which leaves the chain after block 40.
    fn applied(number: u64, finalized: Option<u64>, paid: &[u64]) -> Applied {
        let paid = paid.iter().map(|number| block(*number, if *number > 40 { 2 } else { 1 })).collect();
        let hash = Some(B256::repeat_byte(if number > 40 { 2 } else { 1 }));
        Applied { sequence: 9, first: 10, number, hash, finalized, known_by_hash: number, open: None, paid }
    }

    #[tokio::test]
    async fn what_was_applied_stands_up_to_a_final_block_that_is_on_the_chain() {
        for (applied, stands, case) in [
            (applied(38, None, &[37]), 38, "the head is final"),
            (applied(39, Some(20), &[]), 38, "the head is on the chain, and not final"),
            (applied(45, Some(20), &[44, 43, 30, 25]), 30, "payments show how far its branch is on the chain"),
            (applied(45, Some(35), &[44, 30]), 35, "so do its own tags"),
            (applied(45, Some(20), &[]), 20, "tags alone"),
            (applied(45, None, &[]), 9, "nothing tells: all comes again"),
            (Applied { hash: None, ..applied(33, None, &[25]) }, 33, "it has begun anew since"),
        ] {
            let on_chain = async |asked: BlockRef| Ok(asked.hash == B256::repeat_byte(1));
            assert_eq!(standing(38, &applied, on_chain).await.unwrap().0, stands, "{case}");
        }
        // A reorg has gone below what was final.
        let on_chain = async |asked: BlockRef| Ok(asked.number <= 22);
        assert_eq!(standing(38, &applied(45, Some(35), &[34, 30, 22]), on_chain).await.unwrap(), (29, 29));
    }

    /// Of branch 2, which leaves the chain after block 20, and of the chain, which a backfill has brought.
    #[tokio::test]
    async fn a_backfill_beside_a_branch_that_left_the_chain_lets_nothing_of_that_branch_stand() {
        let on_chain = async |asked: BlockRef| Ok(asked.hash == B256::repeat_byte(1));
        for (paid, stands, case) in [
            (vec![block(30, 1), block(28, 2), block(26, 1), block(15, 1)], 26, "the newest is on the chain, one below is not"),
            (vec![block(30, 1), block(28, 2), block(26, 2), block(24, 1)], 24, "the lowest that is not on it counts"),
            (vec![block(28, 1), block(28, 2), block(15, 1)], 20, "two blocks of a height"),
            (vec![block(28, 2), block(28, 1), block(15, 1)], 20, "or the other way round"),
            (vec![block(34, 1), block(20, 1), block(20, 2), block(15, 1)], 19, "not where tags are believed either"),
        ] {
            let applied = Applied { hash: Some(B256::repeat_byte(2)), paid, ..applied(33, Some(20), &[]) };
            let (stood, whole) = standing(38, &applied, on_chain).await.unwrap();
            assert_eq!((stood, whole), (stands, stands.min(20)), "{case}");
        }
    }

    /// One endpoint alone may have given it a content that is not the chain's.
    #[tokio::test]
    async fn nothing_stands_from_the_lowest_block_on_that_was_not_witnessed_when_it_was_applied() {
        let on_chain = async |asked: BlockRef| Ok(asked.hash == B256::repeat_byte(1));
        let chain = |known_by_hash, paid: &[u64]| Applied { known_by_hash, ..applied(20, None, paid) };
        for (applied, expected, case) in [
            (chain(19, &[20, 15]), (19, 19), "the head"),
            (chain(17, &[20, 18, 15]), (17, 17), "and others"),
            (chain(17, &[]), (17, 17), "what they lack comes again too"),
            (chain(17, &[30, 19, 15]), (17, 17), "nor what a backfill has brought above it"),
            (chain(17, &[30, 15]), (30, 17), "which stands where they have brought nothing"),
            (chain(9, &[20]), (9, 9), "none was"),
            (Applied { open: Some(B256::repeat_byte(1)), ..chain(20, &[21]) }, (20, 20), "part of a block"),
            (Applied { hash: None, ..chain(20, &[15]) }, (20, 20), "it has begun anew since"),
        ] {
            assert_eq!(standing(60, &applied, on_chain).await.unwrap(), expected, "{case}");
        }
    }

    /// The head is far below: the chain has begun anew there, or goes through its blocks once more from its start_block.
    #[tokio::test]
    async fn what_a_backfill_has_brought_above_the_head_stands_too() {
        let on_chain = async |asked: BlockRef| Ok(asked.hash == B256::repeat_byte(1));
        let paid = vec![block(37, 1), block(30, 1), block(12, 1)];
        for hash in [None, Some(B256::repeat_byte(1))] {
            let applied = Applied { hash, paid: paid.clone(), ..applied(15, None, &[]) };
            assert_eq!(standing(38, &applied, on_chain).await.unwrap(), (37, 15), "and what lies between is named again");
        }
        let many: Vec<_> = (0..MAX_PAID_BLOCKS).map(|below| block(5_000 - u64::from(below), 1)).collect();
        let applied = Applied { hash: None, paid: many, ..applied(15, None, &[]) };
        assert_eq!(standing(6_000, &applied, on_chain).await.unwrap(), (15, 15), "more than are looked at");
    }

    #[test]
    fn a_hole_counts_only_if_nobody_has_a_block_there_and_enough_name_its_lower_end() {
        let head = |number: u8, parent: u8| Head {
            number: number.into(),
            hash: B256::repeat_byte(number),
            parent_hash: B256::repeat_byte(parent),
            timestamp: 1,
        };
        let at = Look::At(head(12, 11));
        let hole = |below: u8| Look::Hole { above: head(14, below), below: head(below, below - 1) };
        let chosen = |looks: &[(&'static str, Look)], needed| match choose(looks, needed) {
            Some(Look::At(at)) => Some(at.number),
            Some(Look::Hole { below, .. }) => Some(below.number),
            None => None,
        };
        assert_eq!(chosen(&[("one", hole(10)), ("two", hole(10)), ("three", at)], 2), Some(12));
        assert_eq!(chosen(&[("one", hole(10)), ("two", hole(10))], 2), Some(10));
        assert_eq!(chosen(&[("one", hole(10)), ("one", hole(10))], 2), None, "one provider");
        assert_eq!(chosen(&[("one", hole(10)), ("two", hole(10)), ("three", hole(11))], 2), None, "something may lie between");
        assert_eq!(chosen(&[("one", hole(10))], 1), Some(10));
        assert_eq!(chosen(&[], 1), None);
    }

    #[test]
    fn a_chain_waits_only_for_matches_that_the_confirmer_will_apply() {
        let is_due = |unapplied| is_due(Matched { sequence: 9, offset: 7 }, unapplied);
        assert!(is_due(Unapplied::Next(7)));
        // It has gone past them, by `ctrip chain forget` too; or they wait for the restart.
        assert!(!is_due(Unapplied::Next(8)) && !is_due(Unapplied::Waiting(3)));
    }

    /// Else what they add stays, and what they take back comes never again.
    #[test]
    fn what_waiting_records_take_back_does_not_stand() {
        use matches_record::Kind;
        let record = |kind: Kind, number, parent_number, sequence| MatchesRecord {
            kind: kind.into(),
            number,
            parent_number,
            sequence,
            ..Default::default()
        };
        for (waiting, kept) in [
            (record(Kind::Added, 96, None, 7), Some(95)),
            (record(Kind::Added, 96, Some(93), 7), Some(93)),
            (record(Kind::Tags, 95, None, 7), None),
            (record(Kind::Removed, 95, None, 7), Some(94)),
            (record(Kind::Removed, 95, Some(93), 7), Some(93)),
            (record(Kind::Replayed, 40, None, 0), None),
            (record(Kind::Replayed, 40, None, 7), Some(40)),
        ] {
            assert_eq!(kept_by(&waiting), kept, "{waiting:?}");
        }
    }

    /// The new window would forget that others have not given its content yet.
    #[test]
    fn nothing_stands_from_the_lowest_block_in_doubt_on() {
        assert_eq!([below_doubt(30, None), below_doubt(30, Some(31)), below_doubt(30, Some(30))], [30, 30, 29]);
        assert_eq!([below_doubt(30, Some(7)), below_doubt(30, Some(0))], [6, 0]);
    }

    #[test]
    fn the_blocks_that_nobody_reads_are_named() {
        let gap = |whole, begins| RestartPlan { stands: whole, whole, begins }.gap();
        assert_eq!(gap(Some(30), 39), Some((31, 38)));
        assert_eq!([gap(Some(38), 39), gap(Some(38), 5), gap(None, 39)], [None; 3]);
    }
}
