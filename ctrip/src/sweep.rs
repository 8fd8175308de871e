//! `ctrip sweep`: what is swept to the treasury, what is not and why, and the holds that keep it where it is.

use anyhow::{Context as _, anyhow, bail, ensure};
use base::text;
use chain::{COIN_DECIMALS, Chain, Chains, Rpc, read_address};
use deadpool_postgres::Client;
use recovery::installation;
use runtime::{Settings, db};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use sweeper::engine::node::Nodes;
use sweeper::plan::admin::{self, Unfinished};
use sweeper::plan::rules::{Hold, Holding, Verdict};
use sweeper::plan::{self, MAX_PAYERS, estimate_gas, ledger};
use topics::{Address, Amount, ChainId, U256};
use uuid::Uuid;

/// Sweeps that `status` lists.
const MAX_LISTED: usize = 50;
/// Addresses of each chain that `status` names of those that have less than they should.
const MAX_MISSING: i32 = 10;

#[derive(clap::Subcommand)]
pub enum SweepCommand {
    /// Show what would be swept now, what its gas may cost, and what waits for what; nothing is queued
    Plan {
        /// Name in the chains file; all chains with a treasury if left out
        chain: Option<String>,
        /// Show each address
        #[arg(long)]
        addresses: bool,
        /// Fingerprint of an account whose addresses count beside those of CTRIP_XPUB, such as one that it has replaced
        #[arg(long)]
        account: Vec<String>,
        #[arg(long)]
        json: bool,
    },
    /// Show the sweeps that were queued: how many are in which state, those that are not over, and the holds
    Status {
        /// Name in the chains file, or the chain's id
        chain: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Have all addresses looked at in the sweeper's next turn, which it does once a day, such as after a backfill
    Run {
        /// Name in the chains file, or the chain's id; all chains if left out
        chain: Option<String>,
    },
    /// Have a sweep dropped that gets nowhere; its address is planned anew, unless a hold covers it
    Drop {
        /// Id of the sweep, as `ctrip sweep status` shows it
        sweep: Uuid,
    },
    /// Let the addresses be swept again whose sweeps have failed or were dropped. One is enough for a chain that waits since
    /// its last sweeps have come to nothing: it goes on
    Retry {
        /// Id of the sweep, as `ctrip sweep status` shows it
        sweep: Option<Uuid>,
        /// Name in the chains file, or the chain's id: all of the chain
        #[arg(long, conflicts_with = "sweep")]
        chain: Option<String>,
    },
    /// Keep from being swept what all these name. What is signed goes on
    Hold {
        /// Name in the chains file, or the chain's id
        #[arg(long)]
        chain: Option<String>,
        #[arg(long, value_parser = read_address)]
        address: Option<Address>,
        /// `coin`, or a token's contract address
        #[arg(long)]
        asset: Option<String>,
        /// Name or id
        #[arg(long)]
        merchant: Option<String>,
        /// Everything
        #[arg(long, conflicts_with_all = ["chain", "address", "asset", "merchant"])]
        all: bool,
        /// For whoever reads `ctrip sweep status`
        #[arg(long)]
        reason: String,
    },
    /// End a hold
    Release {
        /// Its number, as `ctrip sweep status` shows it
        hold: i64,
    },
}

pub async fn run(settings: &Settings, command: SweepCommand) -> anyhow::Result<()> {
    let pool = db::pool(&settings.database_url, 1)?;
    let mut db = pool.get().await.context("Postgres (DATABASE_URL)")?;
    let id = async |name: Option<String>| match name {
        Some(name) => crate::chain::id(settings, &name).await.map(Some),
        None => Ok(None),
    };
    match command {
        SweepCommand::Plan { chain, addresses, account, json } => {
            let shown = plan(&db, settings, chain.as_deref(), account).await?;
            match json {
                true => println!("{:#}", Value::from_iter(shown.iter().map(|chain| chain.json(addresses)))),
                false => shown.iter().for_each(|chain| print!("{}", chain.text(addresses))),
            }
        }
        SweepCommand::Status { chain, json } => status(&db, id(chain).await?, json).await?,
        SweepCommand::Run { chain } => {
            plan::store::look_at_all(&db, id(chain).await?).await?;
            println!("all addresses are looked at in the sweeper's next turn");
        }
        SweepCommand::Drop { sweep } => {
            let is_open = admin::drop_sweep(&db, sweep).await?;
            ensure!(is_open, "no sweep {sweep} that is not over; `ctrip sweep status` lists them");
            println!(
                "a running sweeper drops it in its next turn, and plans its address anew once it is dropped; what is signed \
                 takes a cancellation, which its address pays, and may be mined before. What its address could not pay for is \
                 set aside then. `ctrip sweep hold` keeps the money where it is"
            );
        }
        SweepCommand::Retry { sweep, chain } => {
            ensure!(sweep.is_some() || chain.is_some(), "expected the id of a sweep, or --chain");
            let retried = admin::retry(&db, sweep, id(chain).await?).await?;
            ensure!(retried > 0, "nothing there is set aside; `ctrip sweep status` lists what is");
            println!(
                "{retried} addresses may be swept again; a running sweeper looks at them in its next turn, and plans their \
                 chain again if it waits since its last sweeps have come to nothing"
            );
        }
        SweepCommand::Hold { chain, address, asset, merchant, all, reason } => {
            let token = asset.as_deref().map(read_asset).transpose()?;
            let merchant = match merchant {
                Some(name) => {
                    let found = admin::merchant(&db, &name).await?;
                    Some(found.with_context(|| format!("no merchant {name:?}; `ctrip merchants list` has them"))?)
                }
                None => None,
            };
            let hold = Hold { chain: id(chain).await?, address, token, merchant };
            let names_nothing = hold == Hold { chain: None, address: None, token: None, merchant: None };
            ensure!(all || !names_nothing, "expected what is to be held: --chain, --address, --asset, --merchant, or --all");
            let number = admin::hold(&mut db, &hold, &reason).await?;
            if let Some(address) = address
                && !plan::store::is_given_out(&db, address).await?
            {
                println!("cTrip has not given out {address}: see that it is the one that you mean");
            }
            println!(
                "hold {number}: {} is not swept; what is signed goes on. It ends with: ctrip sweep release {number}",
                named(&hold)
            );
        }
        SweepCommand::Release { hold } => {
            ensure!(admin::release(&db, hold).await?, "no hold {hold}; `ctrip sweep status` lists them");
            println!("released; a running sweeper looks at all addresses of its chain in its next turn");
        }
    }
    Ok(())
}

fn read_asset(text: &str) -> anyhow::Result<Option<Address>> {
    match text {
        "coin" => Ok(None),
        address => read_address(address)
            .map(Some)
            .map_err(|error| anyhow!("--asset {text}: expected coin, or a contract's address: {error}")),
    }
}

fn named(hold: &Hold) -> String {
    let token = hold.token.map(|token| token.map_or("the coin".to_owned(), |token| format!("token {token}")));
    let parts = [
        token,
        hold.address.map(|address| format!("address {address}")),
        hold.merchant.map(|merchant| format!("merchant {merchant}")),
        hold.chain.map(|chain| format!("chain {chain}")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "everything".to_owned() } else { parts.join(", ") }
}

/// What is planned of a chain.
struct ShownPlan {
    chain: String,
    treasury: Address,
    /// Why nothing can be told of it, or is swept.
    waits: Option<String>,
    /// Fingerprints of the accounts whose addresses count.
    accounts: Vec<String>,
    gas_limit: u64,
    /// Of a sweep, in wei: the most, what it would cost at the moment, and what of that is for a rollup's data on L1.
    most: Amount,
    now: Option<Amount>,
    l1_fee: Amount,
    holdings: Vec<(Holding, Verdict)>,
    /// Symbol, addresses and amount.
    tokens: Vec<(String, u64, String)>,
}

async fn plan(
    db: &Client,
    settings: &Settings,
    only: Option<&str>,
    mut accounts: Vec<String>,
) -> anyhow::Result<Vec<ShownPlan>> {
    accounts.extend(installation::own_account(db).await?);
    let file = Chains::load(&settings.chains_file)?;
    let (chains, silent) = match only {
        Some(name) => (file.only(name).resolve().await?, Vec::new()),
        None => file.resolve_known().await,
    };
    silent.iter().for_each(|error| eprintln!("left out: {}", base::error_chain(error)));
    let asked = only.map(|name| chains.named(name).map(|chain| chain.id)).transpose()?;
    let mut shown = Vec::new();
    for chain in chains.iter().filter(|chain| asked.is_none_or(|asked| chain.id == asked)) {
        match chain.sweeping.treasury {
            Some(treasury) => shown.push(plan_of(db, chain, treasury, accounts.clone()).await?),
            None if only.is_some() => {
                bail!("nothing is swept on {}: it has no treasury in {}", chain.name, settings.chains_file.display())
            }
            None => {}
        }
    }
    ensure!(!shown.is_empty(), "no chain has a treasury in {}", settings.chains_file.display());
    Ok(shown)
}

async fn plan_of(db: &Client, chain: &Chain, treasury: Address, accounts: Vec<String>) -> anyhow::Result<ShownPlan> {
    let rpc = Rpc::of(chain);
    let market = Nodes::new(rpc.clone(), chain.witnesses).market().await;
    let price = market.map(|market| market.price());
    // Who would be swept is asked for, planned already or not.
    let usual = plan::Settings::of(chain, None, price, accounts.clone());
    let looked = plan::look(db, chain.id, &usual).await?;
    let payers = looked.iter().flatten().filter(|(_, verdict)| matches!(verdict, Verdict::Sweep(_) | Verdict::UnderWay));
    let payers: Vec<Address> = payers.map(|(holding, _)| holding.address).take(MAX_PAYERS).collect();
    let asked = match plan::check_treasury(db, treasury, &accounts).await? {
        Some(later) => Err(later),
        None => estimate_gas(&rpc, treasury, &payers, &usual.terms).await,
    };
    let (gas_limit, refused) = match asked {
        Ok(gas_limit) => (gas_limit, None),
        Err(refused) => (None, Some(base::error_chain(&refused))),
    };
    let terms = plan::Settings { refused, ..plan::Settings::of(chain, gas_limit, price, accounts) };
    let (waits, holdings) = match looked {
        None => (Some("no block of the chain has been processed yet".to_owned()), Vec::new()),
        Some(looked) => {
            let waits = plan::waits(db, chain.id, &terms).await?.map(|waits| waits.to_string());
            // What addresses have does not depend on gas.
            let held = looked.into_iter().map(|(holding, _)| holding).collect();
            (waits, plan::judged(db, chain.id, &terms.terms, held).await?)
        }
    };
    let tokens = ledger::tokens(db, chain.id, &terms).await?.into_iter().map(|(address, (addresses, amount))| {
        let amount = Amount::new(amount);
        match chain.token_by_address(address) {
            Some(token) => (token.symbol.clone(), addresses, amount.to_decimal(token.decimals)),
            None => (address.to_string(), addresses, amount.to_string()),
        }
    });
    let mut tokens: Vec<_> = tokens.collect();
    tokens.sort();
    Ok(ShownPlan {
        chain: chain.name.clone(),
        treasury,
        waits,
        accounts: terms.accounts.clone(),
        gas_limit: terms.terms.gas_limit,
        most: Amount::new(terms.terms.reserve()),
        now: price.map(|price| Amount::new(terms.terms.cost(price))),
        l1_fee: chain.sweeping.l1_fee,
        holdings,
        tokens,
    })
}

/// A verdict in words.
fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Sweep(_) => "to be swept",
        Verdict::Unripe => "not deep enough yet",
        Verdict::TooLittle => "not worth its gas",
        Verdict::TooDear => "worth its gas once that is cheaper",
        Verdict::UnderWay => "under way",
        Verdict::Held => "held",
        Verdict::SetAside => "set aside",
        Verdict::Missing => "not there by the chain's balance",
    }
}

