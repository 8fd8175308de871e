//! Rows of the tables of outgoing transactions, and the state that they stand for.

use super::content::Content;
use super::fees::Fees;
use super::outgoing::{Attempt, Kind, Mined, Notice, Outgoing, Phase};
use alloy::eips::eip7702::SignedAuthorization;
use alloy::primitives::{Address, B256, Bytes, U256};
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use tokio_postgres::Row;
use topics::{BlockRef, ChainId};
use uuid::Uuid;

/// A sender on a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId {
    pub chain: ChainId,
    pub sender: Address,
}

impl LaneId {
    /// As parameters of a statement.
    pub(super) fn parameters(&self) -> (i64, &[u8]) {
        (bigint(self.chain.0), self.sender.as_slice())
    }
}

/// A row with its attempts.
#[derive(Clone, Debug)]
pub struct Stored {
    pub id: Uuid,
    pub lane: LaneId,
    pub content: Content,
    pub idempotency_key: String,
    pub request_hash: B256,
    pub outgoing: Outgoing,
}

/// The state of a row, its receipt, and the block in which somebody else has used its nonce.
pub fn phase_columns(phase: &Phase) -> (&'static str, Option<Mined>, Option<u64>) {
    match phase {
        Phase::Queued => ("queued", None, None),
        Phase::Signed => ("signed", None, None),
        Phase::Broadcast => ("broadcast", None, None),
        Phase::Lost => ("lost", None, None),
        Phase::Mined(mined) => ("mined", Some(*mined), None),
        Phase::Replaced(number) => ("replaced", None, Some(*number)),
        Phase::Final(mined) => ("final", Some(*mined), None),
        Phase::Failed(mined) => ("failed", Some(*mined), None),
        Phase::Dropped(mined) => ("dropped", *mined, None),
    }
}

/// The table's check allows no other.
pub fn read_kind(text: &str) -> Kind {
    Kind::ALL.into_iter().find(|kind| kind.as_str() == text).unwrap_or(Kind::Gap)
}

/// What is told of one that gas is too dear for. The planner, and an index of the schema, look for it.
pub const TOO_DEAR: &str = "too dear";
/// The same of one whose sender can't pay for it.
pub const UNPAID: &str = "insufficient funds";

const NOTICES: [(Notice, &str); 13] = [
    (Notice::TooDear, TOO_DEAR),
    (Notice::AtCap, "at the cap"),
    (Notice::InsufficientFunds { overshot: None }, UNPAID),
    (Notice::Reverted, "would fail"),
    (Notice::GivenUp, "given up"),
    (Notice::NonceUsed, "nonce used"),
    (Notice::ForeignNonce, "nonce used by another"),
    (Notice::NotSigned, "not signed"),
    (Notice::NotAllowed(""), "not allowed"),
    (Notice::NotCounted, "not counted"),
    (Notice::Lost, "lost"),
    (Notice::StatusUnknown, "status unknown"),
    (Notice::Frozen, "frozen"),
];

/// By how much funds are insufficient is not kept, nor why something is not allowed: it is told once, whatever it is.
pub fn told_text(notice: &Notice) -> &'static str {
    let is_same = |known: &Notice| std::mem::discriminant(known) == std::mem::discriminant(notice);
    NOTICES.iter().find(|(known, _)| is_same(known)).map_or("", |(_, text)| text)
}

fn read_told(text: &str) -> Option<Notice> {
    NOTICES.iter().find(|(_, known)| *known == text).map(|(notice, _)| *notice)
}

/// Reads a number that Postgres has given as text.
pub(crate) fn number<T: std::str::FromStr>(text: &str) -> Result<T, Failure>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(Failure::halt)
}

