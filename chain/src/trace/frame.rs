//! Call frames, the form that both tracers are read into.

use alloy::primitives::{Address, B256, U256};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use std::fmt;

/// What a frame does with coin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// Sends it to the recipient.
    Call,
    /// Sends it to the contract that it creates.
    Create,
    /// Sends on all coin of the contract that destroys itself.
    SelfDestruct,
    /// Moves none: runs foreign code with the caller's coin (DELEGATECALL, CALLCODE), or may not send any (STATICCALL).
    NoValue,
    /// Pays the block's producer, outside any transaction.
    Reward,
    /// A kind that we do not know.
    Unknown,
}

/// From geth's or Parity's name, whatever its case.
impl<'de> Deserialize<'de> for FrameKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = FrameKind;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the kind of a frame, e.g. CALL")
            }

            fn visit_str<E>(self, name: &str) -> Result<FrameKind, E> {
                let is = |names: &[&str]| names.iter().any(|one| name.eq_ignore_ascii_case(one));
                Ok(match () {
                    () if is(&["CALL"]) => FrameKind::Call,
                    () if is(&["CREATE", "CREATE2"]) => FrameKind::Create,
                    () if is(&["SELFDESTRUCT", "SUICIDE"]) => FrameKind::SelfDestruct,
                    () if is(&["DELEGATECALL", "STATICCALL", "CALLCODE"]) => FrameKind::NoValue,
                    () if is(&["REWARD"]) => FrameKind::Reward,
                    () => FrameKind::Unknown,
                })
            }
        }
        deserializer.deserialize_str(Name)
    }
}

/// A call frame, reduced to what concerns coin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub kind: FrameKind,
    pub from: Option<Address>,
    pub to: Option<Address>,
    pub value: U256,
    pub failed: bool,
}

impl Frame {
    /// Whether it sends coin to another address. True for an unknown kind with a value too, which is refused later.
    pub fn moves_coin(&self) -> bool {
        !self.value.is_zero() && self.kind != FrameKind::NoValue && (self.from.is_none() || self.from != self.to)
    }
}

/// One transaction's trace.
#[derive(Debug)]
pub(super) struct Trace {
    /// The transaction's hash. `None` if the node leaves it out; then the order counts.
    pub hash: Option<B256>,
    pub top: Frame,
    /// The frames below the top one that moved coin and did not fail, depth first.
    pub transfers_below: Vec<Frame>,
}
