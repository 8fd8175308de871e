//! What no root covers, a second endpoint must confirm: parts that a chain hashes in its own way, and call traces, which
//! nothing hashes.
//!
//! The others are asked by our block's hash, all at once, and the first that agrees is enough: a slow one sets no pace. One that
//! does not have the block, or does not answer, has not agreed: the block waits. An endpoint that has confirmed nothing for
//! 15 s is not waited for until it does, so its silence does not stop the chain. Then the block rests on one word, and
//! says so; traces are left out, for a later backfill, since they are all that shows the coin which contracts send.

use super::block_id::BlockId;
use super::error::FetchError;
use super::fetched::{FetchedBlock, PlacedLog};
use super::from_endpoint::fetch_from_endpoint;
use super::traces::{Traces, fetch_traces};
use crate::block::{Block, ReceiptStatus, Transaction};
use crate::proof::{PartProof, Proof, ProofError, Verify};
use crate::rpc::{Endpoint, Rpc};
use alloy::primitives::{Address, B256, U256};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::time::Duration;

/// How often an endpoint is asked for a block that it does not have yet, and the pause in between.
const MAX_ABSENT: u32 = 5;
const ABSENT_PAUSE: Duration = Duration::from_millis(200);
/// How long an endpoint is listened to that is not waited for.
const SHORT_WAIT: Duration = Duration::from_secs(2);

/// A part that no root proves.
#[derive(Clone, Copy, Debug)]
enum Part<'a> {
    /// Header, transactions, statuses, logs.
    Content,
    Traces(&'a Traces),
}

