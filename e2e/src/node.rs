//! An EVM node of a test's own, and what a payer does there.

use crate::http::plain_http;
use crate::process::free_port;
use crate::stack::{Stack, root};
use crate::wait::eventually;
use alloy::hex;
use alloy::primitives::{Address, B256, U256};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};

/// Symbol of the token that every [`Lab`](crate::Lab) deploys from `testdata/token`.
pub const TOKEN_SYMBOL: &str = "DUSD";
/// anvil's first unlocked account, which pays.
pub const PAYER: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";

/// A running anvil. Dropping it kills the process.
pub struct Node {
    child: Child,
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
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("anvil")?;
        let payer: Address = PAYER.parse()?;
        let http = plain_http().build()?;
        let node = Self { child, url: format!("http://127.0.0.1:{port}"), token: payer.create(0), http };
        eventually("anvil answers", || async { Ok(node.call("eth_chainId", json!([])).await.ok()) }).await?;
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
        let code = std::fs::read_to_string(root().join(format!("testdata/token/{contract}.hex")))?;
        let hash = self.send(json!({ "from": PAYER, "data": format!("0x{}", code.trim()), "gas": "0x300000" })).await?;
        let receipt = eventually("the contract's receipt", || self.receipt(hash)).await?;
        let address = receipt.get("contractAddress").and_then(Value::as_str).context("no contract address")?;
        Ok(address.parse()?)
    }

    /// Sends a transaction from an unlocked account.
    ///
    /// # Errors
    /// When the node refuses it.
    pub async fn send(&self, transaction: Value) -> Result<B256> {
        let hash = self.call("eth_sendTransaction", json!([transaction])).await?;
        Ok(hash.as_str().context("no transaction hash")?.parse()?)
    }

    /// Sends a payment in the coin.
    ///
    /// # Errors
    /// When the node refuses it.
    pub async fn pay(&self, to: Address, amount: U256) -> Result<B256> {
        self.send(json!({ "from": PAYER, "to": to, "value": amount, "gas": "0x5208" })).await
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
        self.send(json!({ "from": PAYER, "to": token, "data": hex::encode_prefixed(data), "gas": "0x20000" })).await
    }

    /// Gets a transaction's receipt; `None` before it is in a block.
    ///
    /// # Errors
    /// When the node does not respond.
    pub async fn receipt(&self, hash: B256) -> Result<Option<Value>> {
        Ok(Some(self.call("eth_getTransactionReceipt", json!([hash])).await?).filter(|receipt| !receipt.is_null()))
    }

    /// Mines empty blocks, or the pending transactions where automine is off.
    ///
    /// # Errors
    /// When the node refuses.
    pub async fn mine(&self, blocks: u64) -> Result<()> {
        self.call("anvil_mine", json!([format!("{blocks:#x}")])).await.map(drop)
    }

    /// Makes a reorg: replaces the last `depth` blocks by empty ones and drops their transactions.
    ///
    /// # Errors
    /// When the node refuses.
    pub async fn reorg(&self, depth: u64) -> Result<()> {
        self.call("anvil_reorg", json!([depth, []])).await.map(drop)
    }

    /// Hash of the head.
    ///
    /// # Errors
    /// When the node does not respond.
    pub async fn head_hash(&self) -> Result<String> {
        let head = self.call("eth_getBlockByNumber", json!(["latest", false])).await?;
        Ok(head["hash"].as_str().context("no head")?.to_owned())
    }

    /// Number of the head.
    ///
    /// # Errors
    /// When the node does not respond.
    pub async fn head(&self) -> Result<u64> {
        let number = self.call("eth_blockNumber", json!([])).await?;
        let text = number.as_str().context("no block number")?;
        Ok(u64::from_str_radix(text.trim_start_matches("0x"), 16)?)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
