use std::fmt;
use std::str::FromStr;
use topics::{Address, Amount, BlockRef, ChainId, PaymentId, TransferId};
use uuid::Uuid;

/// A payment: what was asked for, and the facts that arrived since. Its status is not a fact of its own but follows from
/// them ([`Payment::status`]), so it depends on the surviving chain and not on the way there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// Identity.
    pub id: PaymentId,
    /// Whose it is.
    pub merchant: Uuid,
    /// The merchant's own reference.
    pub external_id: Option<String>,
    /// The merchant's JSON, as text.
    pub metadata: Option<String>,
    /// Where it is to be paid.
    pub chain: ChainId,
    /// The chain's name when the payment was made.
    pub chain_name: String,
    /// In what it is to be paid.
    pub asset: Asset,
    /// The deposit address, its own.
    pub address: Address,
    /// Which account key the address is from.
    pub xpub: String,
    /// i of /0/i.
    pub address_index: u32,
    /// What is to be paid.
    pub amount: Amount,
    /// What the merchant puts up with.
    pub terms: Terms,
    /// When a transfer counts for good.
    pub policy: Policy,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds; a block with a later timestamp is too late. [`NEVER`] for a deposit.
    pub expires_at: u64,
    /// It is a deposit at this static address: a payment that its transfer made.
    pub deposit_address: Option<Uuid>,
    /// The merchant cancelled it.
    pub cancelled: bool,
    /// The block whose timestamp expired it.
    pub expired_by: Option<u64>,
    /// In the order seen, those on the canonical chain only.
    pub transfers: Vec<Paid>,
    /// Number of its last event.
    pub sequence: u64,
    /// When that was.
    pub updated_at: u64,
}

/// What a merchant puts up with. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Base units of the payment's asset by which less is as good as the amount.
    pub underpaid_tolerance: Amount,
    /// Base units of the payment's asset by which more is no exception.
    pub overpaid_tolerance: Amount,
    /// What arrives after `expires_at` counts as well, so that an expired payment can still be paid.
    pub accept_late: bool,
}

/// The `expires_at` of what does not expire: after every block's timestamp, and the largest that Postgres keeps.
pub const NEVER: u64 = 0x7fff_ffff_ffff_ffff;

/// The asset of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    /// `None` is the chain's coin.
    pub token: Option<Token>,
    /// Digits after the point.
    pub decimals: u8,
}

/// A listed ERC-20 token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its symbol in chains.yaml.
    pub symbol: String,
    /// Its contract.
    pub address: Address,
}

/// When a transfer is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// With this many blocks from its own to the head, both counted; 0 is as good as 1.
    Confirmations(u32),
    /// When the `safe` block is not below its own.
    Safe,
    /// When the `finalized` block is not below its own.
    Finalized,
}

/// A transfer that reached a payment's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paid {
    /// Identity.
    pub id: TransferId,
    /// Its block.
    pub block: BlockRef,
    /// The block's, Unix seconds.
    pub timestamp: u64,
    /// Place of the transaction in the block.
    pub transaction_index: u32,
    /// The emitting contract; `None` is the coin.
    pub token: Option<Address>,
    /// Payer, as the transfer says.
    pub from: Address,
    /// What arrived.
    pub amount: Amount,
    /// It is of the payment's chain and asset, so it counts.
    pub credited: bool,
    /// It is the coin, or a token that chains.yaml lists. Others are kept and announced to nobody, as anyone can make one.
    pub listed: bool,
    /// The policy holds for it.
    pub confirmed: bool,
    /// For people who have to explain it.
    pub label: Label,
}

/// What chains.yaml called a transfer's chain and asset when it was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// The chain's name.
    pub chain: Option<String>,
    /// The token's symbol; the coin has none.
    pub token: Option<String>,
    /// Digits after the point, of the coin too.
    pub decimals: Option<u8>,
}

/// Where a payment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Waits for money.
    Pending,
    /// Paid in time, not deep enough.
    Detected,
    /// Paid in time, for good.
    Confirmed,
    /// Swept to the treasury.
    Settled,
    /// Not paid in time.
    Expired,
    /// Called off by the merchant.
    Cancelled,
}

/// What is off about a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exception {
    /// Something arrived in time, less than asked for by more than is tolerated.
    Underpaid,
    /// More arrived than was asked for by more than is tolerated.
    Overpaid,
    /// Something arrived for an expired payment and did not make it a paid one, or for a cancelled one.
    Late,
}

