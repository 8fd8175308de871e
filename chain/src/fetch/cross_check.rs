//! What no root covers, a second endpoint must confirm: parts that a chain hashes in its own way, and call traces, which
//! nothing hashes.
//!
//! The others are asked by our block's hash, all at once, until as many agree as a block needs witnesses: a slow one sets no
//! pace. Where one contradicts, most must agree, and it is named. One that does not have the block, or does not answer, or could not
//! trace a transaction, has not agreed: the block waits. An endpoint that has confirmed nothing for 15 s is not waited for until it
//! does, so its silence does not stop the chain. Then the block rests on one word, and says so; traces are left out, for a later
//! backfill, since they are all that shows the coin which contracts send.

use super::block_id::BlockId;
use super::content::difference;
use super::error::FetchError;
use super::fetched::FetchedBlock;
use super::from_endpoint::fetch_from_endpoint;
use super::head::count_providers;
use super::traces::{Traces, fetch_traces};
use crate::block::ReceiptStatus;
use crate::proof::{PartProof, Proof, ProofError, Verify};
use crate::rpc::{Endpoint, Rpc, TraceTime};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often an endpoint is asked for a block that it does not have yet, and the pause in between.
const MAX_ABSENT: u32 = 5;
const ABSENT_PAUSE: Duration = Duration::from_millis(200);
/// How long an endpoint is listened to: an answer may take many requests, each of which comes just in time.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// How long an endpoint is listened to that is not waited for.
const SHORT_WAIT: Duration = Duration::from_secs(2);

/// A part that no root proves.
#[derive(Clone, Copy, Debug)]
enum Part<'a> {
    /// Header, transactions, statuses, logs.
    Content,
    Traces(&'a Traces, TraceTime),
}

/// What another endpoint says about a part.
#[derive(Debug)]
enum Verdict {
    /// But for these transactions, which it could not trace.
    Agrees(Vec<u32>),
    /// With the part that differs.
    Contradicts(&'static str),
    /// It can't say: it has no tracer.
    Unable,
    /// It does not have the block, or did not answer.
    Silent(String),
}

/// The endpoints that have said something about a part.
#[derive(Debug, Default)]
struct Verdicts {
    agreeing: Vec<Arc<Endpoint>>,
    contradicting: Vec<(Arc<Endpoint>, &'static str)>,
    /// The transactions that none of those that agree could trace. `None` if none agrees.
    unconfirmed: Option<Vec<u32>>,
}

impl Verdicts {
    fn agree(&mut self, endpoint: Arc<Endpoint>, untraced: Vec<u32>) {
        match &mut self.unconfirmed {
            Some(unconfirmed) => unconfirmed.retain(|index| untraced.contains(index)),
            None => self.unconfirmed = Some(untraced),
        }
        self.agreeing.push(endpoint);
    }

    /// The number of providers on each side: those with the giver, itself counted, and those against it.
    fn sides(&self) -> (usize, usize) {
        (1 + count_providers(&self.agreeing), count_providers(self.contradicting.iter().map(|(endpoint, _)| endpoint)))
    }

