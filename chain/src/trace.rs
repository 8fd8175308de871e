//! Coin that contracts move, read from what tracers tell of a block. Pure.
//!
//! Two formats, one meaning: [`calls`] reads geth's `callTracer`, [`flat`] Parity's `trace_block`. Both give the frames that
//! moved coin, and here they are held against the block: traces have no root that would prove them, but each has to be of
//! its transaction, and to agree with the receipt on whether that succeeded.

use crate::block::{Block, Transaction};
use crate::fetch::Status;
use crate::proof::Unproven;
use alloy::primitives::{Address, B256, U256};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use std::fmt;

mod calls;
mod flat;

/// Which of the two traces an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracer {
    /// `debug_traceBlockByHash` with geth's `callTracer`.
    CallTracer,
    /// `trace_block`, as Parity had it first.
    TraceBlock,
}

/// Coin that moved inside a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalTransfer {
    /// Who gave it.
    pub from: Address,
    /// Who got it.
    pub to: Address,
    /// Base units, never zero.
    pub value: U256,
    /// The transaction.
    pub transaction_hash: B256,
    /// The transaction's position in the block.
    pub transaction_index: u32,
    /// Position among the transaction's frames that moved coin, depth first; the transaction's own value is 0.
    pub frame: u32,
}

/// Why a tracer's answer is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It can't be read.
    #[error("reading the trace")]
    Malformed(#[from] serde_json::Error),
    /// It is of another block, or contradicts the receipts.
    #[error(transparent)]
    Unproven(#[from] Unproven),
}

/// The transfers in a tracer's answer (the JSON of the result), in order of execution.
///
/// What a transaction itself says is not repeated: its own value is left out, but for that of a creation, whose recipient only
/// the trace knows.
///
/// # Errors
/// When it can't be read, or does not fit the block.
pub fn internal_transfers(
    block: &Block,
    statuses: &[Status],
    tracer: Tracer,
    answer: &str,
) -> Result<Vec<InternalTransfer>, TraceError> {
    let traces = match tracer {
        Tracer::CallTracer => calls::read(answer)?,
        Tracer::TraceBlock => flat::read(block, answer)?,
    };
    Ok(assemble(block, statuses, &traces)?)
}

/// What a frame does with coin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Hands it to the recipient.
    Call,
    /// Hands it to a contract that it makes.
    Create,
    /// Hands on all that a contract has.
    Destroy,
    /// Runs code of others with the caller's coin (DELEGATECALL, CALLCODE), or may not move any (STATICCALL).
    Borrow,
    /// Pays a block's producer, in no transaction.
    Reward,
    /// Something new.
    Unknown,
}

/// Of geth's or Parity's name, in whatever case.
impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Kind;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the kind of a frame, like CALL")
            }

            fn visit_str<E>(self, name: &str) -> Result<Kind, E> {
                let is = |names: &[&str]| names.iter().any(|one| name.eq_ignore_ascii_case(one));
                Ok(match () {
                    () if is(&["CALL"]) => Kind::Call,
                    () if is(&["CREATE", "CREATE2"]) => Kind::Create,
                    () if is(&["SELFDESTRUCT", "SUICIDE"]) => Kind::Destroy,
                    () if is(&["DELEGATECALL", "STATICCALL", "CALLCODE"]) => Kind::Borrow,
                    () if is(&["REWARD"]) => Kind::Reward,
                    () => Kind::Unknown,
                })
            }
        }
        deserializer.deserialize_str(Name)
    }
}

/// A frame, as far as it concerns coin.
#[derive(Clone, Copy, Debug)]
struct Frame {
    kind: Kind,
    from: Option<Address>,
    to: Option<Address>,
    value: U256,
    failed: bool,
}

impl Frame {
    /// Whether it gives coin to somebody. A frame of a kind that nobody knows is listed too: it is refused later.
    fn moves(&self) -> bool {
        !self.value.is_zero() && self.kind != Kind::Borrow && (self.from.is_none() || self.from != self.to)
    }
}

/// What a tracer tells of one transaction.
#[derive(Debug)]
struct Trace {
    /// `None` where the node leaves it out: then the order counts.
    hash: Option<B256>,
    top: Frame,
    /// Those below the top frame that moved coin and did not fail, depth first.
    moved: Vec<Frame>,
}

