//! Commands about merchants and their keys. A key is printed once, when it is made, and nowhere kept.

use anyhow::Context as _;
use api::Scope;
use api::admin::{self, Changes, NewKey};
use clap::{Args, Subcommand, ValueEnum};
use std::num::NonZeroU32;
use std::time::Duration;
use wallet::AccountXpub;

#[derive(Subcommand)]
pub enum Merchants {
    /// Make a merchant; `keys create` does so too, with no settings
    Create {
        /// Unique
        name: String,
        #[command(flatten)]
        settings: Settings,
    },
    /// Print all merchants with their settings
    List,
    /// Change settings; those not given stay. Payments keep what they were made with
    Update {
        /// The merchant
        name: String,
        /// Another name
        #[arg(long)]
        rename: Option<String>,
        /// Derive addresses from cTrip's own account again
        #[arg(long, conflicts_with = "own_xpub")]
        no_own_xpub: bool,
        #[command(flatten)]
        settings: Settings,
    },
}

#[derive(Args)]
pub struct Settings {
    /// The merchant's own account xpub at m/44'/60'/0': its payments go there, and cTrip never holds its money
    #[arg(long)]
    own_xpub: Option<String>,
    /// How much less than the amount is as good as it, in hundredths of a percent
    #[arg(long)]
    underpaid_tolerance_bps: Option<u32>,
    /// How much more than the amount is no exception, in hundredths of a percent
    #[arg(long)]
    overpaid_tolerance_bps: Option<u32>,
    /// Whether transfers after a payment's expiry count
    #[arg(long, value_name = "true|false")]
    accept_late: Option<bool>,
    /// A JSON object, for whoever runs cTrip
    #[arg(long)]
    metadata: Option<String>,
}

#[derive(Subcommand)]
pub enum Keys {
    /// Print a new API key for a merchant, who is made if there is none of this name
    Create {
        /// The merchant
        name: String,
        /// What the key may do; write includes read
        #[arg(long, default_value = "write")]
        scope: ScopeName,
        /// Requests a second, instead of API_RATE_LIMIT
        #[arg(long)]
        rate_limit: Option<NonZeroU32>,
    },
    /// Print the keys' ids, scopes and last uses
    List {
        /// Of this merchant alone
        #[arg(long)]
        merchant: Option<String>,
    },
    /// End a key; running APIs follow within seconds
    Revoke {
        /// Its id, or the key itself
        key: String,
    },
    /// Print a new key that may do the same as an old one, which lives on for a time of grace
    Rotate {
        /// The old one's id, or the old key itself
        key: String,
        /// Seconds that the old one lives on
        #[arg(long, default_value_t = 24 * 3600)]
        grace: u32,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum ScopeName {
    Read,
    Write,
}

impl From<ScopeName> for Scope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Read => Self::Read,
            ScopeName::Write => Self::Write,
        }
    }
}

impl Settings {
    fn changes(self) -> anyhow::Result<Changes> {
        let Self { own_xpub, underpaid_tolerance_bps, overpaid_tolerance_bps, accept_late, metadata } = self;
        // Not clap's, whose message would repeat a private key that somebody pasted.
        let xpub = own_xpub.map(|text| AccountXpub::parse(&text)).transpose().context("--own-xpub")?.map(Some);
        Ok(Changes { name: None, xpub, underpaid_tolerance_bps, overpaid_tolerance_bps, accept_late, metadata })
    }
}

pub async fn merchants(database_url: &str, command: Merchants) -> anyhow::Result<()> {
    match command {
        Merchants::Create { name, settings } => {
            println!("{}", admin::create_merchant(database_url, &name, settings.changes()?).await?);
        }
        Merchants::List => {
            let head = ["id", "name", "xpub", "underpaid bps", "overpaid bps", "accept late", "keys", "created", "metadata"];
            let rows = admin::merchants(database_url).await?.into_iter().map(|merchant| {
                vec![
                    merchant.id.to_string(),
                    merchant.name,
                    merchant.xpub.unwrap_or_else(|| "-".to_owned()),
                    merchant.underpaid_tolerance_bps.to_string(),
                    merchant.overpaid_tolerance_bps.to_string(),
                    merchant.accept_late.to_string(),
                    merchant.keys.to_string(),
                    merchant.created_at,
                    merchant.metadata.unwrap_or_else(|| "-".to_owned()),
                ]
            });
            print_table(&head, rows);
        }
        Merchants::Update { name, rename, no_own_xpub, settings } => {
            let mut changes = Changes { name: rename, ..settings.changes()? };
            if no_own_xpub {
                changes.xpub = Some(None);
            }
            println!("{}", admin::update_merchant(database_url, &name, changes).await?);
        }
    }
    Ok(())
}

pub async fn keys(database_url: &str, command: Keys) -> anyhow::Result<()> {
    match command {
        Keys::Create { name, scope, rate_limit } => {
            let new = NewKey { scope: scope.into(), rate_limit };
            println!("{}", admin::create_key(database_url, &name, new).await?);
        }
        Keys::List { merchant } => {
            let head = ["id", "merchant", "scope", "per second", "state", "created", "last used"];
            let rows = admin::keys(database_url, merchant.as_deref()).await?.into_iter().map(|key| {
                vec![
                    key.id,
                    key.merchant,
                    key.scope,
                    key.rate_limit.map_or_else(|| "-".to_owned(), |rate| rate.to_string()),
                    key.state,
                    key.created_at,
                    key.last_used_at.unwrap_or_else(|| "-".to_owned()),
                ]
            });
            print_table(&head, rows);
        }
        Keys::Revoke { key } => admin::revoke_key(database_url, &key).await?,
        Keys::Rotate { key, grace } => {
            println!("{}", admin::rotate_key(database_url, &key, Duration::from_secs(grace.into())).await?);
        }
    }
    Ok(())
}

fn print_table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut table = vec![head.iter().map(|&cell| cell.to_owned()).collect()];
    table.extend(rows);
    print!("{}", chain::table(&table));
}
