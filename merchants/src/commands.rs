//! `ctrip merchants` and `ctrip keys`: their flags, defaults and output. A key is printed once, when it is created, and stored
//! nowhere.

use crate::admin::{self, MerchantChanges, NewKey};
use crate::keys::Scope;
use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use std::num::NonZeroU32;
use std::time::Duration;
use wallet::AccountXpub;

/// How long a rotated key still works: a day.
const DEFAULT_ROTATION_GRACE_S: u32 = 24 * 3600;

#[derive(Subcommand)]
pub enum MerchantsCommand {
    /// Create a merchant and print its id; `keys create` also creates one, with default settings
    Create {
        /// Its name, unique among all merchants
        name: String,
        /// It is none of those that a restore has left without their names
        #[arg(long)]
        new_merchant: bool,
        #[command(flatten)]
        settings: SettingFlags,
    },
    /// List all merchants with their settings
    List,
    /// Show who made and changed a merchant, its keys and its webhooks, and when
    History {
        /// The merchant's name
        name: String,
    },
    /// Change a merchant's settings; those not given stay. Payments keep the terms that they were created with
    Update {
        /// The merchant's name
        name: String,
        /// New name
        #[arg(long)]
        rename: Option<String>,
        /// Derive its addresses from cTrip's own account again
        #[arg(long, conflicts_with = "own_xpub")]
        no_own_xpub: bool,
        #[command(flatten)]
        settings: SettingFlags,
    },
}

#[derive(Args)]
pub struct SettingFlags {
    /// The merchant's own account xpub at m/44'/60'/0'; payments go to its addresses, so cTrip never holds the money
    #[arg(long)]
    own_xpub: Option<String>,
    /// Underpayment that still counts as paid, in hundredths of a percent of the amount
    #[arg(long)]
    underpaid_tolerance_bps: Option<u32>,
    /// Overpayment that is no exception, in hundredths of a percent of the amount
    #[arg(long)]
    overpaid_tolerance_bps: Option<u32>,
    /// Whether transfers after a payment's expiry still count; true if no value follows
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    accept_late: Option<bool>,
    /// A JSON object for the operator's own use
    #[arg(long)]
    metadata: Option<String>,
}

#[derive(Subcommand)]
pub enum KeysCommand {
    /// Create an API key for a merchant and print it; creates the merchant if there is none of this name
    Create {
        /// The merchant's name
        name: String,
        /// What the key may do; write includes read
        #[arg(long, default_value = "write")]
        scope: ScopeFlag,
        /// Requests per second, instead of API_RATE_LIMIT
        #[arg(long)]
        rate_limit: Option<NonZeroU32>,
        /// If there is none of this name, it is none of those that a restore has left without theirs
        #[arg(long)]
        new_merchant: bool,
    },
    /// List API keys with their ids, scopes, rate limits, states and last uses
    List {
        /// Only the keys of this merchant
        #[arg(long)]
        merchant: Option<String>,
    },
    /// Revoke a key; running APIs refuse it within seconds
    Revoke {
        /// Its id, or the key itself
        key: String,
    },
    /// Create a key with the scope and rate limit of an old one and print it; the old key works on for a grace period
    Rotate {
        /// The old key's id, or the old key itself
        key: String,
        /// Grace period in seconds, after which the old key stops working
        #[arg(long, default_value_t = DEFAULT_ROTATION_GRACE_S)]
        grace: u32,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum ScopeFlag {
    Read,
    Write,
}

impl From<ScopeFlag> for Scope {
    fn from(name: ScopeFlag) -> Self {
        match name {
            ScopeFlag::Read => Self::Read,
            ScopeFlag::Write => Self::Write,
        }
    }
}

impl SettingFlags {
    fn changes(self) -> anyhow::Result<MerchantChanges> {
        let Self { own_xpub, underpaid_tolerance_bps, overpaid_tolerance_bps, accept_late, metadata } = self;
        // Not parsed by clap, whose message would repeat a private key that was pasted by mistake.
        let xpub = own_xpub.map(|text| AccountXpub::parse(&text)).transpose().context("--own-xpub")?.map(Some);
        Ok(MerchantChanges { name: None, xpub, underpaid_tolerance_bps, overpaid_tolerance_bps, accept_late, metadata })
    }
}

pub async fn run_merchants(database_url: &str, command: MerchantsCommand) -> anyhow::Result<()> {
    match command {
        MerchantsCommand::Create { name, new_merchant, settings } => {
            println!("{}", admin::create_merchant(database_url, &name, new_merchant, settings.changes()?).await?);
        }
        MerchantsCommand::List => {
            let head = ["id", "name", "xpub", "underpaid bps", "overpaid bps", "accept late", "keys", "created", "metadata"];
            let rows = admin::list_merchants(database_url).await?.into_iter().map(|merchant| {
                let xpub = merchant.xpub.unwrap_or_else(|| "-".to_owned());
                vec![
                    merchant.id.to_string(),
                    merchant.name,
                    match merchant.restored_account {
                        Some(other) => format!("{xpub} or {other}"),
                        None => xpub,
                    },
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
        MerchantsCommand::History { name } => {
            let head = ["at", "what", "id", "change", "asked by key", "login"];
            let rows = admin::history(database_url, &name).await?.into_iter().map(|change| {
                let asked_by = change.asked_by.unwrap_or_else(|| "-".to_owned());
                vec![change.at, change.kind, change.item, change.change, asked_by, change.login]
            });
            print_table(&head, rows);
        }
        MerchantsCommand::Update { name, rename, no_own_xpub, settings } => {
            let mut changes = MerchantChanges { name: rename, ..settings.changes()? };
            if no_own_xpub {
                changes.xpub = Some(None);
            }
            println!("{}", admin::update_merchant(database_url, &name, changes).await?);
        }
    }
    Ok(())
}

pub async fn run_keys(database_url: &str, command: KeysCommand) -> anyhow::Result<()> {
    match command {
        KeysCommand::Create { name, scope, rate_limit, new_merchant } => {
            let new = NewKey { scope: scope.into(), rate_limit };
            let (key, is_created) = admin::create_key(database_url, &name, new_merchant, new).await?;
            if is_created {
                eprintln!("created the merchant {name:?}, whose addresses are of cTrip's own account (CTRIP_XPUB)");
            }
            println!("{key}");
        }
        KeysCommand::List { merchant } => {
            let head = ["id", "merchant", "scope", "per second", "state", "created", "last used"];
            let rows = admin::list_keys(database_url, merchant.as_deref()).await?.into_iter().map(|key| {
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
        KeysCommand::Revoke { key } => match admin::revoke_key(database_url, &key).await? {
            None => println!("revoked; running APIs refuse it within seconds"),
            Some(at) => println!("it was revoked already, at {at}"),
        },
        KeysCommand::Rotate { key, grace } => {
            println!("{}", admin::rotate_key(database_url, &key, Duration::from_secs(grace.into())).await?);
        }
    }
    Ok(())
}

fn print_table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut table = vec![head.iter().map(|&cell| cell.to_owned()).collect()];
    table.extend(rows);
    print!("{}", base::text::table(&table));
}