/// Holds traces against the block, and numbers what moved.
fn assemble(block: &Block, statuses: &[Status], traces: &[Trace]) -> Result<Vec<InternalTransfer>, Unproven> {
    let unproven = |what: String, expected: String, got: String| Unproven::new(block.number, what, expected, got);
    // Bor traces its state sync or does not; without hashes the number of traces tells.
    let all_traced = traces.len() == block.transactions.len();
    let mut transfers = Vec::new();
    let mut rest = traces.iter();
    let mut next = rest.next();
    for (index, transaction) in (0_u32..).zip(&block.transactions) {
        let fits =
            |trace: &&Trace| trace.hash.map_or(!transaction.is_state_sync() || all_traced, |hash| hash == transaction.hash);
        let Some(trace) = next.filter(fits) else {
            if transaction.is_state_sync() {
                continue;
            }
            let got = next.map_or_else(|| "none".to_owned(), |trace| trace.hash.unwrap_or_default().to_string());
            return Err(unproven(format!("the trace of transaction {index}"), transaction.hash.to_string(), got));
        };
        next = rest.next();
        let status = usize::try_from(index).ok().and_then(|index| statuses.get(index)).copied().unwrap_or(Status::Unknown);
        let what = |part: &str| format!("the trace of transaction {index} ({part})");
        let runs = Runs::of(transaction);
        let contradicts = match status {
            Status::Unknown => false,
            Status::Success => trace.top.failed && runs != Runs::OfItsOwn,
            Status::Reverted => !trace.top.failed && runs == Runs::Plainly,
        };
        if contradicts {
            let failed = if trace.top.failed { "a failure" } else { "a success" };
            return Err(unproven(what("outcome"), format!("{status:?}, as its receipt says"), failed.to_owned()));
        }
        if status == Status::Reverted || trace.top.failed {
            continue;
        }
        if runs != Runs::OfItsOwn {
            same_call(transaction, &trace.top).map_err(|(part, expected, got)| unproven(what(part), expected, got))?;
        }
        let own = Some(&trace.top).filter(|top| transaction.to.is_none() && top.moves());
        let first = if own.is_some() { 0 } else { 1 };
        for (frame, place) in own.into_iter().chain(&trace.moved).zip(first..) {
            let (Kind::Call | Kind::Create | Kind::Destroy, Some(from), Some(to)) = (frame.kind, frame.from, frame.to) else {
                let expected = "a call, a creation or a destruction, from and to somebody".to_owned();
                return Err(unproven(what("a frame with value"), expected, format!("{frame:?}")));
            };
            transfers.push(InternalTransfer {
                from,
                to,
                value: frame.value,
                transaction_hash: transaction.hash,
                transaction_index: index,
                frame: place,
            });
        }
    }
    match next {
        None => Ok(transfers),
        Some(extra) => {
            let got = format!("another one, of {}", extra.hash.unwrap_or_default());
            Err(unproven("the number of traces".to_owned(), "one a transaction".to_owned(), got))
        }
    }
}

/// How a transaction's top frame has to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    /// As Ethereum's own types: the top frame is the transaction, and fails with it.
    Plainly,
    /// As those, but it can fail before it runs: OP's deposits, which are in a block whatever becomes of them.
    OnceStarted,
    /// Otherwise: Arbitrum's own types, Bor's state sync, and types that nobody knows.
    OfItsOwn,
}

impl Runs {
    fn of(transaction: &Transaction) -> Self {
        match transaction.kind {
            _ if transaction.is_state_sync() => Self::OfItsOwn,
            0..=4 => Self::Plainly,
            0x7e => Self::OnceStarted,
            _ => Self::OfItsOwn,
        }
    }
}

type Mismatch = (&'static str, String, String);

fn same_call(transaction: &Transaction, top: &Frame) -> Result<(), Mismatch> {
    let text = |address: Option<Address>| address.map_or_else(|| "nobody".to_owned(), |address| address.to_string());
    let kind = if transaction.to.is_some() { Kind::Call } else { Kind::Create };
    if top.from != Some(transaction.from) {
        return Err(("from", transaction.from.to_string(), text(top.from)));
    }
    if transaction.to.is_some() && top.to != transaction.to {
        return Err(("to", text(transaction.to), text(top.to)));
    }
    if top.value != transaction.value {
        return Err(("value", transaction.value.to_string(), top.value.to_string()));
    }
    if top.kind != kind {
        return Err(("kind", format!("{kind:?}"), format!("{:?}", top.kind)));
    }
    Ok(())
}
