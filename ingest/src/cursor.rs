//! The records of `chain.cursors`, from which a restart continues: the last sequence and the window. Pure.
//!
//! A chain that finalises slowly has thousands of blocks in its window, and a fast one writes several batches a second. So the
//! cursor has the newest blocks alone. Those below it are in parts of 32 blocks, records with keys of their own, each written
//! once when it is full and deleted once the window has left it.

use crate::records::to_bytes;
use crate::window::Window;
use bytes::Bytes;
use chain::Head;
use std::collections::{BTreeMap, VecDeque};
use std::mem::replace;
use topics::wire::{ChainCursor, chain_cursor};
use topics::{B256, ChainId};

/// Blocks of a part: those whose numbers give the same quotient.
const PART_BLOCKS: u64 = 32;

/// A chain's records in `chain.cursors`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredCursor {
    pub cursor: ChainCursor,
    parts: BTreeMap<u64, ChainCursor>,
}

/// The parts that are written, each with the hash of its last block and what is in doubt of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrittenParts(BTreeMap<u64, (B256, Vec<B256>)>);

/// A record to write under a key; `None` deletes what is there.
pub type CursorRecord = (String, Option<ChainCursor>);

/// The part that a key of `chain.cursors` names, if it is one of this chain's: `<chain id>/<part>`.
pub fn part_of_key(chain: ChainId, key: &[u8]) -> Option<u64> {
    let (id, part) = std::str::from_utf8(key).ok()?.split_once('/')?;
    (id == chain.to_string()).then(|| part.parse().ok())?
}

fn part_key(chain: ChainId, part: u64) -> String {
    format!("{chain}/{part}")
}

/// The keys of the parts that a cursor's window has below the cursor's own blocks.
pub fn part_keys(chain: ChainId, cursor: &ChainCursor) -> impl Iterator<Item = String> {
    let (bottom, tip) = cursor.bottom_number.zip(cursor.window.last().map(|tip| tip.number)).unwrap_or_default();
    (bottom / PART_BLOCKS..tip / PART_BLOCKS).map(move |part| part_key(chain, part))
}

impl StoredCursor {
    pub fn new(cursor: ChainCursor) -> Self {
        Self { cursor, parts: BTreeMap::new() }
    }

    /// Of a chain of which nothing was published.
    pub fn of_new_chain(chain: ChainId) -> Self {
        Self::new(ChainCursor { chain_id: chain.0, ..ChainCursor::default() })
    }

    /// The parts for a window that does not continue this one: each is written again or deleted, whatever it has.
    pub fn outdated_parts(&self) -> WrittenParts {
        WrittenParts(self.parts.keys().map(|part| (*part, (B256::ZERO, Vec::new()))).collect())
    }

    /// The lowest block whose content one endpoint alone has given, whatever else can be restored.
    pub fn lowest_doubt(&self) -> Option<u64> {
        self.doubtful().map(|block| block.number).min()
    }

    fn doubtful(&self) -> impl Iterator<Item = &chain_cursor::Block> {
        let blocks = self.cursor.window.iter().chain(self.parts.values().flat_map(|part| &part.window));
        blocks.filter(|block| !block.unagreed_content.is_empty())
    }

    /// Adds or replaces a part; `None` removes it.
    pub fn set_part(&mut self, part: u64, record: Option<ChainCursor>) {
        match record {
            Some(record) => self.parts.insert(part, record),
            None => self.parts.remove(&part),
        };
    }

    /// Takes records as they are written.
    pub fn take(&mut self, chain: ChainId, records: Vec<CursorRecord>) {
        for (key, record) in records {
            match (part_of_key(chain, key.as_bytes()), record) {
                (Some(part), record) => self.set_part(part, record),
                (None, Some(cursor)) => self.cursor = cursor,
                (None, None) => {}
            }
        }
    }
}

