//! `ctrip check`: probes the endpoints and websockets of the chains file.
//!
//! It prints an endpoint's host and never its URL, which carries a key.

use chain::{Chain, Chains, EndpointCheck, HeadsError, MAX_LAG_BLOCKS, Probe, WebsocketCheck};
use runtime::Settings;

/// Probes every endpoint and prints what it can do and what it proves.
///
/// # Errors
/// When a chain has no usable endpoint, or an endpoint or a websocket is of another chain.
pub async fn run(settings: Settings, only: Option<&str>) -> anyhow::Result<()> {
    let chains = Chains::load(&settings.chains_file)?.resolve().await?;
    if let Some(name) = only {
        chains.named(name)?;
    }
    let mut wrong = Vec::new();
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
    for EndpointCheck { probe, verdict } in trials {
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
    println!("{}: {usable} of {} endpoints usable, {sockets}\n", chain.name, trials.len());
}