fn coin(amount: U256) -> String {
    Amount::new(amount).to_decimal(COIN_DECIMALS)
}

/// What is swept of a holding, or what of it waits.
fn amount(holding: &Holding, verdict: Verdict) -> U256 {
    match verdict {
        Verdict::Sweep(amount) => amount,
        _ => holding.seen.saturating_sub(holding.spent),
    }
}

impl ShownPlan {
    /// How many addresses have a verdict, and what they hold.
    fn sums(&self) -> BTreeMap<&'static str, (u64, U256)> {
        let mut sums: BTreeMap<&'static str, (u64, U256)> = BTreeMap::new();
        for (holding, verdict) in &self.holdings {
            let (count, sum) = sums.entry(word(*verdict)).or_default();
            (*count, *sum) = (*count + 1, sum.saturating_add(amount(holding, *verdict)));
        }
        // What was swept whole is no news.
        sums.retain(|_, (_, sum)| !sum.is_zero());
        sums
    }

    fn text(&self, addresses: bool) -> String {
        let Self { chain, treasury, accounts, gas_limit, most, now, l1_fee, .. } = self;
        let mut shown = format!("{chain}: to the treasury {treasury}\n");
        if let Some(waits) = &self.waits {
            let _ = writeln!(shown, "  nothing is swept: {waits}");
        }
        let cost = now.map(|now| format!(", {} now", now.to_decimal(COIN_DECIMALS))).unwrap_or_default();
        let _ = writeln!(shown, "  a sweep of coin: {gas_limit} gas, {} at most{cost}", most.to_decimal(COIN_DECIMALS));
        if *l1_fee != Amount::ZERO {
            let reserved = l1_fee.to_decimal(COIN_DECIMALS);
            let _ = writeln!(shown, "  of that {reserved} is reserved for L1, and counts as spent whatever L1 takes");
        }
        let _ = writeln!(shown, "  addresses of the accounts {} (others: --account)", accounts.join(", "));
        let head = ["", "asset", "addresses", "amount"].map(str::to_owned).to_vec();
        let coins = self.sums().into_iter();
        let coins = coins.map(|(what, (count, sum))| vec![what.to_owned(), "coin".to_owned(), count.to_string(), coin(sum)]);
        let tokens = self.tokens.iter().map(|(symbol, count, amount)| {
            vec!["tokens are not swept yet".to_owned(), symbol.clone(), count.to_string(), amount.clone()]
        });
        shown.push_str(&text::table(&std::iter::once(head).chain(coins).chain(tokens).collect::<Vec<_>>()));
        if addresses {
            let rows = self.holdings.iter().map(|(holding, verdict)| {
                vec![holding.address.to_string(), word(*verdict).to_owned(), coin(amount(holding, *verdict))]
            });
            shown.push_str(&text::table(&rows.collect::<Vec<_>>()));
        }
        shown
    }

    fn json(&self, addresses: bool) -> Value {
        let sums = self.sums().into_iter();
        let coins = sums.map(|(what, (count, sum))| json!({ "what": what, "addresses": count, "amount": sum.to_string() }));
        let tokens = self.tokens.iter().map(
            |(symbol, count, amount)| json!({ "token": symbol, "addresses": count, "amount_decimal": amount, "swept": false }),
        );
        let each = addresses.then(|| {
            let each = |(holding, verdict): &(Holding, Verdict)| {
                json!({ "address": holding.address.to_string(), "what": word(*verdict),
                        "amount": amount(holding, *verdict).to_string() })
            };
            self.holdings.iter().map(each).collect::<Vec<_>>()
        });
        json!({
            "chain": self.chain,
            "treasury": self.treasury.to_string(),
            "waits": self.waits,
            "accounts": self.accounts,
            "gas_limit": self.gas_limit,
            "fee_at_most": self.most.to_string(),
            "fee_now": self.now.map(|now| now.to_string()),
            "fee_reserved_for_l1": self.l1_fee.to_string(),
            "coin": coins.collect::<Vec<_>>(),
            "tokens": tokens.collect::<Vec<_>>(),
            "addresses": each,
        })
    }
}

