//! Parsing `chains.yaml`. Checks run inside the deserializer's visitors, so that each mistake is reported at its own line.

use super::chain::{COIN_DECIMALS, Chain, Policy, SweepAt, Sweeping, Tier, Token};
use super::error::ConfigError;
use super::keys::UniqueKeys;
use super::names::name_chain;
use super::presets;
use super::scalar::{ChainName, HttpUrl, RpcUrl, Scalar, TreasuryAddress, Whole, WsUrl};
use super::sweeping::{self, SweepingEntry};
use super::tiers::{self, Decimal, Finality, RawTier};
use super::tokens::Tokens;
use super::url::NodeUrl;
use crate::proof::Verify;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;
use std::time::Duration;
use topics::{Amount, ChainId};

/// The parsed `chains.yaml`, before the nodes are asked for missing chain ids.
#[derive(Debug)]
pub struct ChainsFile {
    pub(crate) entries: Vec<ChainEntry>,
}

/// One chain, whose id may still be missing.
#[derive(Debug)]
pub(crate) struct ChainEntry {
    pub name: String,
    pub chain_id: Option<ChainId>,
    pub rpc_urls: Vec<NodeUrl>,
    rest: EntrySettings,
}

#[derive(Debug)]
struct EntrySettings {
    ws_urls: Vec<NodeUrl>,
    witnesses: usize,
    poa: bool,
    policy: Option<Policy>,
    tiers: Vec<Tier>,
    min_transfer: Amount,
    start_block: Option<u64>,
    poll_interval_ms: Option<u64>,
    max_lag_s: Option<u64>,
    verify: Option<Verify>,
    traces: bool,
    sweeping: SweepingEntry,
    tokens: Vec<Token>,
}

impl ChainsFile {
    pub(super) fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        serde_norway::from_str(text).map_err(|error| {
            let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
            let message = error.to_string();
            // The location is printed in front of the message already.
            let end = message.rfind(" at line ").unwrap_or(message.len());
            let message = name_chain(message[..end].trim_start_matches('.'), text);
            ConfigError::Invalid { path: path.to_owned(), line, column, message }
        })
    }
}

impl ChainEntry {
    /// Completes the entry with the presets of its chain.
    pub(crate) fn into_chain(self, id: ChainId) -> Chain {
        let preset = presets::preset(id);
        let EntrySettings {
            ws_urls,
            witnesses,
            poa,
            policy,
            tiers,
            min_transfer,
            start_block,
            poll_interval_ms,
            max_lag_s,
            verify,
            traces,
            sweeping: SweepingEntry { treasury, at, max_fee, minimum, l1_fee },
            tokens,
        } = self.rest;
        let (max_fee, l1_fee) = (max_fee.unwrap_or(preset.max_fee), l1_fee.unwrap_or(preset.l1_fee));
        Chain {
            name: self.name,
            id,
            rpc_urls: self.rpc_urls,
            ws_urls,
            witnesses,
            poa,
            policy: policy.unwrap_or(preset.policy),
            tiers,
            min_transfer,
            start_block,
            poll_interval: Duration::from_millis(poll_interval_ms.unwrap_or(preset.poll_interval_ms)),
            max_lag: max_lag_s.or(preset.max_lag_s).map(Duration::from_secs),
            verify: verify.unwrap_or(preset.verify),
            traces,
            sweeping: Sweeping { treasury, at, max_fee, minimum, l1_fee },
            tokens,
            doubts: BTreeMap::new(),
        }
    }
}

/// A list of chains, on top or under `chains:`.
impl<'de> Deserialize<'de> for ChainsFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct File;
        impl<'de> Visitor<'de> for File {
            type Value = ChainsFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of chains, or a list under chains:")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ChainsFile, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element_seed(UniqueChain { seen: &entries })? {
                    entries.push(entry);
                }
                if entries.is_empty() {
                    return Err(A::Error::custom("expected at least one chain"));
                }
                Ok(ChainsFile { entries })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ChainsFile, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Keyed {
                    chains: List,
                }
                struct List(ChainsFile);
                impl<'de> Deserialize<'de> for List {
                    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                        deserializer.deserialize_seq(File).map(List)
                    }
                }
                Keyed::deserialize(MapAccessDeserializer::new(UniqueKeys::new(map))).map(|keyed| keyed.chains.0)
            }
        }
        deserializer.deserialize_any(File)
    }
}

/// Reads one chain and refuses a name or id that was seen before.
struct UniqueChain<'a> {
    seen: &'a [ChainEntry],
}

