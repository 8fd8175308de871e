//! A chain as configured: its nodes, tokens and confirmation policies.

use super::url::NodeUrl;
use crate::proof::Verify;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use topics::{Address, Amount, ChainId};

/// Decimals of every chain's coin: EVM balances count 10^-18.
pub const COIN_DECIMALS: u8 = 18;

/// One chain to follow.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its name in `chains.yaml`, in commands and in the API.
    pub name: String,
    /// EIP-155.
    pub id: ChainId,
    /// HTTP endpoints in order of preference. Never empty.
    pub rpc_urls: Vec<NodeUrl>,
    /// Websocket endpoints that announce new heads. May be empty: polling alone finds every block.
    pub ws_urls: Vec<NodeUrl>,
    /// How many providers must have given a block before money in it is confirmed; at most as many as `rpc_urls` has.
    pub witnesses: usize,
    /// A proof-of-authority chain. Only tools that sign need to know; blocks are read the same way.
    pub poa: bool,
    /// When a payment is confirmed, unless a tier says otherwise.
    pub policy: Policy,
    /// The policies for larger payments in the coin, by rising amount.
    pub tiers: Vec<Tier>,
    /// A transfer of less in the coin is kept and changes nothing. Base units; 0 is none.
    pub min_transfer: Amount,
    /// The first block to publish. `None`: the head at the first start. Ingest begins lower where a reorg could still bring
    /// money below it.
    pub start_block: Option<u64>,
    /// Time between two polls of the head.
    pub poll_interval: Duration,
    /// How old the newest processed block may be while new payments are accepted. `None`: any age.
    pub max_lag: Option<Duration>,
    /// How much of a block must be proven.
    pub verify: Verify,
    /// Whether to request call traces, which show coin that contracts send.
    pub traces: bool,
    /// How its money is moved to the treasury.
    pub sweeping: Sweeping,
    pub tokens: Vec<Token>,
    /// The tokens in doubt, and why: their contracts were not asked yet, or contradict the file. See [`Listing`](crate::Listing).
    pub doubts: BTreeMap<Address, String>,
}

/// How the money of a chain is swept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweeping {
    /// Where it goes. `None`: nothing is swept.
    pub treasury: Option<Address>,
    pub at: SweepAt,
    /// The most that a unit of gas may cost, in wei.
    pub max_fee: u128,
    /// The least that is worth a sweep, in base units of the coin. `None`: a multiple of what its gas may cost.
    pub minimum: Option<Amount>,
    /// What a transaction may cost beside its gas, in wei: a rollup's fee for its data on L1. 0 where the gas is all.
    pub l1_fee: Amount,
}

/// When a credit may leave its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SweepAt {
    /// Once it is confirmed, under the chain's policy too.
    #[default]
    Confirmed,
    /// Once its block is final.
    Finalized,
}

/// When a transfer counts as confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// After this many blocks, its own included.
    Confirmations(u32),
    /// Once the node's `safe` block covers its block.
    Safe,
    /// Once the node's `finalized` block covers its block.
    Finalized,
}

/// The policy for payments from an amount upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Base units of the asset.
    pub from: Amount,
    pub policy: Policy,
}

/// A token in which payments can be requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Unique on its chain, ignoring case.
    pub symbol: String,
    /// The token's contract.
    pub address: Address,
    pub decimals: u8,
    /// The policies for larger payments in this token, by rising amount.
    pub tiers: Vec<Tier>,
    /// A transfer of less is kept and changes nothing. Base units; 0 is none.
    pub min_transfer: Amount,
}

impl Token {
    /// The token's id across chains (CAIP-19): `eip155:<chain id>/erc20:<checksummed address>`.
    pub fn id(&self, chain: ChainId) -> String {
        format!("eip155:{chain}/erc20:{}", self.address.to_checksum(None))
    }
}

impl Chain {
    /// Whether `other` is followed in the same way: its tokens and policies make no difference to that.
    pub fn is_followed_as(&self, other: &Self) -> bool {
        fn followed(chain: &Chain) -> impl PartialEq {
            let Chain { name, id, rpc_urls, ws_urls, witnesses, start_block, poll_interval, verify, traces, .. } = chain;
            (name, id, rpc_urls, ws_urls, witnesses, start_block, poll_interval, verify, traces)
        }
        followed(self) == followed(other)
    }

    /// The tokens whose decimals are not in doubt: payments can be asked for in them, and what arrives in them is credited.
    pub fn tokens_in_no_doubt(&self) -> impl Iterator<Item = &Token> {
        self.tokens.iter().filter(|token| !self.doubts.contains_key(&token.address))
    }

    /// The providers of the endpoints, each once.
    pub fn providers(&self) -> BTreeSet<&str> {
        self.rpc_urls.iter().map(NodeUrl::provider).collect()
    }

    /// Why nobody would notice a block that an endpoint invents; `None` where other endpoints witness each block.
    pub fn unwitnessed(&self) -> Option<&'static str> {
        match (self.witnesses, self.providers().len()) {
            (2.., _) => None,
            (_, 0 | 1) => Some("it has one endpoint or provider, so nobody witnesses its blocks: it could invent a payment"),
            _ => Some("witnesses is 1, so nobody witnesses its blocks: any of its endpoints could invent a payment"),
        }
    }

    /// Finds a token by its symbol, ignoring case.
    pub fn token_by_symbol(&self, symbol: &str) -> Option<&Token> {
        self.tokens.iter().find(|token| token.symbol.eq_ignore_ascii_case(symbol))
    }

    /// Finds a token by its contract.
    pub fn token_by_address(&self, address: Address) -> Option<&Token> {
        self.tokens.iter().find(|token| token.address == address)
    }

    /// The least that a transfer of an asset has to be to count. `None` is the coin; 0 for a token that is not listed.
    pub fn min_transfer_of(&self, token: Option<Address>) -> Amount {
        match token {
            None => self.min_transfer,
            Some(address) => self.token_by_address(address).map_or(Amount::ZERO, |token| token.min_transfer),
        }
    }

    /// The policy for an amount of an asset: the highest tier that does not begin above the amount, otherwise the chain's
    /// policy. `None` is the coin. A token that is not listed has no tiers.
    pub fn policy_for(&self, token: Option<Address>, amount: Amount) -> Policy {
        let tiers = match token {
            None => self.tiers.as_slice(),
            Some(address) => self.token_by_address(address).map_or([].as_slice(), |token| token.tiers.as_slice()),
        };
        tiers.iter().rev().find(|tier| tier.from <= amount).map_or(self.policy, |tier| tier.policy)
    }
}