async fn status(db: &Client, chain: Option<ChainId>, json: bool) -> anyhow::Result<()> {
    let counts = admin::counts(db, chain).await?;
    let (unfinished, all) = admin::unfinished(db, chain, MAX_LISTED).await?;
    let waiting = admin::waiting(db, chain).await?;
    let holds = admin::listed_holds(db).await?;
    let missing = admin::missing(db, chain, MAX_MISSING).await?;
    if json {
        let counts = counts.iter().map(|(state, count)| {
            json!({ "chain_id": count.chain.0, "state": state, "count": count.count, "amount": count.amount.to_string() })
        });
        let holds = holds.iter().map(|hold| json!({ "id": hold.id, "holds": named(&hold.hold), "reason": hold.reason }));
        let waiting = waiting.iter().map(|(chain, waits)| json!({ "chain_id": chain.0, "waits": waits }));
        let missing = missing.iter().map(|(chain, count, some)| {
            json!({ "chain_id": chain.0, "addresses": count, "some": some.iter().map(Address::to_string).collect::<Vec<_>>() })
        });
        let shown = json!({
            "missing": missing.collect::<Vec<_>>(),
            "waiting": waiting.collect::<Vec<_>>(),
            "unfinished_in_all": all,
            "sweeps": counts.collect::<Vec<_>>(),
            "unfinished": unfinished.iter().map(unfinished_json).collect::<Vec<_>>(),
            "holds": holds.collect::<Vec<_>>(),
        });
        println!("{shown:#}");
        return Ok(());
    }
    let row = |(state, count): &(String, admin::Count)| {
        vec![count.chain.to_string(), state.clone(), count.count.to_string(), count.amount.to_decimal(COIN_DECIMALS)]
    };
    for (chain, waits) in &waiting {
        println!("chain {chain}: nothing is planned: {waits}");
    }
    for (chain, count, some) in &missing {
        let some: Vec<String> = some.iter().map(Address::to_string).collect();
        println!(
            "chain {chain}: {count} addresses have less than it takes to send what has arrived there and not left by a sweep, and \
             wait: {}",
            some.join(", ")
        );
        println!(
            "  somebody else has emptied them, or each sweep cost more than is known: a fee for L1 is `l1_fee` of chains.yaml"
        );
    }
    print_table(&["chain", "sweeps", "count", "amount"], counts.iter().map(row));
    if !unfinished.is_empty() {
        println!();
        let head = ["sweep", "chain", "address", "amount", "since", "state", "what holds it up", "transaction"];
        print_table(&head, unfinished.iter().map(unfinished_row));
    }
    match all.saturating_sub(unfinished.len().try_into()?) {
        0 => {}
        more => println!("and {more} more"),
    }
    if unfinished.iter().any(|sweep| sweep.is_set_aside) {
        println!("what is set aside is swept no more before: ctrip sweep retry SWEEP");
    }
    if !holds.is_empty() {
        println!();
        let row = |hold: &admin::ListedHold| vec![hold.id.to_string(), named(&hold.hold), hold.reason.clone()];
        print_table(&["hold", "of", "reason"], holds.iter().map(row));
    }
    Ok(())
}