impl<'de> DeserializeSeed<'de> for UniqueChain<'_> {
    type Value = ChainEntry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ChainEntry, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for UniqueChain<'_> {
    type Value = ChainEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a chain: name, rpc_url and so on")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ChainEntry, A::Error> {
        let entry =
            RawChain::deserialize(MapAccessDeserializer::new(UniqueKeys::new(map)))?.check().map_err(A::Error::custom)?;
        for other in self.seen {
            if other.name == entry.name {
                return Err(A::Error::custom(format!(
                    "name: there is a chain {:?} already; expected another name",
                    entry.name
                )));
            }
            if let Some(id) = entry.chain_id.filter(|_| entry.chain_id == other.chain_id) {
                let name = &other.name;
                return Err(A::Error::custom(format!(
                    "chain_id: {id} is the chain {name:?} already; expected one entry per chain"
                )));
            }
        }
        Ok(entry)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawChain {
    name: Scalar<ChainName>,
    chain_id: Option<Whole<NonZeroU64>>,
    rpc_url: Option<Scalar<HttpUrl>>,
    #[serde(default)]
    rpc_urls: Vec<RpcUrl>,
    #[serde(default)]
    ws_urls: Vec<Scalar<WsUrl>>,
    witnesses: Option<Whole<NonZeroU64>>,
    #[serde(default)]
    poa: bool,
    confirmations: Option<Whole<NonZeroU32>>,
    finality: Option<Finality>,
    #[serde(default)]
    tiers: Vec<RawTier>,
    min_transfer: Option<Scalar<Decimal>>,
    start_block: Option<Whole<u64>>,
    poll_interval_ms: Option<Whole<NonZeroU64>>,
    max_lag_s: Option<Whole<NonZeroU64>>,
    verify: Option<Verify>,
    #[serde(default)]
    traces: bool,
    treasury: Option<Scalar<TreasuryAddress>>,
    sweep_at: Option<SweepAt>,
    max_fee: Option<Scalar<Decimal>>,
    sweep_minimum: Option<Scalar<Decimal>>,
    l1_fee: Option<Scalar<Decimal>>,
    #[serde(default)]
    tokens: Tokens,
}

impl RawChain {
    fn check(self) -> Result<ChainEntry, String> {
        let rpc_urls: Vec<NodeUrl> = match (self.rpc_url, self.rpc_urls) {
            (Some(_), list) if !list.is_empty() => {
                return Err("rpc_url and rpc_urls are both given; expected one of them".to_owned());
            }
            (Some(url), _) => vec![url.0.0],
            (None, list) => list.into_iter().map(|url| url.0).collect(),
        };
        if rpc_urls.is_empty() {
            return Err("rpc_url is missing; expected rpc_url or a list rpc_urls".to_owned());
        }
        let witnesses = witnesses(self.witnesses, &rpc_urls)?;
        let policy = tiers::policy(self.confirmations, self.finality)?;
        let tiers = tiers::check(self.tiers, COIN_DECIMALS)?;
        let min_transfer = tiers::amount("min_transfer", self.min_transfer, COIN_DECIMALS)?.unwrap_or_default();
        let sweeping =
            sweeping::check(self.treasury, self.sweep_at, self.max_fee, self.sweep_minimum, self.l1_fee, &self.tokens)?;
        Ok(ChainEntry {
            name: self.name.0.0,
            chain_id: self.chain_id.map(|Whole(id)| ChainId(id.get())),
            rpc_urls,
            rest: EntrySettings {
                ws_urls: self.ws_urls.into_iter().map(|url| url.0.0).collect(),
                witnesses,
                poa: self.poa,
                policy,
                tiers,
                min_transfer,
                start_block: self.start_block.map(|Whole(number)| number),
                poll_interval_ms: self.poll_interval_ms.map(|Whole(ms)| ms.get()),
                max_lag_s: self.max_lag_s.map(|Whole(s)| s.get()),
                verify: self.verify,
                traces: self.traces,
                sweeping,
                tokens: self.tokens.0,
            },
        })
    }
}

/// The number of witnesses asked for; by default two, where there are two to ask.
fn witnesses(asked: Option<Whole<NonZeroU64>>, rpc_urls: &[NodeUrl]) -> Result<usize, String> {
    let providers = rpc_urls.iter().map(NodeUrl::provider).collect::<BTreeSet<_>>().len();
    let witnesses = asked.map_or(providers.min(2), |Whole(asked)| usize::try_from(asked.get()).unwrap_or(usize::MAX));
    if witnesses > providers {
        return Err(format!(
            "witnesses: {witnesses} is more than rpc_urls has; expected at most {providers}, the number of different hosts or groups"
        ));
    }
    Ok(witnesses)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
