//! `ctrip chain forget` and `ctrip chain restart`: for chains that can't be continued, or are not wanted any more.
//!
//! Both print what they would do, and do it with `--execute` alone.

use anyhow::{Context as _, bail};
use chain::Chains;
use payments::store::{self, OpenPayments};
use runtime::set_aside;
use runtime::{Settings, db};
use topics::{ChainId, Topic};

#[derive(clap::Subcommand)]
pub enum ChainCommand {
    /// Drop what is set aside of a chain: its unread matches are never applied. Shows it; --execute does it
    Forget {
        /// Name in the chains file, or the chain's id
        chain: String,
        #[arg(long)]
        execute: bool,
    },
    /// Begin a chain anew, at its start_block or its head, whatever it was set aside or halted for. Shows it; --execute does it
    Restart {
        /// Name in the chains file, or the chain's id
        chain: String,
        #[arg(long)]
        execute: bool,
    },
}

pub async fn run(settings: Settings, command: ChainCommand) -> anyhow::Result<()> {
    match command {
        ChainCommand::Forget { chain, execute } => forget(&settings, &chain, execute).await,
        ChainCommand::Restart { chain, execute } => restart(&settings, &chain, execute).await,
    }
}

async fn forget(settings: &Settings, name: &str, execute: bool) -> anyhow::Result<()> {
    let chain = id(settings, name).await?;
    let pool = db::pool(&settings.database_url, 1)?;
    let db = pool.get().await.context("Postgres (DATABASE_URL)")?;
    let failed = |failure| anyhow::anyhow!("{failure}");
    let items = set_aside::all(&db).await.map_err(failed)?.into_iter();
    let items: Vec<_> = items.filter(|i| i.topic == Topic::Matches.name() && i.item == chain.to_string()).collect();
    if items.is_empty() {
        println!("nothing of chain {chain} is set aside");
        return Ok(());
    }
    for item in &items {
        println!("{}/{} from offset {}: {}", item.topic, item.partition, item.next_offset, item.cause);
    }
    print_open(&store::open_payments(&db, chain).await.map_err(failed)?);
    println!("its unread records would be dropped: payments in them are not credited, blocks in them confirm nothing");
    if !execute {
        bail!("nothing was changed; if that is right, run it again with --execute");
    }
    for item in &items {
        set_aside::forget(&db, &item.stage, &item.item).await.map_err(failed)?;
    }
    println!("forgotten; if the chain comes back to the chains file, run: ctrip chain restart {chain}");
    Ok(())
}

async fn restart(settings: &Settings, name: &str, execute: bool) -> anyhow::Result<()> {
    // What is printed comes first: the plan changes nothing.
    let plan = ingest::restart(settings, name, false).await?;
    let pool = db::pool(&settings.database_url, 1)?;
    let db = pool.get().await.context("Postgres (DATABASE_URL)")?;
    match plan.last {
        Some(last) => println!("last block matched: {last}"),
        None => println!("no block was matched"),
    }
    println!("begins anew at block {}", plan.begins);
    print_open(&store::open_payments(&db, plan.chain).await.map_err(|failure| anyhow::anyhow!("{failure}"))?);
    println!(
        "pending payments expire by the timestamps of the blocks to come; detected ones are confirmed by their depth below them"
    );
    if let Some(last) = plan.last.filter(|last| last.number + 1 < plan.begins) {
        let (from, to) = (last.number + 1, plan.begins - 1);
        println!("money in blocks {from} to {to} is credited by: ctrip backfill --chain {name} --from {from} --to {to}");
    }
    if !execute {
        bail!("not restarted; if that is right, run it again with --execute");
    }
    ingest::restart(settings, name, true).await?;
    println!("restarted: a running ingest begins with the chain's next block");
    Ok(())
}

fn print_open(open: &OpenPayments) {
    println!("payments that wait there: {} pending, {} detected", open.pending, open.detected);
}

/// The chain's id. A chain that was removed from the file is named by it.
async fn id(settings: &Settings, name: &str) -> anyhow::Result<ChainId> {
    if let Ok(id) = name.parse() {
        return Ok(ChainId(id));
    }
    let chains = Chains::load(&settings.chains_file)?.only(name).resolve().await?;
    Ok(chains.named(name).context("a chain that the file does not have is named by its id")?.id)
}
