//! `ctrip chain forget` and `ctrip chain restart`: for chains that can't be continued, or are not wanted any more.
//!
//! Both print what they would do, and do it with `--execute` alone.

use anyhow::{Context as _, bail};
use chain::Chains;
use confirmer::fold::FOLDING;
use ingest::{Applied, MAX_PAID_BLOCKS, Restart, Unapplied};
use payments::store::{self, ChainHead, OpenPayments};
use runtime::{Settings, db, set_aside};
use std::slice;
use topics::{BlockRef, ChainId, Topic};

#[derive(clap::Subcommand)]
pub enum ChainCommand {
    /// Drop what is set aside of a chain: its unread matches are never applied. Shows it; --execute does it
    Forget {
        /// Name in the chains file, or the chain's id
        chain: String,
        #[arg(long)]
        execute: bool,
    },
    /// Begin a chain anew, above its last final block, whatever it was set aside or halted for. Shows it; --execute does it
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
    let items = set_aside::chains(&db, &settings.topic_prefix).await?.into_iter();
    let topic = settings.topic_name(Topic::Matches);
    let items: Vec<_> = items.filter(|item| item.item == chain.to_string()).collect();
    if items.is_empty() {
        println!("nothing of chain {chain} is set aside");
        return Ok(());
    }
    for item in &items {
        println!("{}/{} from offset {}: {}", item.topic, item.partition, item.next_offset, item.cause);
    }
    print_open(&store::open_payments(&db, chain).await?);
    println!("its unread records would be dropped: payments in them are not credited, blocks in them confirm nothing");
    if !execute {
        bail!("nothing was changed; if that is right, run it again with --execute");
    }
    for item in &items {
        set_aside::forget(&db, &item.stage, &topic, slice::from_ref(&item.item)).await?;
    }
    println!("forgotten; if the chain comes back to the chains file, run: ctrip chain restart {chain}");
    Ok(())
}

async fn restart(settings: &Settings, name: &str, execute: bool) -> anyhow::Result<()> {
    let restart = Restart::open(settings, name).await?;
    let pool = db::pool(&settings.database_url, 2)?;
    let db = pool.get().await.context("Postgres (DATABASE_URL)")?;
    let chain = restart.chain();
    // In this order: what comes before the offset is applied or set aside by then.
    let (topic, partition) = (settings.topic_name(Topic::Matches), Topic::Matches.partition_of(&chain.to_string()));
    let next = FOLDING.position(&pool, &topic, partition).await?.unwrap_or_default();
    let items = FOLDING.set_aside_in(&db, &topic, partition).await?;
    let waiting = items.iter().find(|item| item.item == chain.to_string());
    let unapplied = waiting.map_or(Unapplied::Next(next), |item| Unapplied::Waiting(item.next_offset));
    let head = store::lock_head(&db, chain).await?;
    let paid = store::paid_blocks(&db, chain, restart.last_final(), i64::from(MAX_PAID_BLOCKS)).await?;
    let applied = head.map(|head| applied(&head, paid));
    let plan = restart.plan(applied.as_ref(), unapplied).await?;
    match plan.stands {
        Some(stands) => println!(
            "what was applied up to block {stands} stands; what later blocks have brought is taken back, and comes again with the \
             blocks that are read"
        ),
        None => println!("nothing of it was applied"),
    }
    println!("begins anew at block {}", plan.begins);
    print_open(&store::open_payments(&db, chain).await?);
    println!(
        "pending payments expire by the timestamps of the blocks to come; detected ones are confirmed by their depth below them"
    );
    let gap = plan.gap();
    if let Some((from, to)) = gap {
        println!(
            "of blocks {from} to {to} some or all are read by nobody then: the restart names the backfill that brings them"
        );
    }
    if !execute {
        bail!("not restarted; if that is right, run it again with --execute");
    }
    restart.execute(plan, applied.as_ref()).await?;
    println!("restarted: a running ingest begins with the chain's next block");
    // Not earlier: what a backfill brings above the block that stands is taken back by the restart.
    if let Some((from, to)) = gap {
        println!(
            "money in blocks {from} to {to} is credited by: ctrip backfill --chain {name} --from {from} --to {to} --again"
        );
    }
    Ok(())
}

/// What the confirmer has applied of a chain.
fn applied(head: &ChainHead, paid: Vec<BlockRef>) -> Applied {
    let ChainHead { sequence, first, number, hash, finalized, open, .. } = *head;
    let (known_by_hash, open) = (head.known_by_hash(), open.map(|open| open.hash));
    Applied { sequence, first, number, hash, finalized, known_by_hash, open, paid }
}

fn print_open(open: &OpenPayments) {
    println!("payments that wait there: {} pending, {} detected", open.pending, open.detected);
}

/// The chain's id. A chain that was removed from the file is named by it.
pub(crate) async fn id(settings: &Settings, name: &str) -> anyhow::Result<ChainId> {
    if let Ok(id) = name.parse() {
        return Ok(ChainId(id));
    }
    let chains = Chains::load(&settings.chains_file)?.only(name).resolve().await?;
    Ok(chains.named(name).context("a chain that the file does not have is named by its id")?.id)
}
