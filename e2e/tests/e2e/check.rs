//! `ctrip check` gives a verdict on each endpoint, websocket and token before money depends on it.

use anyhow::{Context as _, Result, ensure};
use e2e::{Extent, Fault, Lab, Lacks, Node, Plan, Proxy, Tunnel};
use reqwest::Method;
use serde_json::json;

const SOUND: Lacks = Lacks { batches: false, block_receipts: false };
const BARE: Lacks = Lacks { batches: true, block_receipts: true };

/// The row of one endpoint, by column.
struct Row<'a>(Vec<&'a str>, Vec<&'a str>);

impl<'a> Row<'a> {
    fn of(said: &'a str, endpoint: &str) -> Result<Self> {
        let mut tables = said.lines().skip_while(|line| !line.starts_with("endpoint "));
        let columns = cells(tables.next().context("no table")?);
        let row = tables.map(cells).find(|cells| cells.first() == Some(&endpoint));
        Ok(Self(columns, row.with_context(|| format!("no row of {endpoint}"))?))
    }

    fn get(&self, column: &str) -> Result<&'a str> {
        let place = self.0.iter().position(|name| *name == column).with_context(|| format!("no column {column}"))?;
        self.1.get(place).copied().with_context(|| format!("nothing in {column}"))
    }
}

fn cells(line: &str) -> Vec<&str> {
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

fn host(url: &str) -> &str {
    url.trim_start_matches("http://")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoint_and_websocket_gets_the_verdict_that_it_deserves() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let other = Node::start_with(&lab.stack, &["--chain-id", "31338"]).await?;
    let [sound, lagging, bare, lying, elsewhere] = [
        Proxy::start(&lab.node.url, SOUND).await?,
        Proxy::start(&lab.node.url, SOUND).await?,
        Proxy::start(&lab.node.url, BARE).await?,
        Proxy::start(&lab.node.url, SOUND).await?,
        Proxy::start(&lab.node.url, SOUND).await?,
    ];
    let mut down = Proxy::start(&lab.node.url, SOUND).await?;
    down.close().await?;
    let mut cut = Tunnel::start(host(&lab.node.url)).await?;
    cut.cut();
    // Each block has a log, so that there is something to prove or to leave out.
    for _ in 0..5 {
        lab.node.pay_token(lab.node.token, alloy::primitives::U256::from(1)).await?;
    }
    e2e::eventually("five blocks", || async { Ok((lab.node.head().await? >= 6).then_some(())) }).await?;
    let head = lab.node.head().await?;

    let write = |endpoints: &[&Proxy], sockets: &[&str]| {
        let urls: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.url.as_str()).collect();
        let sockets: Vec<String> = sockets.iter().map(|socket| format!("ws://user:hunter2@{socket}/?key=hunter2")).collect();
        let chain = json!([{ "name": "anvil", "chain_id": 31337, "rpc_urls": urls, "ws_urls": sockets }]);
        // JSON is YAML.
        lab.write_chains(&chain.to_string())
    };
    let check = || -> Result<(Option<i32>, String, String)> {
        let output = lab.output(&["check"])?;
        let (said, complained) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        println!("{said}{complained}");
        Ok((output.status.code(), said, complained))
    };
    let says = |said: &str, line: &str| {
        ensure!(said.lines().any(|said| said.trim_start().starts_with(line)), "expected {line:?} in:\n{said}");
        Ok(())
    };

    lagging.make(Fault::Behind(3), Extent::Always);
    lying.make(Fault::EmptyLogs, Extent::Always);
    write(&[&sound, &lagging, &bare, &lying, &down], &[host(&lab.node.url), &cut.address.to_string()])?;
    let (code, said, complained) = check()?;
    ensure!(code == Some(0), "{code:?}: {complained}");
    ensure!(!said.contains("hunter2"), "a key was shown:\n{said}");
    let at = |endpoint: &Proxy| -> Result<Row<'_>> { Row::of(&said, host(&endpoint.url)) };
    for (endpoint, its_head, lag) in [(&sound, head, "0"), (&lagging, head - 3, "3"), (&bare, head, "0")] {
        let row = at(endpoint)?;
        ensure!(row.get("chain")? == "31337" && row.get("head")? == its_head.to_string() && row.get("lag")? == lag, "{said}");
    }
    for (endpoint, receipts, batches) in [(&sound, "by block", "yes"), (&bare, "by transaction", "no"), (&down, "-", "-")] {
        let row = at(endpoint)?;
        ensure!(row.get("receipts")? == receipts && row.get("batches")? == batches, "{}:\n{said}", endpoint.url);
    }
    ensure!(at(&sound)?.get("traces")? == "debug_traceBlockByHash" && at(&down)?.get("traces")? == "-", "{said}");
    ensure!(at(&sound)?.get("client")?.contains("anvil"), "{said}");
    let block = format!("block {head}, of 1 transaction,");
    says(&said, &format!("{}: usable; {block} is proven by roots", host(&sound.url)))?;
    says(&said, &format!("{}: usable, but 3 blocks behind the newest, so asked last; block {}", host(&lagging.url), head - 3))?;
    says(&said, &format!("{}: usable; {block} has logs that are proven by bloom; not by root: ", host(&bare.url)))?;
    says(&said, &format!("{}: not usable: {} gave an answer that is not proven: ", host(&lying.url), host(&lying.url)))?;
    says(&said, &format!("{}: not usable: eth_chainId at {}: no answer", host(&down.url), host(&down.url)))?;
    says(&said, &format!("websocket {}: usable; tells new heads, and is at block {head}", host(&lab.node.url)))?;
    says(&said, &format!("websocket {}: not usable: the connection failed", cut.address))?;
    says(&said, "anvil: 3 of 5 endpoints usable, 1 of 2 websockets usable")?;
    says(
        &said,
        "anvil: coin that contracts send is seen only where a block logs it, and the newest one logs none; traces: true",
    )?;

    // An endpoint of another chain is an error, however many others work.
    elsewhere.make(Fault::ChainId(5), Extent::Always);
    write(&[&sound, &elsewhere], &[host(&other.url)])?;
    let (code, said, complained) = check()?;
    ensure!(code == Some(1), "{code:?}");
    says(&said, &format!("{}: not usable: {} is of chain 5; expected 31337", host(&elsewhere.url), host(&elsewhere.url)))?;
    says(&said, &format!("websocket {}: not usable: it is of chain 31338; expected 31337", host(&other.url)))?;
    says(&said, "anvil: 1 of 2 endpoints usable, 0 of 1 websockets usable")?;
    let (endpoint, socket) = (host(&elsewhere.url), host(&other.url));
    says(
        &complained,
        &format!("error: {endpoint} of anvil is of another chain; websocket {socket} of anvil is of another chain"),
    )?;

    // A chain works without websockets, and does not without endpoints.
    write(&[&down], &[])?;
    let (code, said, complained) = check()?;
    ensure!(code == Some(1), "{code:?}");
    says(&said, "anvil: 0 of 1 endpoints usable, no websocket, so a new block is seen within")?;
    says(&complained, "error: anvil has no usable endpoint")?;
    write(&[&sound], &[])?;
    let (code, _, complained) = check()?;
    ensure!(code == Some(0), "{code:?}: {complained}");
    Ok(())
}