/// The records to write for a window: the cursor, and the parts that have changed since `written`. `halted` is the cause of a halt.
pub fn encode(chain: ChainId, sequence: u64, window: &Window, halted: &str, written: &mut WrittenParts) -> Vec<CursorRecord> {
    let bottom = window.bottom().map(|bottom| bottom.number);
    let tip_part = window.tip().map_or(0, |tip| tip.number / PART_BLOCKS);
    let cursor = ChainCursor {
        chain_id: chain.0,
        sequence,
        window: blocks(window, tip_part * PART_BLOCKS..),
        finalized_number: window.finalized(),
        halted: halted.to_owned(),
        bottom_number: bottom,
        part: false,
    };
    let mut records = vec![(chain.to_string(), Some(cursor))];
    let parts = bottom.map_or(tip_part, |bottom| bottom / PART_BLOCKS)..tip_part;
    for part in parts.clone() {
        let (first, end) = (part * PART_BLOCKS, (part + 1) * PART_BLOCKS);
        // The chain may skip the numbers of a whole part.
        let Some(last) = window.below(end).filter(|last| last.number >= first) else {
            if written.0.remove(&part).is_some() {
                records.push((part_key(chain, part), None));
            }
            continue;
        };
        let state = (last.hash, window.doubts_in(first..end));
        if written.0.insert(part, state.clone()) != Some(state) {
            let window = blocks(window, first..end);
            let record = ChainCursor { chain_id: chain.0, window, part: true, ..ChainCursor::default() };
            records.push((part_key(chain, part), Some(record)));
        }
    }
    written.0.retain(|part, _| {
        let kept = parts.contains(part);
        if !kept {
            records.push((part_key(chain, *part), None));
        }
        kept
    });
    records
}

/// The blocks of a range. A block's parent is the block before it, so only the first block's parent is written, and that of a
/// block below which the chain skips numbers: there a block could be missing.
fn blocks(window: &Window, range: impl std::ops::RangeBounds<u64>) -> Vec<chain_cursor::Block> {
    let mut blocks: Vec<&Head> = window
        .iter()
        .rev()
        .skip_while(|head| !range.contains(&head.number))
        .take_while(|head| range.contains(&head.number))
        .collect();
    blocks.reverse();
    let mut next = None;
    let block = |head: &Head| chain_cursor::Block {
        number: head.number,
        hash: to_bytes(&head.hash),
        timestamp: head.timestamp,
        parent_hash: if replace(&mut next, head.number.checked_add(1)) == Some(head.number) {
            Bytes::new()
        } else {
            to_bytes(&head.parent_hash)
        },
        first: window.is_whole() && window.bottom() == Some(head),
        unagreed_content: window.doubt_of(head).map(|content| to_bytes(&content)).unwrap_or_default(),
    };
    blocks.into_iter().map(block).collect()
}

/// Why a cursor can't be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCursor {
    /// A hash that has not 32 bytes.
    #[error("the cursor's block {0} has a hash that is not 32 bytes long")]
    Hash(u64),
    /// A block whose parent is not the block before it.
    #[error("the cursor's block {0} does not follow the block before it")]
    Gap(u64),
    /// It belongs to another chain.
    #[error("the cursor belongs to chain {0}")]
    Chain(u64),
}

/// Restores the sequence of the last record, the window, and which parts are written. Where a part is missing the window ends
/// above it.
///
/// # Errors
/// If they are not records that [`encode`] made for this chain.
pub fn restore(chain: ChainId, stored: &StoredCursor) -> Result<(u64, Window, WrittenParts), BadCursor> {
    let cursor = &stored.cursor;
    if cursor.chain_id != chain.0 {
        return Err(BadCursor::Chain(cursor.chain_id));
    }
    let mut heads: VecDeque<Head> = read_blocks(&cursor.window)?.into();
    let mut first = cursor.window.first().filter(|block| block.first).map(|block| block.number);
    let mut written = WrittenParts::default();
    let mut above = u64::MAX;
    while let (Some(bottom), Some(lowest)) = (cursor.bottom_number, heads.front().copied())
        && lowest.number > bottom
        && let Some((number, part)) = stored.parts.range(..above.min(lowest.number / PART_BLOCKS)).next_back()
    {
        above = *number;
        let below = read_blocks(&part.window)?;
        let Some(last) = below.last().filter(|last| lowest.stands_on(last)) else {
            // Of a branch before a reorg, maybe, after which the chain skips its numbers. It is to be deleted or written again.
            written.0.insert(above, (B256::ZERO, Vec::new()));
            continue;
        };
        written.0.insert(last.number / PART_BLOCKS, (last.hash, read_doubts(&part.window)?));
        first = part.window.first().filter(|block| block.first).map(|block| block.number);
        below.into_iter().rev().take_while(|head| head.number >= bottom).for_each(|head| heads.push_front(head));
    }
    let whole = heads.front().is_none_or(|bottom| first == Some(bottom.number));
    let mut window = Window::new(heads, whole, cursor.finalized_number);
    for block in stored.doubtful() {
        let content = read_content(block)?;
        if let Some(head) = window.at(block.number).filter(|head| head.hash.as_slice() == block.hash.as_ref()).copied() {
            window.doubt(&head, content);
        }
    }
    Ok((cursor.sequence, window, written))
}

