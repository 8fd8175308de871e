//! The history in `chain.blocks` and `chain.logs`, compared with what the node says when asked directly.

use crate::http::plain_http;
use crate::lab::Lab;
use crate::records::records_from;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use topics::{Address, Message, wire};
use wire::block_record::{Kind, Status};

/// A block added or removed, with the logs record of the same sequence.
#[derive(Clone, Debug)]
pub struct Step {
    /// The record of `chain.blocks`.
    pub block: wire::BlockRecord,
    /// The record of `chain.logs`.
    pub logs: wire::LogsRecord,
}

/// The published part of a chain. Its sequences have no gap and no duplicate, and its steps are a stack: otherwise reading it
/// fails.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All steps, in order.
    pub steps: Vec<Arc<Step>>,
    /// The steps whose blocks are still on the stack, lowest first.
    pub stack: Vec<Arc<Step>>,
    /// Blocks added.
    pub added: usize,
    /// Blocks removed.
    pub removed: usize,
    /// Logs of all blocks added.
    pub logs: usize,
}

/// Reads a chain's history as it grows: each read takes only what is new.
pub struct HistoryReader {
    chain_id: u64,
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    blocks: Unpaired<wire::BlockRecord>,
    logs: Unpaired<wire::LogsRecord>,
    history: History,
}

/// Records of a chain whose counterparts are not read yet.
#[derive(Default)]
struct Unpaired<M> {
    /// Records of the topic that were read, of whatever chain.
    read: usize,
    records: VecDeque<M>,
}

impl HistoryReader {
    /// The history of a chain, from its beginning.
    pub fn new(chain_id: u64) -> Self {
        Self { chain_id, state: tokio::sync::Mutex::default() }
    }

    /// Reads on to the ends that both topics have now.
    ///
    /// # Errors
    /// When a sequence has a gap or a duplicate, the topics differ, or a block was added or removed elsewhere than at the tip.
    pub async fn read(&self, lab: &Lab) -> Result<History> {
        let mut state = self.state.lock().await;
        let State { blocks, logs, history } = &mut *state;
        let paired = history.steps.len();
        blocks.extend(lab, self.chain_id, paired, |block| block.sequence).await?;
        // Read later, so it has all that the blocks have, and maybe more.
        logs.extend(lab, self.chain_id, paired, |logs| logs.sequence).await?;
        let (blocks, logs) = (&mut blocks.records, &mut logs.records);
        ensure!(logs.len() >= blocks.len(), "{} logs records for {} blocks after step {paired}", logs.len(), blocks.len());
        while let Some(block) = blocks.pop_front() {
            let logs = logs.pop_front().context("a logs record")?;
            history.push(Step { block, logs })?;
        }
        Ok(history.clone())
    }
}

impl<M: Message + Send + 'static> Unpaired<M> {
    /// Takes the chain's new records, whose sequences go on where those of the steps and of the records here end.
    async fn extend(&mut self, lab: &Lab, chain_id: u64, paired: usize, sequence: impl Fn(&M) -> u64) -> Result<()> {
        for record in records_from::<M>(lab, self.read).await? {
            self.read += 1;
            if record.key() != chain_id.to_string() {
                continue;
            }
            let (expected, sequence) = (u64::try_from(paired + self.records.len())? + 1, sequence(&record));
            ensure!(sequence == expected, "{:?}: sequence {sequence}; expected {expected}", M::TOPIC);
            self.records.push_back(record);
        }
        Ok(())
    }
}

impl History {
    fn push(&mut self, step: Step) -> Result<()> {
        let step = Arc::new(step);
        let Step { block, logs } = &*step;
        let place = format!("sequence {}, block {} {}", block.sequence, block.number, hex::encode(&block.hash));
        ensure!(
            (block.sequence, block.kind, block.number, &block.hash) == (logs.sequence, logs.kind, logs.number, &logs.hash),
            "{place}: its logs record is of another block or kind"
        );
        let tip = self.stack.last().map(|tip| &tip.block);
        match block.kind() {
            Kind::Added => {
                ensure!(
                    tip.is_none_or(|tip| tip.hash == block.parent_hash && tip.number + 1 == block.number),
                    "{place}: added, but not on the tip {:?}",
                    tip.map(|tip| (tip.number, hex::encode(&tip.hash)))
                );
                self.added += 1;
                self.logs += logs.logs.len();
                self.stack.push(Arc::clone(&step));
            }
            Kind::Removed => {
                ensure!(
                    tip.is_some_and(|tip| tip.hash == block.hash && tip.number == block.number),
                    "{place}: removed, but it is not the tip {:?}",
                    tip.map(|tip| (tip.number, hex::encode(&tip.hash)))
                );
                ensure!(logs.logs.is_empty(), "{place}: removed, with logs");
                self.removed += 1;
                self.stack.pop();
            }
            Kind::Tags => {
                ensure!(tip.is_some_and(|tip| tip.hash == block.hash), "{place}: told of another block than the tip");
                ensure!(logs.logs.is_empty() && block.transactions.is_empty(), "{place}: more than tags");
                ensure!(block.witnessed_number <= Some(block.number), "{place}: witnessed above the tip");
            }
            kind => anyhow::bail!("{place}: {kind:?} has no place in a chain's history"),
        }
        self.steps.push(step);
        Ok(())
    }

    /// The hash of the last block on the stack, with 0x.
    pub fn tip(&self) -> Option<String> {
        self.stack.last().map(|step| prefixed(&step.block.hash))
    }

