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
use chain::{BlockId, Chain, Chains, Head, Rpc, fetch_head, fetch_standings, find_witnesses};
use runtime::kafka::{Kafka, PartitionReader, TransactionalProducer};
use runtime::{Failure, Settings};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use topics::wire::{BlockRecord, LogsRecord, MatchesRecord, block_record, logs_record};
use topics::{B256, BlockRef, ChainId, Topic, frame};

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
    /// Blocks that have brought payments something, newest first, from [`Restart::last_final`] down: at most [`MAX_PAID_BLOCKS`].
    pub paid: Vec<BlockRef>,
    /// Its records wait, set aside.
    pub waits: bool,
}

/// What restarting a chain would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPlan {
    /// The block up to which all that was applied stands; none if nothing was applied.
    pub stands: Option<u64>,
    /// The first block that ingest publishes.
    pub begins: u64,
}

impl RestartPlan {
    /// The blocks that nobody reads, unless a backfill brings them.
    pub fn gap(&self) -> Option<(u64, u64)> {
        let from = self.stands? + 1;
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
    /// Of the last record that was matched.
    matched: Option<u64>,
    last_final: u64,
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
        let (sequence, matched) = blocking(move || {
            let sequence = halt::read(&reading, id)?.map(|stored| stored.cursor.sequence);
            Ok((sequence, last_matched(&reading, id)?))
        })
        .await?;
        let last_final = last_final(&chain, &rpc).await?;
        Ok(Self { kafka, chain, rpc, sequence, matched, last_final })
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
    pub async fn plan(&self, applied: Option<&Applied>) -> anyhow::Result<RestartPlan> {
        let applies = applied.is_none_or(|applied| !applied.waits);
        let waiting = self.matched.filter(|matched| applied.is_none_or(|applied| applied.sequence < *matched));
        if let Some(matched) = waiting.filter(|_| applies) {
            bail!(
                "chain.matches has records of the chain up to sequence {matched} that the confirmer has yet to apply: let it, then run \
                 this again"
            );
        }
        let start = self.chain.start_block.filter(|start| *start <= self.last_final);
        let Some(applied) = applied else {
            return Ok(RestartPlan { stands: None, begins: start.unwrap_or(self.last_final) });
        };
        let stands = standing(self.last_final, applied, async |block| is_on_chain(&self.chain, &self.rpc, block).await).await?;
        Ok(RestartPlan { stands: Some(stands), begins: start.unwrap_or(self.last_final + 1) })
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
            Some(below) => Window::new([witnessed(&self.chain, &self.rpc, below).await?], false, Some(below)),
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
        let mut sequence = self.sequence.unwrap_or_default().max(self.matched.unwrap_or_default()).max(applied);
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

async fn last_final(chain: &Chain, rpc: &Rpc) -> anyhow::Result<u64> {
    last_final_block(&fetch_standings(rpc, None).await, chain.witnesses).with_context(|| {
        format!("fewer than {} endpoints of {} answer, which is what witnesses asks for", chain.witnesses, chain.name)
    })
}

/// The block up to which what was applied stands. It is final. Of a head that is not on the chain, the blocks that have brought
/// something tell where its branch has left the chain: those of one branch are on it up to there.
async fn standing(
    last_final: u64,
    applied: &Applied,
    is_on_chain: impl AsyncFn(BlockRef) -> anyhow::Result<bool>,
) -> anyhow::Result<u64> {
    let limit = applied.number.min(last_final);
    let mut believed = match applied.hash {
        Some(hash) if is_on_chain(BlockRef { number: applied.number, hash }).await? => return Ok(limit),
        Some(_) => applied.finalized.unwrap_or(applied.first.saturating_sub(1)).min(limit),
        None => limit,
    };
    for block in applied.paid.iter().filter(|block| block.number <= limit) {
        if is_on_chain(*block).await? {
            return Ok(believed.max(block.number));
        }
        believed = believed.min(block.number.saturating_sub(1));
    }
    ensure!(
        applied.paid.len() < usize::from(MAX_PAID_BLOCKS),
        "none of the last {MAX_PAID_BLOCKS} blocks with payments is on the chain: are its endpoints of the chain that was followed?"
    );
    Ok(believed)
}

/// Whether a block is on the chain, as far as enough endpoints say.
async fn is_on_chain(chain: &Chain, rpc: &Rpc, block: BlockRef) -> anyhow::Result<bool> {
    let found = find_witnesses(rpc, block.number, block.hash).await;
    let against = found.against.iter().map(|endpoint| endpoint.provider()).collect::<HashSet<_>>().len();
    match (found.count_with() >= chain.witnesses, against >= chain.witnesses) {
        (_, true) if found.outvote() => Ok(false),
        (true, _) if !found.outvote() => Ok(true),
        _ => bail!(
            "of the providers of {}, {} have block {block} and {against} have another, of {} that witnesses asks for: run this again \
             when more of them agree",
            chain.name,
            found.count_with(),
            chain.witnesses
        ),
    }
}

/// The block of this height that enough endpoints have.
async fn witnessed(chain: &Chain, rpc: &Rpc, number: u64) -> anyhow::Result<Head> {
    let head = fetch_head(rpc, Some(BlockId::Number(number))).await?;
    let head = head.with_context(|| format!("no endpoint of {} has block {number}", chain.name))?;
    let block = BlockRef { number, hash: head.hash };
    ensure!(is_on_chain(chain, rpc, block).await?, "most endpoints of {} have another block than {block}", chain.name);
    Ok(head)
}

/// The sequence of the chain's last record that was matched.
fn last_matched(kafka: &Kafka, chain: ChainId) -> Result<Option<u64>, Failure> {
    let key = chain.to_string();
    let mut matched = None;
    PartitionReader::open(kafka, Topic::Matches, Topic::Matches.partition_of(&key))?.read_back(|records| {
        for record in records.iter().rev().filter(|record| record.key() == key.as_bytes()) {
            let record: MatchesRecord = frame::decode(record.payload()).map_err(Failure::halt)?;
            if record.sequence != 0 {
                matched = Some(record.sequence);
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
        Applied { sequence: 9, first: 10, number, hash, finalized, paid, waits: true }
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
            assert_eq!(standing(38, &applied, on_chain).await.unwrap(), stands, "{case}");
        }
        // A reorg has gone below what was final.
        let on_chain = async |asked: BlockRef| Ok(asked.number <= 22);
        assert_eq!(standing(38, &applied(45, Some(35), &[34, 30, 22]), on_chain).await.unwrap(), 29);
    }

    #[test]
    fn the_blocks_that_nobody_reads_are_named() {
        let gap = |stands, begins| RestartPlan { stands, begins }.gap();
        assert_eq!(gap(Some(30), 39), Some((31, 38)));
        assert_eq!([gap(Some(38), 39), gap(Some(38), 5), gap(None, 39)], [None; 3]);
    }
}