/// A row as `load` selects it.
pub fn read_row(row: &Row) -> Result<Stored, Failure> {
    let kind = read_kind(row.get(1));
    let lane = LaneId { chain: ChainId(unsigned(row.get(2))), sender: Address::from_slice(row.get(3)) };
    let authorizations: Vec<SignedAuthorization> = match row.get::<_, Option<&[u8]>>(8) {
        Some(mut list) => alloy::rlp::Decodable::decode(&mut list).map_err(Failure::halt)?,
        None => Vec::new(),
    };
    let content = Content {
        to: row.get::<_, Option<&[u8]>>(4).map(Address::from_slice),
        value: number::<U256>(row.get(5))?,
        data: Bytes::copy_from_slice(row.get(6)),
        gas_limit: unsigned(row.get(7)),
        authorizations,
    };
    let mined = match row.get::<_, Option<&[u8]>>(14) {
        None => None,
        Some(hash) => Some(Mined {
            hash: B256::from_slice(hash),
            block: BlockRef { hash: B256::from_slice(row.get(15)), number: unsigned(row.get(16)) },
            succeeded: row.get(17),
            gas_used: row.get::<_, Option<i64>>(18).map(unsigned),
            gas_price: row.get::<_, Option<&str>>(19).map(number).transpose()?,
        }),
    };
    let replaced = row.get::<_, Option<i64>>(20).map(unsigned);
    let phase = match (row.get::<_, &str>(9), mined, replaced) {
        ("queued", ..) => Phase::Queued,
        ("signed", ..) => Phase::Signed,
        ("broadcast", ..) => Phase::Broadcast,
        ("lost", ..) => Phase::Lost,
        ("mined", Some(mined), _) => Phase::Mined(mined),
        ("final", Some(mined), _) => Phase::Final(mined),
        ("failed", Some(mined), _) => Phase::Failed(mined),
        ("dropped", mined, _) => Phase::Dropped(mined),
        ("replaced", _, Some(number)) => Phase::Replaced(number),
        // The table's checks allow no other.
        (state, ..) => return Err(Failure::Halt(anyhow::anyhow!("outgoing {}: state {state}", row.get::<_, Uuid>(0)))),
    };
    let outgoing = Outgoing {
        kind,
        phase,
        nonce: row.get::<_, Option<i64>>(10).map(unsigned),
        attempts: Vec::new(),
        dropping: row.get(11),
        underpriced: row.get(12),
        told: row.get::<_, Option<&str>>(13).and_then(read_told),
        frozen: row.get(21),
        tried: row.get::<_, Option<i64>>(22).map(unsigned),
        max_fee: row.get::<_, Option<&str>>(23).map(number).transpose()?,
    };
    let request_hash = B256::from_slice(row.get(25));
    Ok(Stored { id: row.get(0), lane, content, idempotency_key: row.get(24), request_hash, outgoing })
}

/// An attempt as `load` selects it.
pub fn read_attempt(row: &Row) -> Result<Attempt, Failure> {
    Ok(Attempt {
        hash: B256::from_slice(row.get(1)),
        nonce: unsigned(row.get(2)),
        fees: Fees { tip: number(row.get(3))?, cap: number(row.get(4))? },
        cancels: row.get(5),
        acknowledged: row.get(6),
        first_sent: row.get::<_, Option<i64>>(7).map(unsigned),
        last_sent: row.get::<_, Option<i64>>(8).map(unsigned),
        accepted: row.get::<_, Option<i64>>(9).map(unsigned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One without a text of its own would be told at each turn.
    #[test]
    fn what_was_told_is_read_back() {
        for (notice, text) in NOTICES {
            assert_eq!((told_text(&notice), read_told(text)), (text, Some(notice)));
        }
        let missing = Notice::InsufficientFunds { overshot: Some(U256::ONE) };
        assert_eq!(read_told(told_text(&missing)), Some(Notice::InsufficientFunds { overshot: None }));
        let all = |notice: &Notice| match notice {
            Notice::TooDear | Notice::AtCap | Notice::InsufficientFunds { .. } | Notice::Reverted | Notice::GivenUp => (),
            Notice::NonceUsed | Notice::ForeignNonce | Notice::NotSigned | Notice::NotCounted | Notice::Lost => (),
            // One that is new here is missing above too.
            Notice::StatusUnknown | Notice::Frozen | Notice::NotAllowed(_) => (),
        };
        NOTICES.iter().for_each(|(notice, _)| all(notice));
    }
}