/// What another endpoint says about a part.
#[derive(Debug)]
enum Verdict {
    Agrees,
    /// With the part that differs.
    Contradicts(&'static str),
    /// It can't say: it has no tracer.
    Unable,
    /// It does not have the block, or did not answer.
    Silent(String),
}

/// Compares content that no root proves with other endpoints' answers; `giver` gave it. Where no endpoint agrees and none is waited
/// for, it is marked as resting on one word.
///
/// # Errors
/// If another endpoint contradicts: then neither is trusted. If none has agreed yet that is waited for.
pub(super) async fn confirm_content(rpc: &Rpc, giver: &Endpoint, fetched: &mut FetchedBlock) -> Result<(), FetchError> {
    let Proof { header, transactions, receipts, withdrawals: _ } = &fetched.proof;
    if [header, transactions, receipts].into_iter().any(|part| *part != PartProof::Root) {
        fetched.on_one_word = !is_confirmed(rpc, giver, fetched, Part::Content).await?;
    }
    Ok(())
}

/// Compares traces with those of other endpoints; `tracer` gave them. Where no endpoint agrees and none is waited for, they are
/// taken out again.
///
/// # Errors
/// As for [`confirm_content`].
pub(super) async fn confirm_traces(
    rpc: &Rpc,
    tracer: &Endpoint,
    fetched: &mut FetchedBlock,
    traces: &Traces,
) -> Result<(), FetchError> {
    let nothing = fetched.block.transactions.is_empty() || traces.are_none();
    if !nothing && !is_confirmed(rpc, tracer, fetched, Part::Traces(traces)).await? {
        fetched.internal = Some(Vec::new());
        fetched.untraced = Some("no second endpoint has confirmed the traces".to_owned());
    }
    Ok(())
}

/// Whether the part may be published as it is: an endpoint agrees, or, for traces, no other one has a tracer.
async fn is_confirmed(rpc: &Rpc, asked: &Endpoint, fetched: &FetchedBlock, part: Part<'_>) -> Result<bool, FetchError> {
    // An endpoint of the same provider says what that provider says.
    let others = rpc.others(asked).into_iter().filter(|other| other.provider() != asked.provider());
    let questions = others.map(|other| async move {
        let verdict = ask(&other, fetched, part).await;
        (other, verdict)
    });
    let mut answers: FuturesUnordered<_> = questions.collect();
    let (mut silent, mut waited_for) = (Vec::new(), false);
    while let Some((other, verdict)) = answers.next().await {
        match verdict {
            Verdict::Agrees => {
                other.record_confirmation();
                return Ok(true);
            }
            Verdict::Contradicts(what) => {
                other.record_confirmation();
                return Err(contradiction(fetched, what, asked, &other));
            }
            Verdict::Unable => {}
            Verdict::Silent(why) => {
                waited_for |= other.is_waited_for();
                other.record_silence();
                silent.push(format!("{}: {why}", other.host()));
            }
        }
    }
    if waited_for {
        let what = if matches!(part, Part::Traces(_)) { "the traces" } else { "what no root proves" };
        return Err(FetchError::Unconfirmed { number: fetched.block.number, what, silent: silent.join("; ") });
    }
    // Where nobody else has a tracer, traces are believed.
    Ok(silent.is_empty() && matches!(part, Part::Traces(_)))
}

/// Asks an endpoint, for as long as it is waited for.
async fn ask(other: &Endpoint, fetched: &FetchedBlock, part: Part<'_>) -> Verdict {
    let verdict = async {
        if let Err(error) = other.check_chain_id().await {
            return Verdict::Silent(error.to_string());
        }
        match part {
            Part::Traces(ours) => compare_traces(other, fetched, ours).await,
            Part::Content => compare_content(other, fetched).await,
        }
    };
    if other.is_waited_for() {
        return verdict.await;
    }
    let short = tokio::time::timeout(SHORT_WAIT, verdict).await;
    short.unwrap_or_else(|_| Verdict::Silent("no answer for a while".to_owned()))
}

async fn compare_content(other: &Endpoint, ours: &FetchedBlock) -> Verdict {
    for _ in 0..MAX_ABSENT {
        // Without a proof: only the comparison counts.
        match fetch_from_endpoint(other, Verify::Off, BlockId::Hash(ours.block.hash)).await {
            Ok(Some(theirs)) => return difference(ours, &theirs).map_or(Verdict::Agrees, Verdict::Contradicts),
            Ok(None) if !other.is_waited_for() => break,
            Ok(None) => tokio::time::sleep(ABSENT_PAUSE).await,
            Err(error) => return Verdict::Silent(base::error_chain(&error)),
        }
    }
    Verdict::Silent("it does not have the block".to_owned())
}

async fn compare_traces(other: &Endpoint, fetched: &FetchedBlock, ours: &Traces) -> Verdict {
    let mut absent = 0;
    loop {
        match fetch_traces(other, fetched).await {
            // It could trace nothing: so far it has not said anything.
            Ok(theirs) if theirs.are_none() => {
                absent += 1;
                if absent == MAX_ABSENT || !other.is_waited_for() {
                    return Verdict::Silent(theirs.why.map_or_else(|| "it has no traces".to_owned(), |why| why.to_string()));
                }
                tokio::time::sleep(ABSENT_PAUSE).await;
            }
            Ok(theirs) if ours.in_common(&theirs).eq(theirs.in_common(ours)) => return Verdict::Agrees,
            Ok(_) => return Verdict::Contradicts("what contracts sent"),
            Err(FetchError::NoTracer { .. }) => return Verdict::Unable,
            Err(error) => return Verdict::Silent(base::error_chain(&error)),
        }
    }
}

/// Next time the other endpoint is asked first. If it can prove its answer, the contradiction is settled.
fn contradiction(fetched: &FetchedBlock, what: &str, asked: &Endpoint, other: &Endpoint) -> FetchError {
    asked.record_lie();
    let (one, two) = (asked.host(), other.host());
    FetchError::Unproven {
        endpoint: format!("{one} or {two}"),
        source: ProofError::new(fetched.block.number, what, format!("what {two} says"), format!("something else from {one}")),
    }
}

/// The first part that differs.
fn difference(ours: &FetchedBlock, theirs: &FetchedBlock) -> Option<&'static str> {
    let roots =
        |block: &Block| (block.number, block.parent_hash, block.timestamp, block.transactions_root, block.receipts_root);
    if roots(&ours.block) != roots(&theirs.block) {
        Some("the header")
    } else if !ours.block.transactions.iter().map(payment_fields).eq(theirs.block.transactions.iter().map(payment_fields)) {
        Some("the transactions")
    } else if !ours.logs.iter().map(PlacedLog::content).eq(theirs.logs.iter().map(PlacedLog::content)) {
        Some("the logs")
    } else if !statuses_agree(&ours.statuses, &theirs.statuses) {
        Some("the outcome of the transactions")
    } else {
        None
    }
}

/// The fields of a transaction that a payment depends on.
fn payment_fields(transaction: &Transaction) -> (B256, Address, Option<Address>, U256, u64) {
    (transaction.hash, transaction.from, transaction.to, transaction.value, transaction.kind)
}

/// Whether the statuses agree wherever both are known.
fn statuses_agree(ours: &[ReceiptStatus], theirs: &[ReceiptStatus]) -> bool {
    let both =
        ours.iter().zip(theirs).filter(|(ours, theirs)| **ours != ReceiptStatus::Unknown && **theirs != ReceiptStatus::Unknown);
    ours.len() == theirs.len() && both.into_iter().all(|(ours, theirs)| ours == theirs)
}
