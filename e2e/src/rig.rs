//! An ingest that reaches its node through faulty endpoints, and what its history is held against.

use crate::{History, HistoryReader, Lab, Lacks, Plan, Process, Proxy, eventually};
use alloy::primitives::{Address, B256, U256};
use anyhow::{Context as _, Result};
use serde_json::json;
use std::fmt::Write as _;

const CHAIN: u64 = 31337;

/// A laboratory of which ingest alone runs, between a node and Kafka.
pub struct Rig {
    /// Its parts.
    pub lab: Lab,
    /// What ingest knows the node by, in order of preference.
    pub endpoints: Vec<Proxy>,
    /// The process.
    pub ingest: Process,
    history: HistoryReader,
}

impl Rig {
    /// Starts ingest with one endpoint for each of `lacks`.
    ///
    /// # Errors
    /// When a part does not start.
    pub async fn start(lacks: &[Lacks]) -> Result<Self> {
        Self::on(Lab::start(Plan::default()).await?, lacks, "").await
    }

    /// The same in a given laboratory, with other chains in its `chains.yaml`.
    ///
    /// # Errors
    /// When a part does not start.
    pub async fn on(lab: Lab, lacks: &[Lacks], other_chains: &str) -> Result<Self> {
        let mut endpoints = Vec::new();
        for lacks in lacks {
            endpoints.push(Proxy::start(&lab.node.url, *lacks).await?);
        }
        write_chains(&lab, &endpoints, other_chains)?;
        let ingest = lab.spawn("ingest")?;
        Ok(Self { lab, endpoints, ingest, history: HistoryReader::new(CHAIN) })
    }

    /// The first endpoint.
    pub fn endpoint(&self) -> &Proxy {
        &self.endpoints[0]
    }

    /// `kill -9`, and a new one.
    ///
    /// # Errors
    /// When it had ended by itself, or does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.ingest.kill()?;
        self.ingest = self.lab.spawn("ingest")?;
        Ok(())
    }

    /// A few blocks: a payment each in coin and in the token, one block with several of both and one that failed, an empty one.
    ///
    /// # Errors
    /// When the node refuses.
    pub async fn traffic(&self) -> Result<()> {
        let node = &self.lab.node;
        node.pay(somebody(), U256::from(1_000)).await?;
        let last = node.pay_token(somebody(), U256::from(2_000)).await?;
        self.mined(last).await?;
        node.call("evm_setAutomine", json!([false])).await?;
        let mut last = B256::ZERO;
        for amount in 1..3_u64 {
            node.pay(somebody(), U256::from(amount)).await?;
            node.pay_token(somebody(), U256::MAX).await?;
            last = node.pay_token(somebody(), U256::from(amount)).await?;
        }
        node.mine(1).await?;
        node.call("evm_setAutomine", json!([true])).await?;
        self.mined(last).await?;
        node.mine(1).await
    }

    /// Blocks of one payment each, coin and token in turn.
    ///
    /// # Errors
    /// When the node refuses.
    pub async fn pay_blocks(&self, count: u64) -> Result<()> {
        for index in 0..count {
            let (to, amount) = (somebody(), U256::from(index + 1));
            let hash = match index % 2 {
                0 => self.lab.node.pay(to, amount).await?,
                _ => self.lab.node.pay_token(to, amount).await?,
            };
            // One block each; and anvil loses blocks when it reorganises while it mines.
            self.mined(hash).await?;
        }
        Ok(())
    }

    async fn mined(&self, hash: B256) -> Result<()> {
        eventually("a transaction's receipt", || self.lab.node.receipt(hash)).await.map(drop)
    }

    /// What was published so far.
    ///
    /// # Errors
    /// When it is no history.
    pub async fn history(&self) -> Result<History> {
        self.history.read(&self.lab).await
    }

    /// Waits until ingest has published the node's head, and holds all of it against the node.
    ///
    /// # Errors
    /// When it does not get there, or something is lost, doubled or different.
    pub async fn arrive(&mut self) -> Result<History> {
        let head = self.lab.node.head_hash().await?;
        let arrived = eventually("ingest at the node's head", || async {
            Ok(Some(self.history().await?).filter(|history| history.tip().as_ref() == Some(&head)))
        });
        let history = match arrived.await {
            Ok(history) => history,
            Err(error) => {
                let tip = self.history().await.map(|history| history.stack.last().map(|step| step.block.number));
                let node = self.lab.node.head().await?;
                self.ingest.check()?;
                return Err(error).context(format!("tip {tip:?}, head {node}, log:\n{}", self.ingest.tail()));
            }
        };
        self.ingest.check()?;
        history.check(&self.lab.node.url, 0).await?;
        Ok(history)
    }
}

/// The laboratory's `chains.yaml`, with its node behind these endpoints and other chains.
///
/// # Errors
/// When it can't be written.
pub fn write_chains(lab: &Lab, endpoints: &[Proxy], other_chains: &str) -> Result<()> {
    let urls: Vec<String> = endpoints.iter().map(|endpoint| format!("{:?}", endpoint.url)).collect();
    let mut yaml = String::new();
    writeln!(yaml, "- name: anvil\n  chain_id: {CHAIN}\n  rpc_urls: [{}]", urls.join(", "))?;
    writeln!(yaml, "  confirmations: 3\n  poll_interval_ms: 20\n  start_block: 0\n{other_chains}")?;
    Ok(std::fs::write(&lab.env["CHAINS_FILE"], yaml)?)
}

/// An address of nobody.
fn somebody() -> Address {
    Address::from(rand::random::<[u8; 20]>())
}
