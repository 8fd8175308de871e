//! What a consumer of `chain.blocks` and `chain.logs` has, held against what the node says when asked directly.

use anyhow::{Context as _, Result, ensure};
use runtime::Kafka;
use serde_json::{Value, json};
use topics::{Message, wire};
use wire::block_record::{Kind, Status};

/// A block added or removed, with the logs record of the same sequence.
#[derive(Clone, Debug)]
pub struct Step {
    /// Of `chain.blocks`.
    pub block: wire::BlockRecord,
    /// Of `chain.logs`.
    pub logs: wire::LogsRecord,
}

/// A chain's history, as far as it was written. Whoever holds one knows that its sequences have no gap and no double, and
/// that its steps are a stack.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All of it, in order.
    pub steps: Vec<Step>,
    /// The steps whose blocks are still on the stack, lowest first.
    pub stack: Vec<Step>,
    /// Blocks added.
    pub added: usize,
    /// Blocks removed.
    pub removed: usize,
    /// Logs of all blocks added.
    pub logs: usize,
}

impl History {
    /// Reads both topics from their beginnings to their ends.
    ///
    /// # Errors
    /// When a sequence has a gap or a double, the topics differ, or a block was added or removed elsewhere than at the tip.
    pub async fn read(kafka: &Kafka, chain_id: u64) -> Result<Self> {
        let kafka = kafka.clone();
        tokio::task::spawn_blocking(move || {
            let blocks = records(&kafka, chain_id, |block: &wire::BlockRecord| block.sequence)?;
            // Read later, so it has all that the blocks have, and maybe more.
            let logs = records(&kafka, chain_id, |logs: &wire::LogsRecord| logs.sequence)?;
            ensure!(logs.len() >= blocks.len(), "{} logs records of {} blocks", logs.len(), blocks.len());
            let mut history = Self::default();
            for (block, logs) in blocks.into_iter().zip(logs) {
                history.push(Step { block, logs })?;
            }
            Ok(history)
        })
        .await?
    }

    fn push(&mut self, step: Step) -> Result<()> {
        let Step { block, logs } = &step;
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
                self.stack.push(step.clone());
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
            kind => anyhow::bail!("{place}: {kind:?} has no place in a chain's history"),
        }
        self.steps.push(step);
        Ok(())
    }

    /// The hash of the last block on the stack, with 0x.
    pub fn tip(&self) -> Option<String> {
        self.stack.last().map(|step| prefixed(&step.block.hash))
    }

    /// Holds the stack against the node: it is the node's chain from `start_block` to its head, and each block has the
    /// transactions and logs that the node has.
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
                    // Of what moves no coin it need not be known.
                    let unknown = transaction.status() == Status::Unknown && transaction.value.is_empty();
                    ensure!(unknown || transaction.status() == expected, "{}: {transaction:?}", receipt);
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
    /// Holds the step against what a node says of its block: `block` with transactions, and all its logs.
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
            .map(|tx| json!([tx["hash"], tx["from"], tx["to"], tx["value"]]))
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

fn transaction(tx: &wire::block_record::Transaction) -> Value {
    let value = hex::encode(&tx.value);
    let value = value.trim_start_matches('0');
    let to = (!tx.to.is_empty()).then(|| prefixed(&tx.to));
    json!([prefixed(&tx.hash), prefixed(&tx.from), to, format!("0x{}", if value.is_empty() { "0" } else { value })])
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

/// The records of a chain, whose sequences are 1, 2, 3 and so on.
fn records<M: Message>(kafka: &Kafka, chain_id: u64, sequence: impl Fn(&M) -> u64) -> Result<Vec<M>> {
    let mut records: Vec<M> = crate::read_records(kafka)?;
    records.retain(|record| record.key() == chain_id.to_string());
    for (record, expected) in records.iter().zip(1_u64..) {
        let sequence = sequence(record);
        ensure!(sequence == expected, "{:?}: sequence {sequence}; expected {expected}", M::TOPIC);
    }
    Ok(records)
}

async fn batch(node: &str, calls: impl IntoIterator<Item = (&str, Value)>) -> Result<Vec<Value>> {
    let calls: Vec<Value> = calls
        .into_iter()
        .enumerate()
        .map(|(id, (method, params))| json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))
        .collect();
    let answers: Vec<Value> = reqwest::Client::new().post(node).json(&calls).send().await?.json().await?;
    ensure!(answers.len() == calls.len(), "{} answers to {} calls", answers.len(), calls.len());
    let mut results = vec![Value::Null; calls.len()];
    for mut answer in answers {
        let id = answer["id"].as_u64().and_then(|id| usize::try_from(id).ok()).context("an answer's id")?;
        *results.get_mut(id).context("an answer to a call")? = answer["result"].take();
    }
    Ok(results)
}
