//! Fuzz targets: what must hold for any bytes that a node or a client sends or a topic contains. A finding is a panic.
//!
//! `dev/fuzz` runs [`rpc`], [`record`] and [`body`] under libFuzzer (`targets/`); `tests/mutations.rs` runs them for a while in `make
//! check`. Both begin with [`mod@seeds`].

mod seeds;

use chain::{
    Block, Chain, FetchedBlock, Head, Log, Policy, Receipt, Receipts, Reply, Token, Tracer, Verify, internal_transfers,
};
use detector::WatchSet;
use detector::matching::{BlockView, Matcher, RecordHead};
use ingest::cursor::{StoredCursor, WrittenParts, encode, restore};
use ingest::records::{Change, FinalityTags, records};
use prost::Message as _;
pub use seeds::{Seeds, seeds};
use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;
use std::time::Duration;
use topics::{Address, Amount, ChainId, Matches, frame, wire};

/// A chain with a token.
static CHAINS: LazyLock<[Chain; 1]> = LazyLock::new(|| {
    let token = Token {
        symbol: "USDX".to_owned(),
        address: Address::repeat_byte(0x5f),
        decimals: 6,
        tiers: vec![],
        min_transfer: Amount::ZERO,
    };
    [Chain {
        name: "anvil".to_owned(),
        id: ChainId(31337),
        rpc_urls: vec![],
        ws_urls: vec![],
        witnesses: 1,
        poa: false,
        policy: Policy::Confirmations(3),
        tiers: vec![],
        min_transfer: Amount::ZERO,
        start_block: None,
        poll_interval: Duration::from_secs(1),
        max_lag: None,
        verify: Verify::Auto,
        traces: false,
        sweeping: chain::Sweeping::default(),
        tokens: vec![token],
        doubts: BTreeMap::new(),
    }]
});

/// A node's answers, one per line: a block, its receipts or logs, its traces. Any bytes must give an error, or a block that can
/// be published and matched.
pub fn rpc(data: &[u8]) {
    check_reply(data);
    let mut lines = data.splitn(3, |byte| *byte == b'\n').map(|line| std::str::from_utf8(line).unwrap_or_default());
    let (block, outcome, trace) =
        (lines.next().unwrap_or_default(), lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    // The result does not matter; it must not panic.
    let _ = serde_json::from_str::<Head>(block);
    let Ok(block) = Block::parse(block) else { return };
    let receipts = serde_json::from_str(outcome)
        .map(Receipts::All)
        .or_else(|_| serde_json::from_str::<Vec<Log>>(outcome).map(|logs| Receipts::Logs { logs, paying: HashMap::new() }));
    let Ok(receipts) = receipts else { return };
    let proven = [Verify::Roots, Verify::Auto, Verify::Bloom, Verify::Off]
        .map(|verify| FetchedBlock::new(block.clone(), receipts.clone(), verify).ok());
    if let [Some(strict), tolerant, ..] = &proven {
        assert_eq!(block.header_hash(), Some(strict.block.hash), "proven by roots, and the header does not hash");
        assert!(tolerant.is_some(), "what the strict proof accepts, the tolerant one refuses");
    }
    for mut fetched in proven.into_iter().flatten() {
        for tracer in [Tracer::CallTracer, Tracer::TraceBlock] {
            if let Ok(internal) = internal_transfers(&fetched.block, &fetched.statuses, tracer, trace) {
                assert!(internal.iter().all(|transfer| !transfer.value.is_zero() && transfer.from != transfer.to));
                fetched.internal = Some(internal);
            }
        }
        let (block, logs) = records(ChainId(1), 1, Change::Added(Box::new(fetched)), FinalityTags::default());
        check_matching(&block.encode_to_vec(), &logs.encode_to_vec());
    }
}

/// A node's reply to the batch for a block: reading it in one pass must give the same as reading its parts.
fn check_reply(data: &[u8]) {
    const METHODS: [&str; 2] = ["eth_getBlockByNumber", "eth_getBlockReceipts"];
    let reply = Reply::new(data.to_vec(), METHODS[0], "node");
    let whole: Option<(Block, Vec<Receipt>)> = reply.read();
    let pieces = reply.split(&METHODS);
    let Some((block, receipts)) = whole.filter(|(block, _)| block.header_hash() == Some(block.hash)) else { return };
    let Ok([Ok(one), Ok(two)]) = pieces.as_deref() else { panic!("read whole, and its pieces are {pieces:?}") };
    let one = Block::parse(one.get()).expect("a block that was read as part of a reply");
    let two: Vec<Receipt> = serde_json::from_str(two.get()).expect("receipts that were read as part of a reply");
    // Debug output shows every field.
    assert_eq!(format!("{block:?} {receipts:?}"), format!("{one:?} {two:?}"));
}

/// A framed record of any topic. The first byte splits the rest into a block and its logs.
pub fn record(data: &[u8]) {
    if let Some((length, rest)) = data.split_first() {
        let (block, logs) = rest.split_at_checked(usize::from(*length) * 8).unwrap_or((rest, &[]));
        check_matching(block, logs);
    }
    let Ok(message) = frame::payload(data) else { return };
    check_matching(message, message);
    if let Ok(cursor) = wire::ChainCursor::decode(message)
        && let chain = ChainId(cursor.chain_id)
        && let Ok((sequence, window, _)) = restore(chain, &StoredCursor::new(cursor))
    {
        let (mut again, mut written) = (StoredCursor::default(), WrittenParts::default());
        again.take(chain, encode(chain, sequence, &window, "", &mut written));
        assert_eq!(restore(chain, &again), Ok((sequence, window, written)), "a cursor changes when it is written again");
    }
    if let Ok(record) = wire::MatchesRecord::decode(message) {
        let _ = Matches::try_from(&record);
    }
    let _ = wire::LogsRecord::decode(message);
    let _ = wire::PaymentIntent::decode(message);
    let _ = wire::PaymentEvent::decode(message);
    let _ = wire::PaymentState::decode(message);
    let _ = wire::Quarantined::decode(message);
}

/// A request's body, for each route that takes one.
pub fn body(data: &[u8]) {
    api::fuzzing::read_body(data, CHAINS.as_slice());
}

/// The detector's lazy decoding must agree with Protobuf's own decoder.
fn check_matching(block: &[u8], logs: &[u8]) {
    let _ = RecordHead::read(block);
    let Ok(view) = BlockView::read(block) else { return };
    let decoded = wire::BlockRecord::decode(block);
    if let Ok(decoded) = &decoded {
        assert_eq!(
            (view.chain_id, view.sequence, view.number, view.hash, view.timestamp),
            (decoded.chain_id, decoded.sequence, decoded.number, decoded.hash.as_ref(), decoded.timestamp)
        );
    }
    let mut watched = WatchSet::default();
    for transaction in decoded.iter().flat_map(|decoded| &decoded.transactions) {
        watch(&mut watched, &transaction.to);
    }
    for log in wire::LogsRecord::decode(logs).iter().flat_map(|logs| &logs.logs) {
        let words = log.topics.iter().chain([&log.data]);
        words.for_each(|word| watch(&mut watched, word.get(12..32).unwrap_or_default()));
    }
    if let Ok(matches) = Matcher::default().matches(&watched, &view, logs) {
        for transfer in &matches.transfers {
            assert!(transfer.from != transfer.to && transfer.amount.first().is_some_and(|byte| *byte != 0), "{transfer:?}");
        }
        let _ = Matches::try_from(&matches);
    }
}

fn watch(watched: &mut WatchSet, address: &[u8]) {
    if let Ok(address) = Address::try_from(address) {
        watched.insert(address);
    }
}
