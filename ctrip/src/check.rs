//! `ctrip check`: probes the endpoints and websockets of the chains file, asks the tokens' contracts, and says who witnesses a
//! chain's blocks.
//!
//! It prints an endpoint's host and never its URL, which carries a key.

use chain::{
    Chain, Chains, EndpointCheck, HeadsError, MAX_LAG_BLOCKS, NodeUrl, Policy, Probe, Token, TokenVerdict, WebsocketCheck,
};
use runtime::Settings;
use std::collections::BTreeSet;

/// Probes every endpoint and prints what it can do and what it proves.
///
/// # Errors
/// When a chain has no usable endpoint, an endpoint or a websocket is of another chain, or a token is not as the file says.
pub async fn run(settings: Settings, only: Option<&str>) -> anyhow::Result<()> {
    let file = Chains::load(&settings.chains_file)?;
    let file = match only {
        Some(name) => file.only(name),
        None => file,
    };
    let (chains, left_out) = file.resolve_known().await;
    let mut wrong: Vec<String> = left_out.iter().map(|error| base::error_chain(error)).collect();
    if let Some(name) = only.filter(|_| left_out.is_empty()) {
        chains.named(name)?;
    }
    for chain in chains.iter().filter(|chain| only.is_none_or(|name| chain.name == name)) {
        let (trials, hearings) = tokio::join!(chain::check_endpoints(chain), chain::check_websockets(chain));
        print(chain, &trials, &hearings);
        if trials.iter().all(|trial| trial.verdict.is_err()) {
            wrong.push(format!("{} has no usable endpoint", chain.name));
        }
        // cTrip would use neither, but the chains file must be wrong.
        let others = trials.iter().filter(|trial| trial.probe.chain_id.is_some_and(|id| id != chain.id));
        let endpoints = others.map(|trial| format!("{} of {} is of another chain", trial.probe.endpoint, chain.name));
        let others = hearings.iter().filter(|hearing| matches!(hearing.verdict, Err(HeadsError::WrongChain { .. })));
        let sockets = others.map(|hearing| format!("websocket {} of {} is of another chain", hearing.endpoint, chain.name));
        wrong.extend(endpoints.chain(sockets));
        wrong.extend(check_tokens(chain).await);
        println!();
    }
    anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

fn print(chain: &Chain, trials: &[EndpointCheck], hearings: &[WebsocketCheck]) {
    let newest = trials.iter().filter_map(|trial| trial.probe.head).max();
    let mut rows = vec![Probe::columns()];
    rows.extend(trials.iter().map(|trial| trial.probe.cells(newest)));
    println!("{} (chain id {})", chain.name, chain.id);
    print!("{}", base::text::table(&rows));
    for EndpointCheck { probe, verdict, .. } in trials {
        let lag = probe.lag(newest).filter(|lag| *lag > MAX_LAG_BLOCKS);
        let behind = lag.map(|lag| format!(", but {lag} blocks behind the newest, so asked last")).unwrap_or_default();
        match verdict {
            Ok(proof) => println!("  {}: usable{behind}; {proof}", probe.endpoint),
            Err(cause) => println!("  {}: not usable: {cause}", probe.endpoint),
        }
    }
    for WebsocketCheck { endpoint, verdict } in hearings {
        match verdict {
            Ok(head) => println!("  websocket {endpoint}: usable; tells new heads, and is at block {head}"),
            Err(cause) => println!("  websocket {endpoint}: not usable: {}", base::error_chain(cause)),
        }
    }
    let usable = trials.iter().filter(|trial| trial.verdict.is_ok()).count();
    let heard = hearings.iter().filter(|hearing| hearing.verdict.is_ok()).count();
    let sockets = match hearings.len() {
        0 => format!("no websocket, so a new block is seen within {:?}", chain.poll_interval),
        all => format!("{heard} of {all} websockets usable"),
    };
    println!("{}: {usable} of {} endpoints usable, {sockets}", chain.name, trials.len());
    println!("{}: {}", chain.name, witnesses(chain, trials));
    println!("{}: {}", chain.name, coin_from_contracts(chain, trials));
    for lacking in lacking_tags(chain, trials) {
        println!("{}: {lacking}", chain.name);
    }
}

/// Prints what the tokens' contracts say, and returns which contradict the file.
async fn check_tokens(chain: &Chain) -> Vec<String> {
    let mut wrong = Vec::new();
    for (Token { symbol, .. }, verdict) in chain::check_tokens(chain).await {
        match verdict {
            TokenVerdict::Fits(how) | TokenVerdict::Undeclared(how) => println!("  token {symbol}: usable; {how}"),
            TokenVerdict::OtherSymbol(how) => println!("  token {symbol}: usable, but {how}"),
            TokenVerdict::Unknown(why) => println!("  token {symbol}: could not be asked: {why}"),
            TokenVerdict::Wrong(cause) => {
                println!("  token {symbol}: not usable: {cause}");
                wrong.push(format!("token {symbol} of {}: {cause}", chain.name));
            }
        }
    }
    wrong
}

/// Whether a payment in the coin is seen that comes from a contract, and not from a transaction's value.
fn coin_from_contracts(chain: &Chain, trials: &[EndpointCheck]) -> &'static str {
    if chain.traces {
        "coin that contracts send is seen by call traces"
    } else if trials.iter().any(|trial| trial.logs_coin) {
        "coin that contracts send is seen, since blocks log every movement of the coin"
    } else {
        "coin that contracts send is seen only where a block logs it, and the newest one logs none; traces: true shows it, if a node can trace"
    }
}

/// The tags that policies of the chain wait for and that too few endpoints report.
fn lacking_tags(chain: &Chain, trials: &[EndpointCheck]) -> Vec<String> {
    let tiers = chain.tiers.iter().chain(chain.tokens.iter().flat_map(|token| &token.tiers));
    let policies: Vec<Policy> = tiers.map(|tier| tier.policy).chain([chain.policy]).collect();
    let mut lacking = Vec::new();
    for (policy, name) in [(Policy::Safe, "safe"), (Policy::Finalized, "finalized")] {
        if !policies.contains(&policy) {
            continue;
        }
        let tag = |probe: &Probe| if policy == Policy::Safe { probe.safe } else { probe.finalized };
        let reports = |url: &&NodeUrl| trials.iter().any(|t| t.probe.endpoint == url.host() && tag(&t.probe).is_some());
        let count = chain.rpc_urls.iter().filter(reports).map(NodeUrl::provider).collect::<BTreeSet<_>>().len();
        if count < chain.witnesses {
            lacking.push(format!(
                "payments wait for {name}, which has to come from {} endpoints of different providers; {count} report it",
                chain.witnesses
            ));
        }
    }
    lacking
}

/// Who witnesses the chain's blocks: how many providers of usable endpoints there are, of those that are asked for.
fn witnesses(chain: &Chain, trials: &[EndpointCheck]) -> String {
    if let Some(why) = chain.unwitnessed() {
        return why.to_owned();
    }
    let usable = |url: &&NodeUrl| trials.iter().any(|trial| trial.verdict.is_ok() && trial.probe.endpoint == url.host());
    let providers: BTreeSet<&str> = chain.rpc_urls.iter().filter(usable).map(NodeUrl::provider).collect();
    let (asked, there) = (chain.witnesses, providers.len());
    let without = if there < asked { ", so payments are detected and not confirmed" } else { "" };
    format!("a block needs {asked} witnesses; {there} usable endpoints of different providers could be{without}")
}
