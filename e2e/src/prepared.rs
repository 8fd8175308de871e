//! A chain of blocks like mainnet's, served from prepared bytes, for benches: 150 transactions and 300 logs per block, every
//! hash and root valid, the JSON as geth writes it.
//!
//! Blocks alternate between a few varieties of content, whose JSON is built once as a template. The fields that differ between
//! two blocks of a variety (hash, parent, number, time) fill its holes, so that a block costs a copy and the chain little memory.

mod shape;
mod template;
mod variety;

use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;
use template::{Stamp, Template};
use variety::Variety;

pub use shape::{CHAIN_ID, FIRST, LOGS};

/// Consecutive blocks differ; a variety takes half a megabyte.
const VARIETIES: u64 = 8;
const SAFE_DEPTH: usize = 32;
const FINALIZED_DEPTH: usize = 64;

/// The chain, and a node's responses about it.
pub struct Prepared {
    varieties: Vec<Variety>,
    blocks: Vec<Stamp>,
    by_hash: HashMap<String, usize>,
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow, default)]
    params: Vec<&'a RawValue>,
}

impl Prepared {
    /// Builds a chain of this many blocks, always the same.
    pub fn new(blocks: u64) -> Self {
        let varieties: Vec<Variety> = (0..VARIETIES).map(Variety::new).collect();
        let mut chain = Self { varieties, blocks: Vec::new(), by_hash: HashMap::new() };
        let mut parent = variety::word("parent", 0, 0);
        for (place, number) in (FIRST..FIRST + blocks).enumerate() {
            let mut header = chain.variety(place).header.clone();
            header.parent_hash = parent;
            header.number = number;
            header.timestamp = 1_750_000_000 + 12 * (number - FIRST);
            let stamp = Stamp::new(&header);
            chain.by_hash.insert(stamp.hash.clone(), place);
            chain.blocks.push(stamp);
            parent = header.hash_slow();
        }
        chain
    }

    /// The hashes of all blocks, in order.
    pub fn hashes(&self) -> impl Iterator<Item = &str> {
        self.blocks.iter().map(|stamp| stamp.hash.as_str())
    }

    /// The response to a JSON-RPC request or a batch of them.
    pub fn answer(&self, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        if body.trim_ascii_start().starts_with(b"[") {
            match serde_json::from_slice::<Vec<Request<'_>>>(body) {
                Ok(requests) => {
                    for (place, request) in requests.iter().enumerate() {
                        out.push(if place == 0 { b'[' } else { b',' });
                        self.answer_one(request, &mut out);
                    }
                    out.push(b']');
                }
                Err(error) => malformed(&error, &mut out),
            }
        } else {
            match serde_json::from_slice(body) {
                Ok(request) => self.answer_one(&request, &mut out),
                Err(error) => malformed(&error, &mut out),
            }
        }
        out
    }

    fn answer_one(&self, request: &Request<'_>, out: &mut Vec<u8>) {
        put(out, &["{\"jsonrpc\":\"2.0\",\"id\":", request.id.get(), ","]);
        let found = || request.params.first().and_then(|which| self.find(which));
        let result = |out: &mut Vec<u8>, text: &str| put(out, &["\"result\":\"", text, "\"}"]);
        match &*request.method {
            "eth_chainId" => result(out, &format!("{CHAIN_ID:#x}")),
            "net_version" => result(out, &CHAIN_ID.to_string()),
            "web3_clientVersion" => result(out, "Geth/v1.17.6-stable/linux-amd64/go1.26.0"),
            "eth_blockNumber" => result(out, self.blocks.last().map_or("0x0", |last| &last.number)),
            "eth_getBlockByNumber" | "eth_getBlockByHash" => {
                let full = request.params.get(1).is_some_and(|full| full.get() == "true");
                self.fill(out, found(), |variety| if full { &variety.block } else { &variety.block_of_hashes });
            }
            "eth_getBlockReceipts" => self.fill(out, found(), |variety| &variety.receipts),
            method => {
                let name = serde_json::Value::from(method);
                let name = name.to_string();
                let name = name.trim_matches('"');
                put(
                    out,
                    &["\"error\":{\"code\":-32601,\"message\":\"the method ", name, " does not exist/is not available\"}}"],
                );
            }
        }
    }

    fn fill(&self, out: &mut Vec<u8>, found: Option<(usize, &Stamp)>, template: impl Fn(&Variety) -> &Template) {
        put(out, &["\"result\":"]);
        match found {
            Some((place, stamp)) => template(self.variety(place)).fill(stamp, out),
            None => put(out, &["null"]),
        }
        put(out, &["}"]);
    }

    fn variety(&self, place: usize) -> &Variety {
        &self.varieties[place % self.varieties.len()]
    }

    /// Finds a block by number, tag or hash, or by an object with one of them (EIP-1898).
    fn find(&self, which: &RawValue) -> Option<(usize, &Stamp)> {
        #[derive(Deserialize)]
        #[serde(untagged, rename_all_fields = "camelCase")]
        enum Which<'a> {
            Plain(&'a str),
            Hash { block_hash: &'a str },
            Number { block_number: &'a str },
        }
        let name = match serde_json::from_str(which.get()).ok()? {
            Which::Plain(name) | Which::Hash { block_hash: name } | Which::Number { block_number: name } => name,
        };
        let last = self.blocks.len().checked_sub(1)?;
        let place = match name {
            "latest" | "pending" => last,
            "safe" => last.checked_sub(SAFE_DEPTH)?,
            "finalized" => last.checked_sub(FINALIZED_DEPTH)?,
            "earliest" => 0,
            hash if hash.len() == 66 => *self.by_hash.get(hash)?,
            number => {
                let number = u64::from_str_radix(number.strip_prefix("0x")?, 16).ok()?;
                usize::try_from(number.checked_sub(FIRST)?).ok()?
            }
        };
        self.blocks.get(place).map(|stamp| (place, stamp))
    }
}

fn put(out: &mut Vec<u8>, texts: &[&str]) {
    texts.iter().for_each(|text| out.extend_from_slice(text.as_bytes()));
}

fn malformed(error: &serde_json::Error, out: &mut Vec<u8>) {
    let answer = serde_json::json!({ "jsonrpc": "2.0", "id": null, "error": { "code": -32700, "message": error.to_string() } });
    out.extend_from_slice(answer.to_string().as_bytes());
}

#[cfg(test)]
mod tests;
