//! Ingest behind faulty endpoints, and checks of the history that it publishes.

use crate::history::{History, HistoryReader};
use crate::lab::{Lab, Plan};
use crate::process::Process;
use crate::proxy::{Lacks, Proxy};
use crate::wait::eventually;
use alloy::primitives::{Address, B256, U256};
use anyhow::{Context as _, Result};
use serde_json::json;
use std::fmt::Write as _;

const CHAIN: u64 = 31337;

/// A lab in which only ingest runs, between a node and Kafka.
pub struct Rig {
    /// The parts.
    pub lab: Lab,
    /// The endpoints in ingest's configuration, in order of preference.
    pub endpoints: Vec<Proxy>,
    /// The process `ctrip ingest`.
    pub ingest: Process,
    history: HistoryReader,
}

impl Rig {
    /// Starts ingest with one endpoint per item of `lacks`.
    ///
    /// # Errors
    /// When a part does not start.
    pub async fn start(lacks: &[Lacks]) -> Result<Self> {
        Self::on(Lab::start(Plan::default()).await?, lacks, "").await
    }

    /// [`start`](Self::start) in a given lab, with other chains in its `chains.yaml`.
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

    /// Kills ingest with `kill -9` and starts it again.
    ///
    /// # Errors
    /// When it had ended by itself, or does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.ingest.kill()?;
        self.ingest = self.lab.spawn("ingest")?;
        Ok(())
    }

    /// Mines a few blocks: one payment each in coin and token, one block with several of both and a failed one, an empty one.
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

    /// Mines blocks of one payment each, in coin and token alternately.
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
            // One block each. And anvil loses blocks when a reorg comes while it mines.
            self.mined(hash).await?;
        }
        Ok(())
    }

    async fn mined(&self, hash: B256) -> Result<()> {
        eventually("a transaction's receipt", || self.lab.node.receipt(hash)).await.map(drop)
    }

    /// Reads what ingest has published.
    ///
    /// # Errors
    /// When it is not a valid [`History`].
    pub async fn history(&self) -> Result<History> {
        self.history.read(&self.lab).await
    }

    /// Waits until ingest has published the node's head, and compares the history with the node.
    ///
    /// # Errors
    /// When ingest does not get there, or something is missing, duplicated or different.
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

/// Writes the lab's `chains.yaml`, with its node behind these endpoints, and other chains.
///
/// # Errors
/// When the file cannot be written.
pub fn write_chains(lab: &Lab, endpoints: &[Proxy], other_chains: &str) -> Result<()> {
    let urls: Vec<String> = endpoints.iter().map(|endpoint| format!("{:?}", endpoint.url)).collect();
    let mut yaml = String::new();
    writeln!(yaml, "- name: anvil\n  chain_id: {CHAIN}\n  rpc_urls: [{}]", urls.join(", "))?;
    writeln!(yaml, "  confirmations: 3\n  poll_interval_ms: 20\n  start_block: 0\n{other_chains}")?;
    lab.write_chains(&yaml)
}

/// A random address, which belongs to no payment.
fn somebody() -> Address {
    Address::from(rand::random::<[u8; 20]>())
}
