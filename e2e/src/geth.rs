//! go-ethereum in its developer mode: how it is had, started, and asked for a block. [`Node::geth`](crate::Node::geth) runs it.

use crate::http::quantity;
use crate::process::free_port;
use crate::stack::{optional_part, root};
use alloy::primitives::B256;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// The rules of the chain, from its first block on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    Osaka,
    Amsterdam,
}

/// The program, compiled if it is missing. `None` where it can't be had, which the test run then says.
pub(crate) fn program() -> Result<Option<PathBuf>> {
    optional_part("geth")
}

/// MB. By default geth lays out logs of its database of 282 MB each.
const CACHE: [&str; 2] = ["--cache", "16"];

/// Makes a chain in `folder` and returns the command that runs it.
pub(crate) fn command(program: &Path, folder: &Path, fork: Fork, port: u16) -> Result<Command> {
    let ours = root().join("dev/geth");
    let data = folder.join("geth");
    std::fs::create_dir_all(data.join("keystore"))?;
    std::fs::copy(ours.join("payer.json"), data.join("keystore/payer.json"))?;
    let mut genesis: Value = serde_json::from_str(&std::fs::read_to_string(ours.join("genesis.json"))?)?;
    if fork == Fork::Amsterdam {
        genesis["config"]["amsterdamTime"] = json!(0);
    }
    let file = data.join("genesis.json");
    std::fs::write(&file, genesis.to_string())?;
    let made = Command::new(program).arg("init").arg("--datadir").arg(&data).arg(&file).output()?;
    ensure!(made.status.success(), "geth init: {}", String::from_utf8_lossy(&made.stderr));
    let mut command = Command::new(program);
    command.arg("--dev").args(CACHE).arg("--datadir").arg(&data).arg("--log.file").arg(folder.join("geth.log"));
    command.args(["--http", "--http.port", &port.to_string(), "--http.api", "eth,net,web3,debug,txpool,testing"]);
    command.args([
        "--authrpc.port",
        &free_port()?.to_string(),
        "--port",
        "0",
        "--nodiscover",
        "--maxpeers",
        "0",
        "--ipcdisable",
    ]);
    // A test may send more than a careless user should.
    command.args(["--rpc.txfeecap", "0", "--rpc.gascap", "0"]);
    Ok(command)
}

/// What `testing_commitBlockV1` is asked for an empty block on this head.
pub(crate) fn empty_block(head: &Value, fork: Fork) -> Result<Value> {
    let time = now()?.max(quantity(&head["timestamp"])? + 1);
    // Random, so that a reorg never makes the same block again.
    let random = B256::from(rand::random::<[u8; 32]>());
    let mut attributes = json!({
        "timestamp": format!("{time:#x}"),
        "prevRandao": random,
        "suggestedFeeRecipient": "0x0000000000000000000000000000000000000000",
        "withdrawals": [],
        "parentBeaconBlockRoot": B256::ZERO,
    });
    if fork == Fork::Amsterdam {
        attributes["slotNumber"] = json!("0x0");
    }
    Ok(json!([attributes, [], null]))
}

/// Whether geth makes a block of the next transaction: it gives it the present time, and fails at that of its parent.
pub(crate) fn seals(head: &Value) -> Result<bool> {
    Ok(now()? > quantity(&head["timestamp"])?)
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}