/// Reads what is in doubt of blocks.
fn read_doubts(window: &[chain_cursor::Block]) -> Result<Vec<B256>, BadCursor> {
    window.iter().filter(|block| !block.unagreed_content.is_empty()).map(read_content).collect()
}

fn read_content(block: &chain_cursor::Block) -> Result<B256, BadCursor> {
    B256::try_from(block.unagreed_content.as_ref()).map_err(|_| BadCursor::Hash(block.number))
}

/// Reads blocks, each of which is the parent of the next. Where numbers are skipped, the parent's hash says so.
fn read_blocks(window: &[chain_cursor::Block]) -> Result<Vec<Head>, BadCursor> {
    let mut blocks: Vec<Head> = Vec::with_capacity(window.len());
    for block in window {
        let hash = |bytes: &[u8]| B256::try_from(bytes).map_err(|_| BadCursor::Hash(block.number));
        let parent_hash = match blocks.last() {
            Some(below) if block.parent_hash.is_empty() && below.number.checked_add(1) == Some(block.number) => below.hash,
            Some(below) if below.hash.as_slice() != block.parent_hash.as_ref() || below.number >= block.number => {
                return Err(BadCursor::Gap(block.number));
            }
            _ => hash(&block.parent_hash)?,
        };
        blocks.push(Head { number: block.number, hash: hash(&block.hash)?, parent_hash, timestamp: block.timestamp });
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    const CHAIN: ChainId = ChainId(42_161);
    /// The head of Arbitrum, about.
    const START: u64 = 300_000_017;

    fn head(number: u64, fork: u64) -> Head {
        let hash = |number: u64, fork: u64| B256::from(topics::U256::from(number * 1000 + fork));
        Head {
            number,
            hash: hash(number, fork),
            parent_hash: hash(number.wrapping_sub(1), 0),
            timestamp: 1_700_000_000 + number,
        }
    }

    fn window(count: u64, whole: bool) -> Window {
        Window::new((START..START + count).map(|number| head(number, 0)), whole, Some(START))
    }

    fn store(stored: &mut StoredCursor, sequence: u64, window: &Window, written: &mut WrittenParts) -> usize {
        let records = encode(CHAIN, sequence, window, "", written);
        let bytes = records.iter().map(|(key, record)| key.len() + record.as_ref().map_or(0, |r| 6 + r.encoded_len())).sum();
        stored.take(CHAIN, records);
        bytes
    }

    #[test]
    fn a_cursor_brings_the_window_back() {
        for (count, whole) in [(0, true), (1, true), (1, false), (15, true), (16, true), (256, true), (256, false)] {
            let (window, mut stored, mut written) = (window(count, whole), StoredCursor::default(), WrittenParts::default());
            store(&mut stored, 9, &window, &mut written);
            assert_eq!(restore(CHAIN, &stored), Ok((9, window, written)), "{count} blocks, {whole}");
        }
    }

    /// After a restart the block's hash would be witnessed, which says nothing of its content.
    #[test]
    fn a_cursor_remembers_which_content_one_endpoint_alone_has_given() {
        let (mut window, mut stored, mut written) = (window(200, false), StoredCursor::default(), WrittenParts::default());
        for number in [START + 1, START + 100, START + 199] {
            let content = B256::from(topics::U256::from(number));
            window.doubt(&head(number, 0), content);
        }
        store(&mut stored, 9, &window, &mut written);
        let (_, restored, _) = restore(CHAIN, &stored).unwrap();
        assert_eq!(restored, window);
        assert_eq!(restored.doubts().count(), 3);
        assert_eq!(stored.lowest_doubt(), Some(START + 1), "whether or not it can be restored");

        // What was trusted since is in doubt no longer, though its part was written and has no other block.
        let (_, _, mut read) = restore(CHAIN, &stored).unwrap();
        assert_eq!(read, written);
        [START + 1, START + 100].iter().for_each(|number| {
            window.trust(&head(*number, 0), B256::from(topics::U256::from(*number)));
        });
        store(&mut stored, 10, &window, &mut read);
        assert_eq!((restore(CHAIN, &stored).unwrap().1, stored.lowest_doubt()), (window, Some(START + 199)));
        assert_eq!(StoredCursor::default().lowest_doubt(), None);
    }

    #[test]
    fn a_part_that_a_reorg_has_made_a_hole_is_deleted_and_hides_nothing_below() {
        let part = START / PART_BLOCKS * PART_BLOCKS;
        let below = part + PART_BLOCKS - 1;
        let above = Head { parent_hash: head(below, 0).hash, ..head(below + 2 * PART_BLOCKS, 1) };
        let before = Window::new((part..above.number).map(|number| head(number, 0)), false, None);
        let after = Window::new((part..=below).map(|number| head(number, 0)).chain([above]), false, None);
        for is_known in [true, false] {
            let (mut stored, mut written) = (StoredCursor::default(), WrittenParts::default());
            store(&mut stored, 9, &before, &mut written);
            if !is_known {
                written = WrittenParts::default();
            }
            store(&mut stored, 10, &after, &mut written);
            let (_, window, mut written) = restore(CHAIN, &stored).unwrap();
            assert_eq!(window, after, "{is_known}");
            store(&mut stored, 11, &after, &mut written);
            assert_eq!(stored.parts.len(), 1, "{is_known}");
        }
    }

    /// Some 5,000 blocks wait for finality, and each block is a batch.
    #[test]
    fn at_arbitrums_pace_a_batch_writes_less_than_4_kb_and_nothing_of_the_window_is_lost() {
        let (mut window, mut stored, mut written) = (window(5_000, false), StoredCursor::default(), WrittenParts::default());
        store(&mut stored, 1, &window, &mut written);
        let (mut most, mut sum) = (0, 0);
        for step in 0..400 {
            let next = window.tip().unwrap().number + 1;
            window.push(head(next, 0));
            window.finalize(&head(next - 5_000, 0));
            let bytes = store(&mut stored, step, &window, &mut written);
            (most, sum) = (most.max(bytes), sum + bytes);
            assert_eq!(restore(CHAIN, &stored), Ok((step, window.clone(), written.clone())));
        }
        assert!(most < 4_096 && sum / 400 < 1_500, "{most} bytes at most, {} on average", sum / 400);
        assert!(stored.parts.len() < 160, "{} parts of 157 are left", stored.parts.len());
    }

    #[test]
    fn a_reorg_over_parts_writes_them_anew() {
        let (mut window, mut stored, mut written) = (window(200, true), StoredCursor::default(), WrittenParts::default());
        window = Window::new(window.iter().copied().collect::<Vec<_>>(), true, None);
        store(&mut stored, 1, &window, &mut written);
        for depth in [1, 40, 100, 199] {
            for _ in 0..depth {
                window.pop();
            }
            store(&mut stored, 2, &window, &mut written);
            assert_eq!(restore(CHAIN, &stored), Ok((2, window.clone(), written.clone())), "{depth} blocks down");
            for number in window.tip().unwrap().number + 1..START + 200 {
                let parent_hash = window.tip().unwrap().hash;
                window.push(Head { parent_hash, ..head(number, depth) });
            }
            store(&mut stored, 3, &window, &mut written);
            assert_eq!(restore(CHAIN, &stored), Ok((3, window.clone(), written.clone())), "after {depth} blocks");
        }
    }

    /// A window whose chain skips these numbers.
    fn skipping(count: u64, skipped: &[u64]) -> Window {
        let mut window = Window::new([], true, None);
        for number in (START..START + count).filter(|number| !skipped.contains(number)) {
            let parent_hash = window.tip().map_or(B256::ZERO, |tip| tip.hash);
            window.push(Head { parent_hash, ..head(number, 0) });
        }
        window
    }

    #[test]
    fn a_window_over_numbers_that_the_chain_skips_is_brought_back() {
        let part = (START / PART_BLOCKS + 2) * PART_BLOCKS;
        let all = |from: u64, to: u64| (from..to).collect::<Vec<_>>();
        let holes = [
            vec![START + 3],
            // The first and the last number of a part, both, a part, and more than two.
            vec![part],
            vec![part - 1],
            all(part - 1, part + 1),
            all(part, part + PART_BLOCKS),
            all(part - 5, part + 2 * PART_BLOCKS + 5),
            // Below the tip.
            all(START + 150, START + 199),
        ];
        for skipped in holes {
            let (mut window, mut stored, mut written) =
                (skipping(200, &skipped), StoredCursor::default(), WrittenParts::default());
            store(&mut stored, 1, &window, &mut written);
            assert_eq!(restore(CHAIN, &stored), Ok((1, window.clone(), written.clone())), "{skipped:?}");
            // A reorg into the hole, and blocks where there were none.
            while window.tip().unwrap().number >= skipped[0] {
                window.pop();
            }
            store(&mut stored, 2, &window, &mut written);
            assert_eq!(restore(CHAIN, &stored), Ok((2, window.clone(), written.clone())), "{skipped:?}");
            for number in skipped[0]..START + 200 {
                let parent_hash = window.tip().unwrap().hash;
                window.push(Head { parent_hash, ..head(number, 1) });
            }
            store(&mut stored, 3, &window, &mut written);
            assert_eq!(restore(CHAIN, &stored), Ok((3, window, written)), "{skipped:?}");
        }
    }

    #[test]
    fn a_window_ends_above_a_part_that_is_missing_or_of_another_branch() {
        let (window, mut stored, mut written) = (window(100, true), StoredCursor::default(), WrittenParts::default());
        store(&mut stored, 1, &window, &mut written);
        let middle = (START + 50) / PART_BLOCKS;
        let mut other = stored.clone();
        other.set_part(middle, None);
        let (_, short, _) = restore(CHAIN, &other).unwrap();
        assert_eq!(short.bottom().map(|head| head.number), Some((middle + 1) * PART_BLOCKS));
        assert!(!short.is_whole());
        let mut part = stored.parts[&middle].clone();
        part.window.last_mut().unwrap().hash = vec![7; 32].into();
        stored.set_part(middle, Some(part));
        assert_eq!(restore(CHAIN, &stored).unwrap().1, short);
    }

    /// As cursors were before they had parts.
    #[test]
    fn a_cursor_that_has_the_whole_window_is_read_and_then_split() {
        let whole = window(100, true);
        let (mut stored, mut written) = (StoredCursor::default(), WrittenParts::default());
        stored.cursor = ChainCursor {
            chain_id: CHAIN.0,
            sequence: 4,
            window: blocks(&whole, ..),
            finalized_number: whole.finalized(),
            ..ChainCursor::default()
        };
        assert_eq!(restore(CHAIN, &stored), Ok((4, whole.clone(), WrittenParts::default())));
        store(&mut stored, 5, &whole, &mut written);
        assert!(stored.cursor.window.len() <= 32);
        assert_eq!(restore(CHAIN, &stored), Ok((5, whole, written)));
    }

    #[test]
    fn a_cursor_that_is_not_ours_is_refused() {
        let (mut stored, mut written) = (StoredCursor::default(), WrittenParts::default());
        // Three blocks in the middle of a part.
        let window = Window::new((START..START + 3).map(|number| head(number, 0)), true, None);
        store(&mut stored, 9, &window, &mut written);
        assert_eq!(restore(ChainId(8), &stored), Err(BadCursor::Chain(CHAIN.0)));
        let mut gap = stored.clone();
        gap.cursor.window.remove(1);
        assert_eq!(restore(CHAIN, &gap), Err(BadCursor::Gap(START + 2)));
        gap.cursor.window[1].parent_hash = stored.cursor.window[1].hash.clone();
        assert_eq!(restore(CHAIN, &gap), Err(BadCursor::Gap(START + 2)), "its parent is the block that is missing");
        stored.cursor.window[2].hash.truncate(31);
        assert_eq!(restore(CHAIN, &stored), Err(BadCursor::Hash(START + 2)));
    }

    /// As `ctrip resume` does after a reorg that is deeper than the window.
    #[test]
    fn a_window_that_reaches_deeper_than_the_one_before_is_brought_back_whole() {
        let (mut stored, mut written) = (StoredCursor::default(), WrittenParts::default());
        store(&mut stored, 1, &window(300, false), &mut written);
        let deeper = Window::new((START - 500..START + 300).map(|number| head(number, 0)), false, None);
        written = stored.outdated_parts();
        store(&mut stored, 1, &deeper, &mut written);
        assert_eq!(restore(CHAIN, &stored).unwrap().1, deeper);
    }

    /// As `ctrip chain restart` does.
    #[test]
    fn a_chain_that_begins_anew_leaves_no_part_behind() {
        let (mut stored, mut written) = (StoredCursor::default(), WrittenParts::default());
        store(&mut stored, 1, &window(300, true), &mut written);
        // One that the window does not reach, since the part above it is missing.
        stored.set_part((START + 100) / PART_BLOCKS, None);
        written = stored.outdated_parts();
        store(&mut stored, 2, &Window::default(), &mut written);
        assert!(stored.parts.is_empty());
        assert_eq!(restore(CHAIN, &stored), Ok((2, Window::default(), WrittenParts::default())));
    }

    #[test]
    fn a_key_names_a_part_of_its_chain_alone() {
        assert_eq!(part_of_key(ChainId(1), b"1/17"), Some(17));
        for key in ["1", "10/17", "1/x", "1/", "/17", "detector/1", "detector/17"] {
            assert_eq!(part_of_key(ChainId(1), key.as_bytes()), None, "{key}");
        }
    }
}
