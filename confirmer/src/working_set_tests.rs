use super::*;
use topics::{BlockRef, Kind};

fn pays(source: Source, amount: u64) -> Transfer {
    let id = TransferId { chain: ChainId(1), block: B256::repeat_byte(2), transaction: B256::ZERO, source, index: 0 };
    Transfer { id, token: None, from: Address::ZERO, to: Address::ZERO, amount: Amount::from(amount), transaction_index: 0 }
}

fn replayed(transfers: Vec<Transfer>) -> Matches {
    Matches {
        chain: ChainId(1),
        sequence: 0,
        kind: Kind::Replayed,
        block: BlockRef { number: 2, hash: B256::repeat_byte(2) },
        parent: B256::repeat_byte(1),
        parent_number: None,
        timestamp: 1_000,
        safe: None,
        finalized: None,
        witnessed: None,
        transfers,
        part: 0,
        parts: 0,
    }
}

/// Whoever could trace a block when it came may be gone when it is replayed: then its traces are left out.
#[test]
fn a_replayed_block_may_lack_what_contracts_sent_and_nothing_else() {
    let (chains, log, trace) = (Chains::from(Vec::new()), pays(Source::Log, 1), pays(Source::Trace, 2));
    let known = |transfer: &Transfer| {
        let transfer = transfer.clone();
        let known = KnownTransfer { transfer, number: 2, timestamp: 1_000, listed: true, below_minimum: false, on_chain: true };
        (known.transfer.id, known)
    };
    let applied = HashMap::from([known(&log), known(&trace)]);
    let working = WorkingSet::new(&chains, Vec::new(), Vec::new(), applied, HashMap::new());
    let is_refused = |record: Matches| {
        let cause = Cause { chain: record.chain, block: record.block, timestamp: record.timestamp };
        working.check_replayed(&cause, &record).is_err()
    };
    assert!(!is_refused(replayed(vec![log.clone(), trace.clone()])));
    assert!(!is_refused(replayed(vec![log.clone()])));
    assert!(is_refused(replayed(vec![trace.clone()])));
    assert!(is_refused(replayed(vec![log.clone(), pays(Source::Trace, 3)])), "another amount");
    assert!(is_refused(Matches { timestamp: 1_001, ..replayed(vec![log]) }), "another time");
}
