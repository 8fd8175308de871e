//! The binary: one subcommand per role, and the operator's commands, each in the file of its name.
//!
//! It parses the command line, refuses bad configuration before it opens a port or a connection, and runs.

mod acl;
mod backfill;
mod chain;
mod check;
mod config;
mod dependencies;
mod env_file;
mod help;
mod instance_lock;
mod intents;
mod listing;
mod orphans;
mod resume;
mod roles;
mod set_aside;
mod sweep;
mod tail;
mod wallet;

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use roles::Role;
use runtime::Settings;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "ctrip", version, about = "A payment pipeline for EVM chains", propagate_version = true)]
#[command(
    after_help = "ctrip COMMAND --help lists the command's options, and the settings (environment variables) that it uses."
)]
struct Cli {
    /// File of settings, one NAME=value a line, for those that the environment does not set; `.env` beside the binary if left out
    #[arg(long, global = true, value_name = "FILE")]
    env_file: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every role in one process, after `migrate` and `topics apply`; the sweeper too where CTRIP_MNEMONIC_FILE is set
    Up {
        /// File with the mnemonics of CTRIP_XPUB and of those before it, one a line, that nobody else can read
        #[arg(long, env = "CTRIP_MNEMONIC_FILE", hide_env_values = true)]
        mnemonic_file: Option<PathBuf>,
    },
    /// Run the HTTP API: creates payments and publishes their intents
    Api,
    /// Run ingest: follows the chains into chain.blocks and chain.logs
    Ingest,
    /// Run the detector: matches blocks and logs with the watched addresses into chain.matches
    Detector,
    /// Run the confirmer: turns chain.matches into payments' states and payment.events
    Confirmer,
    /// Run webhooks: sends payment.events to merchants' endpoints
    Webhooks,
    /// Run the sweeper: sends what is in deposit addresses to the treasury. The one process with private keys
    Sweeper {
        /// File with the mnemonics of CTRIP_XPUB and of those before it, one a line, that nobody else can read
        #[arg(long, env = "CTRIP_MNEMONIC_FILE", hide_env_values = true)]
        mnemonic_file: PathBuf,
    },
    /// Migrate the database to this version
    Migrate {
        /// Print which migrations would run, how, and which tables they lock; change nothing
        #[arg(long)]
        plan: bool,
    },
    /// Kafka topics and their schemas
    #[command(subcommand)]
    Topics(Topics),
    /// The addresses that the detector watches, in payment.intents
    #[command(subcommand)]
    Intents(intents::IntentsCommand),
    /// List what a fault keeps from being processed, with its cause and the command that helps
    SetAside,
    /// Transfers that wait for their payment, or for their token to be right
    #[command(subcommand)]
    Orphans(orphans::OrphansCommand),
    /// Merchants and their settings
    #[command(subcommand)]
    Merchants(merchants::commands::MerchantsCommand),
    /// API keys
    #[command(subcommand)]
    Keys(merchants::commands::KeysCommand),
    /// Mnemonics, account xpubs and addresses
    #[command(subcommand)]
    Wallet(Wallet),
    /// Probe every endpoint of the chains file: its capabilities, its lag, and which parts of a block it proves
    Check {
        /// Probe this chain only
        #[arg(long)]
        chain: Option<String>,
    },
    /// Publish a past range of a chain as replayed records; a run that was interrupted continues where it stopped
    Backfill {
        /// Name in the chains file
        #[arg(long)]
        chain: String,
        /// Number of the first block
        #[arg(long)]
        from: u64,
        /// Number of the last block; it must be too deep for any reorg
        #[arg(long)]
        to: u64,
        /// Publish the range again, even if it was published before
        #[arg(long)]
        again: bool,
    },
    /// Show why a chain halted and which of its blocks the nodes no longer have; --take-back with their number resumes it
    Resume {
        /// Name in the chains file
        #[arg(long)]
        chain: String,
        /// Blocks to take back: the number that this command prints without it
        #[arg(long, default_value_t = 0)]
        take_back: u64,
    },
    /// Chains that can't be continued, or are not wanted any more
    #[command(subcommand)]
    Chain(chain::ChainCommand),
    /// What is swept to the treasury, and what is not
    #[command(subcommand)]
    Sweep(sweep::SweepCommand),
    /// Print a topic's records as they arrive
    Tail(tail::Tail),
    /// The rights of each role in Kafka and Postgres
    #[command(subcommand)]
    Acl(acl::AclCommand),
    /// Print the settings in force and where each comes from, without secrets
    Config(config::ConfigArguments),
    /// Print the reference of metrics as Markdown
    Metrics,
}