    /// What is unconfirmed, if another endpoint agrees and most are on its side.
    fn agreed(&self) -> Option<&Vec<u32>> {
        let (with, against) = self.sides();
        self.unconfirmed.as_ref().filter(|_| with > against)
    }
}

/// Compares content that no root proves with other endpoints' answers; `giver` gave it. Where no endpoint agrees and none is waited
/// for, it is marked as resting on one word.
///
/// # Errors
/// If others contradict and those that agree are not the majority: then nobody is trusted. If none has agreed yet that is waited
/// for.
pub(super) async fn confirm_content(
    rpc: &Rpc,
    witnesses: usize,
    giver: &Endpoint,
    fetched: &mut FetchedBlock,
) -> Result<(), FetchError> {
    let Proof { header, transactions, receipts, withdrawals: _ } = &fetched.proof;
    if [header, transactions, receipts].into_iter().any(|part| *part != PartProof::Root) {
        let confirmed = confirm(rpc, witnesses, giver, fetched, Part::Content).await?;
        fetched.on_one_word = confirmed.is_none_or(|(providers, _)| providers < witnesses);
    }
    Ok(())
}

/// Compares traces with those of other endpoints; `tracer` gave them. Those that no other endpoint confirms are taken out again,
/// where one could.
///
/// # Errors
/// As for [`confirm_content`], until the block has waited long enough: then they are taken out.
pub(super) async fn confirm_traces(
    rpc: &Rpc,
    witnesses: usize,
    tracer: &Endpoint,
    fetched: &mut FetchedBlock,
    traces: &Traces,
    time: TraceTime,
) -> Result<(), FetchError> {
    if fetched.block.transactions.is_empty() || traces.are_none() {
        return Ok(());
    }
    match confirm(rpc, witnesses, tracer, fetched, Part::Traces(traces, time)).await? {
        Some((_, unconfirmed)) => leave_out(fetched, &unconfirmed),
        None => {
            fetched.internal = Some(Vec::new());
            fetched.untraced = Some("no second endpoint has confirmed the traces".to_owned());
        }
    }
    Ok(())
}

/// Takes out what contracts sent in these transactions.
fn leave_out(fetched: &mut FetchedBlock, transactions: &[u32]) {
    if transactions.is_empty() {
        return;
    }
    fetched.internal.iter_mut().for_each(|all| all.retain(|transfer| !transactions.contains(&transfer.transaction_index)));
    let why = format!("no second endpoint could trace {} transactions", transactions.len());
    fetched.untraced = Some(fetched.untraced.take().map_or(why.clone(), |before| format!("{before}; {why}")));
}

/// Asks whether other endpoints agree. Returns how many providers do, `asked` included, and the transactions that no other one has
/// traced, or `None` if no endpoint agrees. For traces, so many must agree as a block needs witnesses, and those agree who have no
/// tracer, if nobody has one.
async fn confirm(
    rpc: &Rpc,
    witnesses: usize,
    asked: &Endpoint,
    fetched: &FetchedBlock,
    part: Part<'_>,
) -> Result<Option<(usize, Vec<u32>)>, FetchError> {
    // An endpoint of the same provider says what that provider says.
    let others = rpc.others(asked).into_iter().filter(|other| other.provider() != asked.provider());
    let questions = others.map(|other| async move {
        let verdict = ask(&other, fetched, part).await;
        (other, verdict)
    });
    let mut answers: FuturesUnordered<_> = questions.collect();
    let (mut verdicts, mut silent, mut waited_for) = (Verdicts::default(), Vec::new(), false);
    let is_whole = |verdicts: &Verdicts| verdicts.agreed().is_some_and(Vec::is_empty);
    while !(is_whole(&verdicts) && verdicts.sides().0 >= witnesses)
        && let Some((other, verdict)) = answers.next().await
    {
        match verdict {
            Verdict::Agrees(untraced) => {
                other.record_confirmation();
                verdicts.agree(other, untraced);
            }
            Verdict::Contradicts(what) => {
                other.record_confirmation();
                verdicts.contradicting.push((other, what));
            }
            Verdict::Unable => {}
            Verdict::Silent(why) => {
                waited_for |= other.is_waited_for();
                other.record_silence();
                silent.push(format!("{}: {why}", other.host()));
            }
        }
    }
    let of_traces = matches!(part, Part::Traces(..));
    // A stranger's transaction may be within one tracer's reach and beyond another's, and one of two tracers may be wrong for good.
    let is_over = matches!(part, Part::Traces(_, time) if Instant::now() >= time.waits_until);
    waited_for &= !is_over;
    // Content that too few give is published all the same, in doubt.
    let lacks_words = of_traces && verdicts.sides().0 < witnesses && !silent.is_empty();
    if !verdicts.contradicting.is_empty() && verdicts.agreed().is_none() {
        let error = contradiction(rpc, fetched, asked, &verdicts);
        return if is_over { Ok(None) } else { Err(error) };
    }
    if waited_for && (lacks_words || !is_whole(&verdicts)) {
        let what = if of_traces { "the traces" } else { "what no root proves" };
        return Err(FetchError::Unconfirmed { number: fetched.block.number, what, silent: silent.join("; ") });
    }
    for (liar, what) in &verdicts.contradicting {
        name_liar(rpc, fetched, what, liar);
    }
    // Where nobody else has a tracer, traces are believed.
    let nobody_can = silent.is_empty() && of_traces;
    let providers = verdicts.sides().0;
    let confirmed = verdicts.unconfirmed.filter(|_| !lacks_words).or_else(|| nobody_can.then(Vec::new));
    Ok(confirmed.map(|unconfirmed| (providers, unconfirmed)))
}

/// Asks an endpoint, for as long as it is waited for.
async fn ask(other: &Endpoint, fetched: &FetchedBlock, part: Part<'_>) -> Verdict {
    let verdict = async {
        if let Err(error) = other.check_chain_id().await {
            return Verdict::Silent(error.to_string());
        }
        match part {
            Part::Traces(ours, time) => compare_traces(other, fetched, ours, time).await,
            Part::Content => compare_content(other, fetched).await,
        }
    };
    let wait = if other.is_waited_for() { MAX_WAIT } else { SHORT_WAIT };
    let verdict = tokio::time::timeout(wait, verdict).await;
    verdict.unwrap_or_else(|_| Verdict::Silent("no answer for a while".to_owned()))
}

async fn compare_content(other: &Endpoint, ours: &FetchedBlock) -> Verdict {
    for _ in 0..MAX_ABSENT {
        // Without a proof: only the comparison counts.
        match fetch_from_endpoint(other, Verify::Off, BlockId::Hash(ours.block.hash)).await {
            Ok(Some(theirs)) => return compare(ours, &theirs),
            Ok(None) => {
                other.record_absence();
                if !other.is_waited_for() {
                    break;
                }
                tokio::time::sleep(ABSENT_PAUSE).await;
            }
            Err(error) => return Verdict::Silent(base::error_chain(&error)),
        }
    }
    Verdict::Silent("it does not have the block".to_owned())
}

async fn compare_traces(other: &Endpoint, fetched: &FetchedBlock, ours: &Traces, time: TraceTime) -> Verdict {
    let mut absent = 0;
    loop {
        match fetch_traces(other, fetched, time.step).await {
            // It could trace nothing: so far it has not said anything.
            Ok(theirs) if theirs.are_none() => {
                other.record_absence();
                absent += 1;
                if absent == MAX_ABSENT || !other.is_waited_for() || Instant::now() >= time.until {
                    return Verdict::Silent(theirs.why.map_or_else(|| "it has no traces".to_owned(), |why| why.to_string()));
                }
                tokio::time::sleep(ABSENT_PAUSE).await;
            }
            Ok(theirs) if ours.in_common(&theirs).eq(theirs.in_common(ours)) => {
                let Traces { mut untraced, .. } = theirs;
                untraced.retain(|index| !ours.untraced.contains(index));
                return Verdict::Agrees(untraced);
            }
            Ok(_) => return Verdict::Contradicts("what contracts sent"),
            Err(FetchError::NoTracer { .. }) => return Verdict::Unable,
            Err(error) => return Verdict::Silent(base::error_chain(&error)),
        }
    }
}

/// Next time another endpoint is asked first. If that one can prove its answer, or most agree with it, the contradiction is
/// settled.
fn contradiction(rpc: &Rpc, fetched: &FetchedBlock, asked: &Endpoint, verdicts: &Verdicts) -> FetchError {
    asked.record_lie();
    let what = verdicts.contradicting.first().map_or("a part", |(_, what)| what);
    let (with, against) = verdicts.sides();
    let (one, two) =
        (asked.host(), verdicts.contradicting.iter().map(|(endpoint, _)| endpoint.host()).collect::<Vec<_>>().join(" and "));
    let endpoint = if against > with {
        name_liar(rpc, fetched, what, asked);
        one.to_owned()
    } else {
        format!("{one} or {two}")
    };
    let (expected, got) = (format!("what {two} says"), format!("something else from {one}"));
    FetchError::Unproven { endpoint, source: ProofError::new(fetched.block.number, what, expected, got) }
}

/// Names and counts an endpoint that contradicts most others. It ranks behind them for a while.
fn name_liar(rpc: &Rpc, fetched: &FetchedBlock, what: &str, liar: &Endpoint) {
    liar.record_contradiction();
    liar.count_contradiction();
    let (chain, endpoint, number) = (rpc.chain(), liar.host(), fetched.block.number);
    tracing::warn!(
        chain,
        endpoint,
        "contradiction: it says something else about {what} of block {number} than most; asking it last"
    );
}

/// Compares another endpoint's content with ours.
fn compare(ours: &FetchedBlock, theirs: &FetchedBlock) -> Verdict {
    // All that moves a transaction's value rests on its status. One that an endpoint alone does not tell is not confirmed, nor is
    // it lost by the other one's word.
    let lacks = |one: &FetchedBlock, other: &FetchedBlock| {
        let pairs = ours.block.transactions.iter().zip(one.statuses.iter().zip(&other.statuses));
        let is_unknown = |status: &ReceiptStatus| *status == ReceiptStatus::Unknown;
        pairs.into_iter().any(|(tx, (one, other))| !tx.value.is_zero() && is_unknown(one) && !is_unknown(other))
    };
    match difference(ours, theirs) {
        Some(what) => Verdict::Contradicts(what),
        None if lacks(ours, theirs) => Verdict::Contradicts("the outcome of the transactions"),
        None if lacks(theirs, ours) => Verdict::Silent("it does not say which transactions failed".to_owned()),
        None => Verdict::Agrees(Vec::new()),
    }
}
