//! An outgoing transaction: what is known of it, what happens to it, and what is to be done. [`step`](super::step) has the
//! rules.

use super::answers::Answer;
use super::fees::{Fees, MIN_RAISE, Market};
use alloy::primitives::{B256, U256};
use chain::Chain;
use topics::BlockRef;

/// What one is for. A filler ([`Kind::Gap`]) pays nobody: it sends nothing to its sender, for a nonce that would hold up the
/// lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sweep,
    Funding,
    Refund,
    Payout,
    Deploy,
    Gap,
}

impl Kind {
    pub const ALL: [Self; 6] = [Self::Sweep, Self::Funding, Self::Refund, Self::Payout, Self::Deploy, Self::Gap];

    /// As Postgres has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sweep => "sweep",
            Self::Funding => "funding",
            Self::Refund => "refund",
            Self::Payout => "payout",
            Self::Deploy => "deploy",
            Self::Gap => "gap",
        }
    }
}

/// What is known of one, as Postgres keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub kind: Kind,
    pub phase: Phase,
    /// The nonce of those attempts that can still be mined. All of them have this one, so that the chain takes one of them at
    /// most.
    pub nonce: Option<u64>,
    /// All that were signed, oldest first; those of a former nonce too.
    pub attempts: Vec<Attempt>,
    /// It is not wanted any more: a transaction that does nothing is to take its nonce.
    pub dropping: bool,
    /// Blocks said what can't be with all else that is known. Nothing that pays is signed or sent any more, and it is never
    /// over by itself: a person has to look. The first such word.
    pub frozen: Option<String>,
    /// The most that a unit of gas may cost of what pays, in wei, where that is less than [`Pace::max_fee`]: its sender can't
    /// pay more. What cancels it may cost more.
    pub max_fee: Option<u128>,
    /// A node asked for more than the last attempt offers.
    pub underpriced: bool,
    /// When something was last tried in vain, in Unix seconds: to sign it, or to read a receipt.
    pub tried: Option<u64>,
    /// What was told last, so that it is told once.
    pub told: Option<Notice>,
}

/// A signed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub hash: B256,
    pub nonce: u64,
    pub fees: Fees,
    /// It does nothing but take the nonce.
    pub cancels: bool,
    /// Kafka has acknowledged its record. Nothing is sent to a node before.
    pub acknowledged: bool,
    /// How many blocks had been read when a node took it first; `None` if none has.
    pub accepted: Option<u64>,
    /// When it was sent to a node first, and last, in Unix seconds. Of a send whose outcome was not written down it says
    /// nothing.
    pub first_sent: Option<u64>,
    pub last_sent: Option<u64>,
}

impl Attempt {
    /// One that was just signed: neither Kafka nor a node has it.
    pub fn signed(hash: B256, nonce: u64, fees: Fees, cancels: bool) -> Self {
        Self { hash, nonce, fees, cancels, acknowledged: false, accepted: None, first_sent: None, last_sent: None }
    }
}

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not signed: it has no nonce.
    Queued,
    /// Signed and stored, and not known to have been sent.
    Signed,
    /// Sent to a node.
    Broadcast,
    /// Its nonce is used in a block that was not read. If the transaction there is one of ours, its receipt says so; what
    /// nobody has a receipt of may be lost to an index, and is left to a person.
    Lost,
    /// In a block.
    Mined(Mined),
    /// Somebody else's transaction used the nonce, in a block up to this number. Once that is final, none of ours can be mined,
    /// and it is queued again.
    Replaced(u64),
    /// In a final block, and it did what it was to do.
    Final(Mined),
    /// In a final block, and it was reverted.
    Failed(Mined),
    /// It was not wanted any more, and will never be mined: a final transaction that does nothing has its nonce, or it never
    /// had one.
    Dropped(Option<Mined>),
}

impl Phase {
    /// Whether nothing can change it any more.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Final(_) | Self::Failed(_) | Self::Dropped(_))
    }
}

/// An attempt in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mined {
    /// Of the attempt.
    pub hash: B256,
    pub block: BlockRef,
    /// `None` if its block was read without it: only the receipt has it then, and nothing is told before.
    pub succeeded: Option<bool>,
    pub gas_used: Option<u64>,
    /// What each unit of gas cost, in wei.
    pub gas_price: Option<u128>,
}

/// What happens to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// An attempt was signed, and is stored in the same transaction.
    Signed(Attempt),
    /// Kafka has the record of the attempt with this hash.
    Acknowledged(B256),
    /// Nodes answered when the attempt with this hash was sent.
    Answer(B256, Answer),
    /// An attempt is in a block of the chain, by `chain.blocks`.
    SeenInBlock(Mined),
    /// What nodes answered to [`Action::AskReceipt`], if they agree. It may have been true when they were asked only: blocks go
    /// on meanwhile. Of a block that was not read, it has to be final.
    Receipt(Option<Mined>),
    /// This block has left the chain, by `chain.blocks`.
    Removed(BlockRef),
    /// All above this number has left the chain, by `chain.blocks`, and blocks may be missing from what follows.
    Restarted(u64),
    /// This block and all below are final, and `chain.blocks` was read up to it.
    Final(u64),
    /// A transaction of the same sender that is none of ours has used the nonce, in the block `number`, by `chain.blocks`.
    ForeignNonce { nonce: u64, number: u64 },
    /// The chain counts so many transactions of the sender, up to a block below which none has one of ours that was not seen.
    Counted(u64),
    /// What was to be done could not be, for this reason. It is tried again after a pause.
    InVain(Notice),
    /// A person does not want it any more.
    Drop,
    /// Time passes, or a process begins: what is to be done is said anew.
    Tick,
}