/// 1.5 units of such a token would be asked for as 0.0000000000015.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_its_contract_contradicts_is_named_and_not_offered_and_the_others_are() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let twin = lab.node.deploy("Token").await?;
    let token =
        |symbol: &str, address: String, decimals: u8| json!({ "symbol": symbol, "address": address, "decimals": decimals });
    let tokens = [
        token("DUSD", lab.node.token.to_string(), 6),
        token("WIDE", twin.to_string(), 18),
        token("GONE", format!("0x{}", "77".repeat(20)), 6),
    ];
    let chain = json!([{ "name": "anvil", "chain_id": 31337, "rpc_url": lab.node.url, "start_block": 0, "tokens": tokens }]);
    lab.write_chains(&chain.to_string())?;
    let output = lab.output(&["check"])?;
    let (said, complained) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    ensure!(!output.status.success() && said.contains("token DUSD: usable; 6 decimals"), "{said}{complained}");
    for expected in [
        "token WIDE of anvil: its contract",
        "has 6 decimals and the chains file says 18",
        "token GONE of anvil: there is no contract",
    ] {
        ensure!(complained.contains(expected), "expected {expected:?} in {complained}");
    }

    let (_process, api) = lab.serve("api", "shop").await?;
    let (_, listed) = api.request(Method::GET, "/api/v1/tokens", None, &[]).await?;
    ensure!(listed["data"].as_array().is_some_and(|all| all.len() == 1 && all[0]["token"] == "DUSD"), "{listed}");
    for (token, expected) in [("DUSD", 201), ("WIDE", 503), ("GONE", 503)] {
        let order = json!({ "chain": "anvil", "token": token, "amount": 1_500_000 });
        let (status, answer) = api.request(Method::POST, "/api/v1/payments", Some(order.clone()), &[]).await?;
        let (_, batch) = crate::api::batch(&api, &[order], &[]).await?;
        ensure!(status == expected && batch["data"][0]["status"] == expected, "{token}: {status} {answer} {batch}");
        ensure!(expected == 201 || answer["detail"].as_str().is_some_and(|text| text.contains(token)), "{answer}");
    }
    let (_, health) = api.request(Method::GET, "/health", None, &[]).await?;
    let named = |token: &str| health["components"]["stages"].to_string().contains(&format!("token {token} of chain anvil"));
    ensure!(health["status"] == "degraded" && named("WIDE") && named("GONE") && !named("DUSD"), "{health}");
    Ok(())
}
