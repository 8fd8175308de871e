//! `ctrip orphans`: transfers that wait for their payment, or for their token to be right.

use crate::chain::id;
use anyhow::{Context as _, bail, ensure};
use base::text;
use chain::Chains;
use payments::store::{self, WaitingOrphans};
use runtime::{Settings, db};
use topics::Address;

#[derive(clap::Subcommand)]
pub enum OrphansCommand {
    /// How many there are, by chain and token, and what they wait for
    List,
    /// Wait no more for a token that the chains file will not list: its transfers are kept as those of any unlisted token. Shows it;
    /// --execute does it
    Forget {
        /// Name in the chains file, or the chain's id
        chain: String,
        /// The token's contract address
        token: Address,
        #[arg(long)]
        execute: bool,
    },
}

pub async fn run(settings: &Settings, command: OrphansCommand) -> anyhow::Result<()> {
    let pool = db::pool(&settings.database_url, 1)?;
    let db = pool.get().await.context("Postgres (DATABASE_URL)")?;
    let all = store::orphans_by_token(&db).await?;
    match command {
        OrphansCommand::List => print!("{}", table(&all)),
        OrphansCommand::Forget { chain, token, execute } => {
            let chain = id(settings, &chain).await?;
            let (chains, _) = Chains::load(&settings.chains_file)?.resolve_known().await;
            let Some(known) = chains.by_id(chain) else {
                bail!(
                    "chain {chain} is not in {}, and nobody looks at its orphans: list it, without the token, until they are gone",
                    settings.chains_file.display()
                )
            };
            ensure!(
                known.tokens.iter().all(|listed| listed.address != token),
                "{token} is in {}: take it out, and send the confirmers SIGHUP",
                settings.chains_file.display()
            );
            let of_token =
                |orphans: &&WaitingOrphans| orphans.in_doubt && (orphans.chain, orphans.token) == (chain, Some(token));
            let waiting: i64 = all.iter().filter(of_token).map(|orphans| orphans.count).sum();
            println!(
                "{waiting} transfers of {token} on chain {chain} wait for their token, and would be kept as unlisted, credited to nobody"
            );
            if !execute {
                bail!("nothing was changed; if that is right, run it again with --execute");
            }
            store::give_token_up(&db, chain, token).await?;
            println!(
                "they wait for it no more; if the token is listed after all, `ctrip backfill` of their blocks credits them"
            );
        }
    }
    Ok(())
}

fn table(all: &[WaitingOrphans]) -> String {
    let head = ["chain", "token", "transfers", "wait for"].map(str::to_owned).to_vec();
    let row = |orphans: &WaitingOrphans| {
        let token = orphans.token.map_or_else(|| "the coin".to_owned(), |token| token.to_string());
        let awaited = if orphans.in_doubt { "their token" } else { "their payment" };
        vec![orphans.chain.to_string(), token, orphans.count.to_string(), awaited.to_owned()]
    };
    text::table(&std::iter::once(head).chain(all.iter().map(row)).collect::<Vec<_>>())
}