/// What is to be done. All of it follows from the state, so that a crash loses none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sign and store an attempt: [`Input::Signed`].
    Sign(Order),
    /// Bring the record of this attempt to Kafka: [`Input::Acknowledged`].
    Publish(B256),
    /// Send this attempt to nodes: [`Input::Answer`].
    Broadcast(B256),
    /// Ask nodes for the receipts of its attempts: [`Input::Receipt`].
    AskReceipt,
    /// Fill what is missing below.
    FillGaps,
    /// Tell whoever runs this.
    Tell(Notice),
}

/// An attempt to sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// `None` is the next one of the lane.
    pub nonce: Option<u64>,
    pub fees: Fees,
    pub cancels: bool,
}

/// What holds one up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Notice {
    #[error("gas costs more than max_fee; it waits unsigned")]
    TooDear,
    #[error("it may not be raised beyond max_fee; it is sent again as it is")]
    AtCap,
    #[error("the sender can't pay for it{}", overshot.map(|wei| format!(": {wei} wei are missing")).unwrap_or_default())]
    InsufficientFunds { overshot: Option<U256> },
    #[error("a node refuses it, since it would fail")]
    Reverted,
    #[error(
        "each node refuses it after a while still, since it would fail, and none ever took it: it is cancelled, so that others \
         go on"
    )]
    GivenUp,
    #[error("nodes say that its nonce is used; blocks will tell by whom")]
    NonceUsed,
    #[error("nobody signs for its sender, or whoever does refuses")]
    NotSigned,
    #[error(
        "it is not signed, though its row asks for it: {0}; unless chains.yaml has named another treasury since, whoever has written that row may have stolen a login"
    )]
    NotAllowed(&'static str),
    #[error("how many transactions its sender has is not known: no block was read yet, or nodes do not agree")]
    NotCounted,
    #[error("its nonce is used in a block that was not read, and no receipt of ours is known: look what took it")]
    Lost,
    #[error("neither its block nor receipts say whether it succeeded")]
    StatusUnknown,
    #[error("it is frozen, since blocks contradict what is known (outgoing.frozen)")]
    Frozen,
    #[error("somebody else has used its nonce, with the same key; it is signed anew once that is final")]
    ForeignNonce,
}

/// The moment and the settings that a step depends on.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Unix seconds.
    pub time: u64,
    /// What gas costs, if known.
    pub market: Option<Market>,
    /// Whether it has the lowest nonce of its lane that waits for a block. All others wait for that one.
    pub is_lowest: bool,
    /// How many blocks of the chain were read, those included that have left it.
    pub blocks: u64,
    pub pace: Pace,
}

/// How patient the engine is. Times in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The most that a unit of gas may cost, in wei.
    pub max_fee: u128,
    /// How much a replacement raises both fees, in thousandths; at least [`MIN_RAISE`].
    pub raise: u32,
    /// An attempt that is not in a block is sent again after this: pools drop transactions.
    pub resend_after: u64,
    /// The lowest of a lane is raised after this, if a block was read meanwhile.
    pub stuck_after: u64,
    /// What a node asked more for is raised after this, so that a pool that wants no price drives none up at once.
    pub raise_after: u64,
}

impl Pace {
    /// Where chains.yaml says nothing.
    pub const USUAL: Self = Self { max_fee: 500_000_000_000, raise: 125, resend_after: 30, stuck_after: 60, raise_after: 5 };

    pub fn of(chain: &Chain) -> Self {
        Self { max_fee: chain.sweeping.max_fee, ..Self::USUAL }
    }

    /// The most that what pays may offer: so much less than `max_fee` that what cancels it can be a raise above.
    pub fn max_payload_fee(&self) -> u128 {
        self.max_fee.saturating_mul(1000) / (1000 + u128::from(self.raise.max(MIN_RAISE)))
    }
}

/// What an input that can't be leads to: it is set aside and told, and changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    #[error("no attempt has the hash {0}")]
    UnknownAttempt(B256),
    #[error("attempt {hash} has nonce {nonce}; expected {expected:?}")]
    OtherNonce { hash: B256, nonce: u64, expected: Option<u64> },
    #[error("nothing is to be signed now")]
    NotToBeSigned,
}

impl Outgoing {
    /// One that waits to be signed.
    pub fn queued(kind: Kind) -> Self {
        Self {
            kind,
            phase: Phase::Queued,
            nonce: None,
            attempts: Vec::new(),
            dropping: false,
            frozen: None,
            max_fee: None,
            underpriced: false,
            tried: None,
            told: None,
        }
    }

    /// The attempts whose receipts are asked for, and whether their block was read. What is in no block that was read counts in a
    /// final one.
    pub fn asks_receipts_of(&self) -> (Vec<B256>, bool) {
        match self.phase {
            Phase::Mined(mined) => (vec![mined.hash], true),
            _ => (self.live().map(|attempt| attempt.hash).collect(), false),
        }
    }

    /// The most that what pays may offer.
    pub fn max_payload_fee(&self, pace: &Pace) -> u128 {
        self.max_fee.map_or(u128::MAX, |most| most).min(pace.max_payload_fee())
    }

    /// The attempts that can still be mined, oldest first.
    pub fn live(&self) -> impl DoubleEndedIterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| self.nonce == Some(attempt.nonce))
    }

    /// Whether it waits for a block, so that its nonce holds up those above.
    pub fn waits_for_block(&self) -> bool {
        matches!(self.phase, Phase::Signed | Phase::Broadcast)
    }
}
