//! One binary, one subcommand a role. It parses, refuses what is wrong before it touches anything, wires and runs.

mod chains;
mod merchants;
mod parts;
mod roles;
mod tail;
mod wallet_files;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use roles::Role;
use runtime::Settings;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "ctrip", version, about = "A payment pipeline for EVM chains", propagate_version = true)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every role in one process; migrates the database and makes the topics first
    Up,
    /// HTTP in, payments out
    Api,
    /// Chain to chain.blocks and chain.logs
    Ingest,
    /// Blocks, logs and watched addresses to chain.matches
    Detector,
    /// chain.matches to payments and payment.events
    Confirmer,
    /// payment.events to merchants' endpoints
    Webhooks,
    /// Bring the database to this version
    Migrate,
    /// The Kafka topics and their schemas
    #[command(subcommand)]
    Topics(Topics),
    /// Merchants and their settings
    #[command(subcommand)]
    Merchants(merchants::Merchants),
    /// API keys
    #[command(subcommand)]
    Keys(merchants::Keys),
    /// Mnemonics, account xpubs and addresses
    #[command(subcommand)]
    Wallet(Wallet),
    /// Try every endpoint of the chains file: what it can do, its lag, and what of a block it proves
    Check {
        /// This chain alone
        #[arg(long)]
        chain: Option<String>,
    },
    /// Bring a past range of a chain into the topics, as replayed records; after a kill it goes on where it was
    Backfill {
        /// Name in the chains file
        #[arg(long)]
        chain: String,
        /// Number of the first block
        #[arg(long)]
        from: u64,
        /// Number of the last block; no reorganisation may reach it any more
        #[arg(long)]
        to: u64,
        /// Bring it again, even if it was brought before
        #[arg(long)]
        again: bool,
    },
    /// Say why a chain halted and what its nodes no longer have; with --take-back of as many blocks, let it go on
    Resume {
        /// Name in the chains file
        #[arg(long)]
        chain: String,
        /// Blocks to take back, as this command says without it
        #[arg(long, default_value_t = 0)]
        take_back: u64,
    },
    /// Print a topic's records as they come
    Tail(tail::Tail),
    /// Print the reference of metrics, as Markdown
    Metrics,
}

#[derive(Subcommand)]
enum Topics {
    /// Create the topics and register the schemas; what is there stays, what contradicts is refused
    Apply,
}

#[derive(Subcommand)]
enum Wallet {
    /// Write a new 24-word mnemonic to a file that only its owner can read, and print the account xpub
    New {
        /// Where to; it must not exist yet
        #[arg(long)]
        out: PathBuf,
    },
    /// Print the account xpub of a mnemonic
    Xpub {
        /// The file with the words
        #[arg(long, env = "CTRIP_MNEMONIC_FILE")]
        mnemonic_file: PathBuf,
    },
    /// Print the deposit address number N of CTRIP_XPUB
    Address {
        /// N of m/44'/60'/0'/0/N
        #[arg(long)]
        index: u32,
    },
}

/// A block becomes thousands of small pieces and goes again, in another thread: half of what glibc's allocator takes for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Cli { settings, command }: Cli) -> anyhow::Result<()> {
    runtime::logging::init()?;
    match command {
        Command::Up => roles::up(settings),
        Command::Api => roles::alone(Role::Api, settings),
        Command::Ingest => roles::alone(Role::Ingest, settings),
        Command::Detector => roles::alone(Role::Detector, settings),
        Command::Confirmer => roles::alone(Role::Confirmer, settings),
        Command::Webhooks => roles::alone(Role::Webhooks, settings),
        Command::Migrate => block_on(runtime::db::migrate(&settings.database_url)),
        Command::Topics(Topics::Apply) => block_on(runtime::kafka::apply(&settings)),
        Command::Merchants(command) => block_on(merchants::merchants(&settings.database_url, command)),
        Command::Keys(command) => block_on(merchants::keys(&settings.database_url, command)),
        Command::Wallet(Wallet::New { out }) => wallet_files::new(&out),
        Command::Wallet(Wallet::Xpub { mnemonic_file }) => wallet_files::xpub(&mnemonic_file),
        Command::Wallet(Wallet::Address { index }) => {
            println!("{}", api::xpub(&settings)?.address(index)?);
            Ok(())
        }
        Command::Check { chain } => block_on(chains::check(settings, chain.as_deref())),
        Command::Backfill { chain, from, to, again } => {
            block_on(chains::backfill(settings, ingest::Request { chain, from, to, again }))
        }
        Command::Resume { chain, take_back } => block_on(chains::resume(settings, &chain, take_back)),
        Command::Tail(arguments) => tail::run(&settings, &arguments),
        Command::Metrics => {
            print!("{}", runtime::metrics::reference());
            Ok(())
        }
    }
}

fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Runtime::new().context("the async runtime")?.block_on(future)
}