/// A text that names no status, exception or finality.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected one of {expected}, got {got:?}")]
pub struct Unknown {
    /// The names there are.
    pub expected: &'static str,
    /// What was there.
    pub got: String,
}

impl Status {
    /// The public name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Detected => "detected",
            Self::Confirmed => "confirmed",
            Self::Settled => "settled",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

impl FromStr for Status {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        [Self::Pending, Self::Detected, Self::Confirmed, Self::Settled, Self::Expired, Self::Cancelled]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| Unknown {
                expected: "pending, detected, confirmed, settled, expired, cancelled",
                got: text.to_owned(),
            })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Exception {
    /// The public name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Underpaid => "underpaid",
            Self::Overpaid => "overpaid",
            Self::Late => "late",
        }
    }
}

impl From<chain::Policy> for Policy {
    fn from(policy: chain::Policy) -> Self {
        match policy {
            chain::Policy::Confirmations(count) => Self::Confirmations(count),
            chain::Policy::Safe => Self::Safe,
            chain::Policy::Finalized => Self::Finalized,
        }
    }
}

impl Policy {
    /// The number that has to be reached, by the head or the tag, to confirm a transfer of block `number`.
    pub const fn due(self, number: u64) -> u64 {
        match self {
            Self::Confirmations(count) => number.saturating_add((count as u64).saturating_sub(1)),
            Self::Safe | Self::Finalized => number,
        }
    }

    /// The tag's name, or none.
    pub const fn finality(self) -> Option<&'static str> {
        match self {
            Self::Confirmations(_) => None,
            Self::Safe => Some("safe"),
            Self::Finalized => Some("finalized"),
        }
    }

    /// The count, 0 under a tag.
    pub const fn confirmations(self) -> u32 {
        match self {
            Self::Confirmations(count) => count,
            Self::Safe | Self::Finalized => 0,
        }
    }
}

impl Payment {
    /// Whether it is to be paid there and in that.
    pub fn asks_for(&self, chain: ChainId, token: Option<Address>) -> bool {
        self.chain == chain && self.asset.token.as_ref().map(|token| token.address) == token
    }

    /// All that arrived of the asset, in time or not. `None` if that exceeds 256 bits, which no chain's supply does.
    pub fn received(&self) -> Option<Amount> {
        self.credited().map(|t| t.amount).sum()
    }

    /// Follows from the facts alone.
    pub fn status(&self) -> Status {
        if self.cancelled {
            return Status::Cancelled;
        }
        let needed = self.needed();
        let reaches = |confirmed_only: bool| {
            let in_time = |t: &&Paid| self.terms.accept_late || t.timestamp <= self.expires_at;
            let parts = self.credited().filter(in_time).filter(|t| t.confirmed || !confirmed_only);
            parts.map(|t| t.amount).sum::<Option<Amount>>().is_none_or(|sum| sum >= needed)
        };
        if reaches(true) {
            Status::Confirmed
        } else if reaches(false) {
            Status::Detected
        } else if self.expired_by.is_some() {
            Status::Expired
        } else {
            Status::Pending
        }
    }

    /// With how much it counts as paid: the amount less the tolerance, and something in any case.
    pub fn needed(&self) -> Amount {
        let needed = self.amount.units().saturating_sub(self.terms.underpaid_tolerance.units());
        Amount::new(needed).max(Amount::from(1))
    }

    /// Follows from the facts alone.
    pub fn exception(&self) -> Option<Exception> {
        let received = self.received().unwrap_or(Amount::new(topics::U256::MAX));
        let most = Amount::new(self.amount.units().saturating_add(self.terms.overpaid_tolerance.units()));
        match self.status() {
            Status::Pending => (!received.is_zero()).then_some(Exception::Underpaid),
            Status::Detected | Status::Confirmed | Status::Settled => (received > most).then_some(Exception::Overpaid),
            Status::Expired if self.credited().any(|t| t.timestamp > self.expires_at) => Some(Exception::Late),
            Status::Expired => (!received.is_zero()).then_some(Exception::Underpaid),
            Status::Cancelled => (!received.is_zero()).then_some(Exception::Late),
        }
    }

    fn credited(&self) -> impl Iterator<Item = &Paid> {
        self.transfers.iter().filter(|t| t.credited)
    }
}