fn print_table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let head = head.iter().map(|&cell| cell.to_owned()).collect();
    print!("{}", text::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
}

fn state(sweep: &Unfinished) -> String {
    match sweep {
        Unfinished { is_set_aside: true, .. } => format!("{}, set aside", sweep.state),
        Unfinished { is_to_go: true, .. } => format!("{}, to be dropped", sweep.state),
        _ => sweep.state.clone(),
    }
}

fn unfinished_row(sweep: &Unfinished) -> Vec<String> {
    vec![
        sweep.id.to_string(),
        sweep.chain.to_string(),
        sweep.address.to_string(),
        sweep.amount.to_decimal(COIN_DECIMALS),
        format!("{} s", sweep.age),
        state(sweep),
        sweep.told.clone().unwrap_or_default(),
        sweep.hash.map(|hash| hash.to_string()).unwrap_or_default(),
    ]
}

fn unfinished_json(sweep: &Unfinished) -> Value {
    json!({
        "id": sweep.id,
        "chain_id": sweep.chain.0,
        "address": sweep.address.to_string(),
        "amount": sweep.amount.to_string(),
        "age_seconds": sweep.age,
        "state": sweep.state,
        "set_aside": sweep.is_set_aside,
        "to_be_dropped": sweep.is_to_go,
        "told": sweep.told,
        "outgoing": sweep.outgoing,
        "transaction_hash": sweep.hash.map(|hash| hash.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(place: u8, seen: u64, spent: u64) -> Holding {
        let (seen, spent) = (U256::from(seen), U256::from(spent));
        let address = Address::repeat_byte(place);
        Holding { address, merchant: Uuid::nil(), arrived: seen, seen, spent, is_under_way: false, is_set_aside: false }
    }

    #[test]
    fn a_plan_shows_what_is_swept_and_what_waits_and_leaves_out_what_has_left() {
        let plan = ShownPlan {
            chain: "anvil".to_owned(),
            treasury: Address::repeat_byte(9),
            waits: None,
            accounts: vec!["ab".to_owned(), "cd".to_owned()],
            gas_limit: 26_250,
            most: Amount::from(50),
            now: Some(Amount::from(10)),
            l1_fee: Amount::from(3_000_000),
            holdings: vec![
                (holding(1, 1000, 0), Verdict::Sweep(U256::from(950))),
                (holding(2, 2000, 500), Verdict::Sweep(U256::from(1450))),
                (holding(3, 70, 0), Verdict::TooLittle),
                (holding(4, 70, 70), Verdict::UnderWay),
            ],
            tokens: vec![("USDC".to_owned(), 3, "1.5".to_owned())],
        };
        let shown = plan.text(false);
        assert!(shown.contains("to be swept") && shown.contains("0.0000000000000024"), "{shown}");
        assert!(shown.contains("tokens are not swept yet  USDC") && !shown.contains("under way"), "{shown}");
        assert!(shown.contains("0.000000000003 is reserved for L1") && shown.contains("accounts ab, cd"), "{shown}");
        let json = plan.json(true);
        let swept = json!({ "what": "to be swept", "addresses": 2, "amount": "2400" });
        assert!(json["coin"].as_array().unwrap().contains(&swept) && json["fee_now"] == "10", "{json}");
        assert_eq!(json["addresses"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn a_hold_is_named_by_all_that_it_names() {
        let any = Hold { chain: None, address: None, token: None, merchant: None };
        assert_eq!(named(&any), "everything");
        let coin = Hold { chain: Some(ChainId(5)), token: Some(read_asset("coin").unwrap()), ..any };
        assert_eq!(named(&coin), "the coin, chain 5");
        assert!(read_asset("ETH").unwrap_err().to_string().contains("expected coin"));
    }
}
