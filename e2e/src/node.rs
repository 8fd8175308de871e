//! An EVM node of a test's own, and what a payer does there: anvil, or geth ([`Node::geth`]).

use crate::geth::{self, Fork};
use crate::http::{plain_http, quantity};
use crate::process::free_port;
use crate::stack::{Stack, root};
use crate::wait::eventually;
use alloy::hex;
use alloy::primitives::{Address, B256, U256};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Symbol of the token that every [`Lab`](crate::Lab) deploys from `testdata/token`.
pub const TOKEN_SYMBOL: &str = "DUSD";
/// anvil's first unlocked account, which pays.
pub const PAYER: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";

/// A running node. Dropping it kills the process.
pub struct Node {
    child: Child,
    /// `None` is anvil.
    geth: Option<Fork>,
    /// URL of its JSON-RPC.
    pub url: String,
    /// Address of the token, once deployed: the first contract of the first account.
    pub token: Address,
    http: reqwest::Client,
}

impl Node {
    /// Starts an empty chain with id 31337.
    ///
    /// # Errors
    /// When anvil does not start.
    pub async fn start(stack: &Stack, block_time: Option<u64>) -> Result<Self> {
        match block_time {
            Some(seconds) => Self::start_with(stack, &["--block-time", &seconds.to_string()]).await,
            None => Self::start_with(stack, &[]).await,
        }
    }