    /// Compares the stack with the node: it is the node's chain from `start_block` to its head, and each block has the node's
    /// transactions and logs.
    ///
    /// # Errors
    /// With the first difference.
    pub async fn check(&self, node: &str, start_block: u64) -> Result<()> {
        let first = self.stack.first().context("nothing was published")?.block.number;
        ensure!(first == start_block, "the first block is {first}; expected {start_block}");
        for steps in self.stack.chunks(100) {
            let by_number =
                steps.iter().map(|step| ("eth_getBlockByNumber", json!([format!("{:#x}", step.block.number), true])));
            let receipts = steps.iter().map(|step| ("eth_getBlockReceipts", json!([prefixed(&step.block.hash)])));
            let answers = batch(node, by_number.chain(receipts)).await?;
            let (blocks, receipts) = answers.split_at(steps.len());
            for ((step, block), receipts) in steps.iter().zip(blocks).zip(receipts) {
                let receipts = receipts.as_array().with_context(|| format!("no receipts of block {}", block["hash"]))?;
                let logs: Vec<&Value> = receipts.iter().flat_map(|r| r["logs"].as_array().into_iter().flatten()).collect();
                step.check(block, &logs)?;
                for (transaction, receipt) in step.block.transactions.iter().zip(receipts) {
                    let expected = if receipt["status"] == "0x1" { Status::Success } else { Status::Reverted };
                    // Ingest need not know it of a transaction that moves no coin.
                    let unknown = transaction.status() == Status::Unknown && transaction.value.is_empty();
                    ensure!(unknown || transaction.status() == expected, "{}: {transaction:?}", receipt);
                    // From a node without receipts of whole blocks there is no gas, and a price of some alone.
                    let gas = transaction.gas_used.is_none_or(|gas| json!(format!("{gas:#x}")) == receipt["gasUsed"]);
                    let price = transaction.effective_gas_price.as_deref().map(quantity);
                    let price = price.is_none_or(|price| json!(price) == receipt["effectiveGasPrice"]);
                    ensure!(gas && price, "{}: {transaction:?}", receipt);
                }
            }
        }
        let head = batch(node, [("eth_getBlockByNumber", json!(["latest", false]))]).await?.remove(0);
        ensure!(
            self.tip().as_deref() == head["hash"].as_str(),
            "the tip is {:?}, the node's head {}",
            self.tip(),
            head["hash"]
        );
        Ok(())
    }
}

impl Step {
    /// Compares the step with a node's block, transactions included, and with all its logs.
    ///
    /// # Errors
    /// With the first difference.
    pub fn check(&self, block: &Value, logs: &[&Value]) -> Result<()> {
        let place = format!("block {}", self.block.number);
        let hash = prefixed(&self.block.hash);
        ensure!(hash == block["hash"], "{place}: {hash} was published; the node says {}", block["hash"]);
        ensure!(block["parentHash"] == prefixed(&self.block.parent_hash), "{place}: another parent");
        let theirs: Vec<Value> = block["transactions"]
            .as_array()
            .with_context(|| format!("{place}: transactions"))?
            .iter()
            .map(|tx| json!([tx["hash"], tx["from"], tx["to"], tx["value"], nonce(tx)]))
            .collect();
        let ours: Vec<Value> = self.block.transactions.iter().map(transaction).collect();
        ensure!(ours == theirs, "{place}: transactions {ours:#?}; the node says {theirs:#?}");
        let theirs: Vec<Value> = logs
            .iter()
            .map(|log| {
                json!([
                    log["address"],
                    log["topics"],
                    log["data"],
                    log["logIndex"],
                    log["transactionHash"],
                    log["transactionIndex"]
                ])
            })
            .collect();
        let ours: Vec<Value> = self.logs.logs.iter().map(log).collect();
        ensure!(ours == theirs, "{place}: logs {ours:#?}; the node says {theirs:#?}");
        Ok(())
    }
}

/// Bor's state sync is no account's, and signed by nobody: its nonce is published as unknown.
fn nonce(tx: &Value) -> Option<&Value> {
    let is_state_sync = tx["gas"] == "0x0" && tx["s"] == "0x0" && tx["from"] == format!("{:#x}", Address::ZERO);
    tx.get("nonce").filter(|_| !is_state_sync)
}

fn transaction(tx: &wire::block_record::Transaction) -> Value {
    let to = (!tx.to.is_empty()).then(|| prefixed(&tx.to));
    let nonce = tx.nonce.map(|nonce| format!("{nonce:#x}"));
    json!([prefixed(&tx.hash), prefixed(&tx.from), to, quantity(&tx.value), nonce])
}

fn quantity(amount: &[u8]) -> String {
    let digits = hex::encode(amount);
    let digits = digits.trim_start_matches('0');
    format!("0x{}", if digits.is_empty() { "0" } else { digits })
}

fn log(log: &wire::logs_record::Log) -> Value {
    let topics: Vec<String> = log.topics.iter().map(|topic| prefixed(topic)).collect();
    json!([
        prefixed(&log.address),
        topics,
        prefixed(&log.data),
        format!("{:#x}", log.index),
        prefixed(&log.transaction_hash),
        format!("{:#x}", log.transaction_index)
    ])
}

fn prefixed(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}

async fn batch(node: &str, calls: impl IntoIterator<Item = (&str, Value)>) -> Result<Vec<Value>> {
    let calls: Vec<Value> = calls
        .into_iter()
        .enumerate()
        .map(|(id, (method, params))| json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))
        .collect();
    let answers: Vec<Value> = plain_http().build()?.post(node).json(&calls).send().await?.json().await?;
    ensure!(answers.len() == calls.len(), "{} answers to {} calls", answers.len(), calls.len());
    let mut results = vec![Value::Null; calls.len()];
    for mut answer in answers {
        let id = answer["id"].as_u64().and_then(|id| usize::try_from(id).ok()).context("an answer's id")?;
        *results.get_mut(id).context("an answer to a call")? = answer["result"].take();
    }
    Ok(results)
}