#[derive(Subcommand)]
enum Topics {
    /// Create missing topics and register the schemas, also under ids that records have and the registry has lost; fails if an existing
    /// topic or schema contradicts
    Apply,
}

#[derive(Subcommand)]
enum Wallet {
    /// Write a new 24-word mnemonic to a file that only its owner can read, and print its account xpub
    New {
        /// File to create; it must not exist yet
        #[arg(long)]
        out: PathBuf,
    },
    /// Print the account xpub of a mnemonic
    Xpub {
        /// File that holds the words
        #[arg(long, env = "CTRIP_MNEMONIC_FILE", hide_env_values = true)]
        mnemonic_file: PathBuf,
    },
    /// Print a deposit address of CTRIP_XPUB
    Address {
        /// N in m/44'/60'/0'/0/N
        #[arg(long)]
        index: u32,
    },
}

/// A block becomes thousands of small allocations that another thread frees. mimalloc needs half of glibc's time for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the file of variables and the arguments, in this order, and runs.
fn start() -> anyhow::Result<()> {
    let file = env_file::load(&Cli::command())?;
    let matches = help::trim(Cli::command()).get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Command::Config(arguments) = &cli.command {
        // Shown even if they contradict each other: it is then that one looks.
        config::run(&Cli::command(), &matches, file.clone(), arguments)?;
    }
    cli.settings.complete(&matches)?;
    runtime::kafka::check(&cli.settings)?;
    runtime::logging::init()?;
    if let Some(path) = file.path {
        tracing::info!("settings of {} are used where the environment has none", path.display());
    }
    run(cli)
}

fn run(Cli { settings, command, .. }: Cli) -> anyhow::Result<()> {
    match command {
        Command::Up { mnemonic_file } => roles::up(settings, mnemonic_file),
        Command::Api => roles::alone(Role::Api, settings),
        Command::Ingest => roles::alone(Role::Ingest, settings),
        Command::Detector => roles::alone(Role::Detector, settings),
        Command::Confirmer => roles::alone(Role::Confirmer, settings),
        Command::Webhooks => roles::alone(Role::Webhooks, settings),
        Command::Sweeper { mnemonic_file } => roles::alone(Role::Sweeper { mnemonic_file }, settings),
        Command::Migrate { plan: false } => block_on(runtime::db::migrate(&settings.database_url)),
        Command::Migrate { plan: true } => {
            let plan = block_on(async { runtime::db::Migrations::embedded().plan(&settings.database_url).await })?;
            println!("{}", if plan.is_empty() { "the database is at this version".to_owned() } else { plan.join("\n") });
            Ok(())
        }
        Command::Topics(Topics::Apply) => block_on(runtime::kafka::apply_and_bring_back(&settings)),
        Command::Intents(command) => block_on(intents::run(&settings, command)),
        Command::Orphans(command) => block_on(orphans::run(&settings, command)),
        Command::SetAside => block_on(set_aside::run(&settings)),
        Command::Merchants(command) => block_on(merchants::commands::run_merchants(&settings.database_url, command)),
        Command::Keys(command) => block_on(merchants::commands::run_keys(&settings.database_url, command)),
        Command::Wallet(Wallet::New { out }) => wallet::new(&out),
        Command::Wallet(Wallet::Xpub { mnemonic_file }) => wallet::xpub(&mnemonic_file),
        Command::Wallet(Wallet::Address { index }) => {
            println!("{}", api::xpub(&settings)?.address(index)?);
            Ok(())
        }
        Command::Check { chain } => block_on(check::run(settings, chain.as_deref())),
        Command::Backfill { chain, from, to, again } => {
            block_on(backfill::run(settings, ingest::BackfillRequest { chain, from, to, again }))
        }
        Command::Resume { chain, take_back } => block_on(resume::run(settings, &chain, take_back)),
        Command::Chain(command) => block_on(chain::run(settings, command)),
        Command::Sweep(command) => block_on(sweep::run(&settings, command)),
        Command::Tail(arguments) => tail::run(&settings, &arguments),
        Command::Acl(command) => {
            acl::run(&settings, &command);
            Ok(())
        }
        // Printed before: it takes what the process was started with.
        Command::Config(_) => Ok(()),
        Command::Metrics => {
            print!("{}", base::metrics::reference());
            Ok(())
        }
    }
}

fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Runtime::new().context("the async runtime")?.block_on(future)
}