    /// Starts an empty chain with options of anvil.
    ///
    /// # Errors
    /// When anvil does not start.
    pub async fn start_with(stack: &Stack, options: &[&str]) -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(stack.get("ANVIL_BIN")?);
        command.args(["--port", &port.to_string(), "--silent", "--prune-history", "500", "--gas-limit", "300000000"]);
        command.args(options);
        Self::spawn(&mut command, port, None).await
    }

    /// Starts an empty chain with id 31337 on geth, with a block per transaction, whose data and log are in `folder`. `None`
    /// where geth can't be had: `dev/stack geth` has said why.
    ///
    /// # Errors
    /// When geth does not start.
    pub async fn geth(folder: &Path, fork: Fork) -> Result<Option<Self>> {
        let Some(program) = geth::program()? else { return Ok(None) };
        let port = free_port()?;
        let node = Self::spawn(&mut geth::command(&program, folder, fork, port)?, port, Some(fork)).await?;
        // It has no receipts before it has looked through its chain, which it begins with the first block.
        node.mine(1).await?;
        eventually("geth has receipts", || async { Ok(node.receipt(B256::ZERO).await.ok()) }).await?;
        Ok(Some(node))
    }

    async fn spawn(command: &mut Command, port: u16, geth: Option<Fork>) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("the node")?;
        let payer: Address = PAYER.parse()?;
        let http = plain_http().build()?;
        let node = Self { child, geth, url: format!("http://127.0.0.1:{port}"), token: payer.create(0), http };
        eventually("the node answers", || async { Ok(node.call("eth_chainId", json!([])).await.ok()) }).await?;
        Ok(node)
    }

    /// Makes a JSON-RPC call.
    ///
    /// # Errors
    /// When the node does not respond, or returns an error.
    pub async fn call(&self, method: &str, params: Value) -> Result<Value> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer: Value = self.http.post(&self.url).json(&body).send().await?.json().await?;
        match answer.get("error") {
            Some(error) => anyhow::bail!("{method}: {error}"),
            None => Ok(answer.get("result").cloned().unwrap_or_default()),
        }
    }

    /// Deploys a contract of `testdata/token`.
    ///
    /// # Errors
    /// When the deployment fails.
    pub async fn deploy(&self, contract: &str) -> Result<Address> {
        self.create(&std::fs::read_to_string(root().join(format!("testdata/token/{contract}.hex")))?).await
    }

    /// Deploys a contract by its creation code, without 0x.
    ///
    /// # Errors
    /// When the deployment fails.
    pub async fn create(&self, code: &str) -> Result<Address> {
        let hash = self.send(json!({ "from": PAYER, "data": format!("0x{}", code.trim()), "gas": "0xf00000" })).await?;
        let receipt = eventually("the contract's receipt", || self.receipt(hash)).await?;
        ensure!(receipt["status"] == "0x1", "no contract was made: {receipt}");
        let address = receipt.get("contractAddress").and_then(Value::as_str).context("no contract address")?;
        Ok(address.parse()?)
    }

    /// Sends a transaction from an unlocked account.
    ///
    /// # Errors
    /// When the node refuses it.
    pub async fn send(&self, transaction: Value) -> Result<B256> {
        // geth counts a transaction a moment after it takes it, and gives its nonce to one that is sent before that.
        let waits = self.geth.is_some();
        let next = async || self.call("eth_getTransactionCount", json!([transaction["from"], "pending"])).await;
        let before = if waits { next().await? } else { Value::Null };
        let hash = self.call("eth_sendTransaction", json!([transaction])).await?;
        if waits {
            eventually("what was sent is counted", || async { Ok((next().await? != before).then_some(())) }).await?;
        }
        Ok(hash.as_str().context("no transaction hash")?.parse()?)
    }

    /// Sends a payment in the coin.
    ///
    /// # Errors
    /// When the node refuses it.
    pub async fn pay(&self, to: Address, amount: U256) -> Result<B256> {
        self.send(json!({ "from": PAYER, "to": to, "value": amount, "gas": self.gas(21_000) })).await
    }

    /// A limit of gas for a payment, which takes so much before Amsterdam: there a new account or slot takes more (EIP-8037).
    fn gas(&self, before: u64) -> String {
        let more = if self.geth == Some(Fork::Amsterdam) { 200_000 } else { 0 };
        format!("{:#x}", before + more)
    }

    /// Sends a payment in the token.
    ///
    /// # Errors
    /// When the node refuses it.
    pub async fn pay_token(&self, to: Address, amount: U256) -> Result<B256> {
        self.pay_with(self.token, to, amount).await
    }

    /// Sends a payment in any token.
    ///
    /// # Errors
    /// When the node refuses it.
    pub async fn pay_with(&self, token: Address, to: Address, amount: U256) -> Result<B256> {
        let mut data = hex!("a9059cbb").to_vec();
        data.extend(to.into_word());
        data.extend(amount.to_be_bytes::<32>());
        self.send(json!({ "from": PAYER, "to": token, "data": hex::encode_prefixed(data), "gas": self.gas(0x20000) })).await
    }

    /// Gets a transaction's receipt; `None` before it is in a block.
    ///
    /// # Errors
    /// When the node does not respond.
    pub async fn receipt(&self, hash: B256) -> Result<Option<Value>> {
        Ok(Some(self.call("eth_getTransactionReceipt", json!([hash])).await?).filter(|receipt| !receipt.is_null()))
    }

    /// What an address has in the coin, at the head.
    ///
    /// # Errors
    /// When the node does not respond.
    pub async fn balance(&self, of: Address) -> Result<U256> {
        Ok(serde_json::from_value(self.call("eth_getBalance", json!([of, "latest"])).await?)?)
    }

    /// How many transactions of an address are in blocks.
    ///
    /// # Errors
    /// When the node does not respond.
    pub async fn sent(&self, from: Address) -> Result<u64> {
        quantity(&self.call("eth_getTransactionCount", json!([from, "latest"])).await?)
    }

    /// Mines empty blocks, or the pending transactions where automine is off.
    ///
    /// # Errors
    /// When the node refuses.
    pub async fn mine(&self, blocks: u64) -> Result<()> {
        let Some(fork) = self.geth else {
            return self.call("anvil_mine", json!([format!("{blocks:#x}")])).await.map(drop);
        };
        for _ in 0..blocks {
            // The block that geth is about to make of a transaction would take this one's place.
            let mined = || async {
                if self.call("txpool_status", json!([])).await?["pending"] != "0x0" {
                    return Ok(None);
                }
                let block = geth::empty_block(&self.head_block().await?, fork)?;
                Ok(self.call("testing_commitBlockV1", block).await.ok())
            };
            eventually("an empty block", mined).await?;
        }
        eventually("the next second", || async { Ok(geth::seals(&self.head_block().await?)?.then_some(())) }).await
    }

    /// Makes a reorg: replaces the last `depth` blocks by empty ones and drops their transactions.
    ///
    /// # Errors
    /// When the node refuses.
    pub async fn reorg(&self, depth: u64) -> Result<()> {
        if self.geth.is_none() {
            return self.call("anvil_reorg", json!([depth, []])).await.map(drop);
        }
        let head = self.head().await?;
        let parent = head.checked_sub(depth).context("a reorg below the first block")?;
        let mut dropped = Vec::new();
        for number in parent + 1..=head {
            let block = self.call("eth_getBlockByNumber", json!([format!("{number:#x}"), true])).await?;
            dropped.extend(block["transactions"].as_array().cloned().unwrap_or_default());
        }
        self.call("debug_setHead", json!([format!("{parent:#x}")])).await?;
        // geth may have them in its pool again, and seals them a second later: others take their nonces, at a price that replaces
        // them there.
        for transaction in dropped {
            let (price, nonce) = (quantity(&transaction["gasPrice"])?.saturating_mul(4), &transaction["nonce"]);
            let gas = self.gas(21_000);
            let other = json!({ "from": transaction["from"], "to": PAYER, "gas": gas, "nonce": nonce,
                                "maxFeePerGas": format!("{price:#x}"), "maxPriorityFeePerGas": format!("{price:#x}") });
            self.call("eth_sendTransaction", json!([other])).await?;
        }
        self.mine(depth).await
    }

    /// Hash of the head.
    ///
    /// # Errors
    /// When the node does not respond.
    pub async fn head_hash(&self) -> Result<String> {
        Ok(self.head_block().await?["hash"].as_str().context("no head")?.to_owned())
    }

    async fn head_block(&self) -> Result<Value> {
        self.call("eth_getBlockByNumber", json!(["latest", false])).await
    }

    /// Number of the head.
    ///
    /// # Errors
    /// When the node does not respond.
    pub async fn head(&self) -> Result<u64> {
        quantity(&self.call("eth_blockNumber", json!([])).await?)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
