//! Keeps what this process lists up to date for its roles: reads the chains file again at SIGHUP, and asks the contracts of tokens in
//! doubt. `/health` and the log name a file that is refused, and each token that is wrong or silent; all others go on.
//!
//! A token is asked again until it fits, so that a contract that is deployed later, or a node that comes to its senses, needs no
//! restart.

use base::{backoff, locked, metrics};
use chain::{Chain, Listing, ResolveError, Rpc, Token, TokenVerdict, check_token};
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use runtime::stage;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;
use topics::{Address, ChainId};

/// `/health` names this when the file was refused, or nobody looks after it.
pub const FILE: &str = "chains file";
/// For the first look at the tokens' contracts: a node that hangs must not hold up the start.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// Between two looks.
const MAX_DELAY: Duration = Duration::from_secs(30);
/// Of one chain.
const MAX_TOKENS_AT_ONCE: usize = 8;

/// The listing, and what is known of its tokens.
pub struct Watch {
    file: PathBuf,
    listing: Listing,
    /// The last verdict on each token with its decimals, silence left out.
    verdicts: Mutex<HashMap<(ChainId, Address, u8), TokenVerdict>>,
    /// The tokens in doubt that `/health` names.
    named: Mutex<BTreeSet<String>>,
    /// The chains that `/health` names since their ids are not known.
    left_out: Vec<String>,
}

impl Watch {
    /// Reads the file, and asks the contracts for a moment.
    ///
    /// # Errors
    /// If the file has a mistake, or the id of no chain in it is known and one is `needed`.
    pub async fn open(file: &Path, needed: bool) -> anyhow::Result<Self> {
        let (listing, left_out) = Listing::open(file).await?;
        let named = leave_out(&left_out);
        if let Some(error) = left_out.into_iter().next().filter(|_| needed && listing.chains().iter().next().is_none()) {
            return Err(error.into());
        }
        let (file, verdicts) = (file.to_owned(), Mutex::default());
        let watch = Self { file, listing, verdicts, named: Mutex::default(), left_out: named };
        let rpcs = watch.rpcs();
        let looks = join_all(rpcs.iter().map(|(chain, rpc)| watch.look(*chain, rpc)));
        let _ = tokio::time::timeout(FIRST_LOOK, looks).await;
        watch.report();
        Ok(watch)
    }

    /// What the roles share.
    pub fn listing(&self) -> Listing {
        self.listing.clone()
    }

    /// Looks at the tokens, and reads the file again at each signal, until `stop`.
    pub async fn run(mut self, mut hangups: Signal, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.look_always() => {}
                _ = hangups.recv() => self.reload().await,
            }
        }
    }

    async fn reload(&mut self) {
        let (outcome, file) = (self.listing.reload(&self.file).await, self.file.display());
        let taken = if outcome.is_ok() { "taken" } else { "refused" };
        metrics::CHAINS_FILE_READ.counter(&[("outcome", taken)]).increment(1);
        match outcome {
            Ok(left_out) => {
                self.forget_verdicts();
                self.left_out.iter().for_each(|chain| stage::includes(chain));
                self.left_out = leave_out(&left_out);
                stage::resumed(FILE);
                self.report();
                let names: Vec<String> = self.listing.chains().iter().map(|chain| chain.name.clone()).collect();
                tracing::info!("SIGHUP: {file} is read again; it lists {}", names.join(", "));
            }
            Err(error) => {
                let cause = base::error_chain(&error);
                tracing::error!("SIGHUP: {file} is refused, and what it was before goes on: {cause}");
                stage::waits(
                    FILE,
                    &format!("refused, and what it was before goes on; correct it and send SIGHUP again: {cause}"),
                );
            }
        }
    }

    /// Looks again and again, at each chain by itself: one whose nodes hang delays no other.
    async fn look_always(&self) {
        let rpcs = self.rpcs();
        let looks = rpcs.iter().map(|(chain, rpc)| async {
            let mut delays = backoff::delays(MAX_DELAY);
            loop {
                tokio::time::sleep(delays.next().unwrap_or(MAX_DELAY)).await;
                self.look(*chain, rpc).await;
                self.report();
            }
        });
        join_all(looks).await;
        // With no chain there is nothing to look at.
        std::future::pending().await
    }

    fn rpcs(&self) -> Vec<(ChainId, Rpc)> {
        self.listing.chains().iter().map(|chain| (chain.id, Rpc::of(chain))).collect()
    }

    async fn look(&self, chain: ChainId, rpc: &Rpc) {
        let chains = self.listing.chains();
        let Some(chain) = chains.by_id(chain) else { return };
        let unknown = stream::iter(chain.tokens.iter().filter(|token| self.asks(chain, token)));
        let ask = async |token| self.note(chain, token, check_token(rpc, token).await);
        unknown.for_each_concurrent(MAX_TOKENS_AT_ONCE, ask).await;
    }

    /// Whether a contract is still to be asked: it is in doubt, or has not said its decimals.
    fn asks(&self, chain: &Chain, token: &Token) -> bool {
        let undeclared = || matches!(locked(&self.verdicts).get(&key(chain, token)), Some(TokenVerdict::Undeclared(_)));
        chain.doubts.contains_key(&token.address) || undeclared()
    }

    /// Forgets what was known of tokens that are in doubt again, or not listed any more.
    fn forget_verdicts(&self) {
        let chains = self.listing.chains();
        let tokens = chains.iter().flat_map(|chain| chain.tokens.iter().map(move |token| (chain, token)));
        let doubts = tokens.map(|(chain, token)| (key(chain, token), chain.doubts.contains_key(&token.address)));
        let doubts: HashMap<_, _> = doubts.collect();
        let stands = |verdict: &TokenVerdict| Some(matches!(verdict, TokenVerdict::Wrong(_)));
        locked(&self.verdicts).retain(|key, verdict| doubts.get(key).copied() == stands(verdict));
    }

    fn note(&self, chain: &Chain, token: &Token, verdict: TokenVerdict) {
        let (name, symbol) = (&chain.name, &token.symbol);
        let doubt = match &verdict {
            TokenVerdict::Fits(_) | TokenVerdict::Undeclared(_) => None,
            TokenVerdict::OtherSymbol(how) => {
                tracing::warn!(chain = name, "token {symbol}: {how}");
                None
            }
            TokenVerdict::Wrong(cause) => Some(cause.clone()),
            // What was known stays.
            TokenVerdict::Unknown(_) if locked(&self.verdicts).contains_key(&key(chain, token)) => return,
            TokenVerdict::Unknown(why) => Some(format!("its contract could not be asked for its decimals yet: {why}")),
        };
        let (is_wrong, is_known) = (doubt.is_some(), !matches!(verdict, TokenVerdict::Unknown(_)));
        if is_known {
            let before = locked(&self.verdicts).insert(key(chain, token), verdict);
            if let Some(cause) = doubt.as_ref().filter(|_| !matches!(before, Some(TokenVerdict::Wrong(_)))) {
                tracing::error!(chain = name, "token {symbol} is not offered, while the chain's others are: {cause}");
            }
        }
        if self.listing.judge(chain.id, token, doubt) == Some(true) && !is_wrong {
            tracing::info!(chain = name, "token {symbol} is offered");
        }
    }

    /// Names the tokens in doubt in `/health`, and no others.
    fn report(&self) {
        let chains = self.listing.chains();
        let doubts = chains.iter().flat_map(|chain| chain.doubts.iter().map(move |(token, why)| (chain, *token, why)));
        let doubts = doubts.filter_map(|(chain, token, why)| {
            let symbol = &chain.token_by_address(token)?.symbol;
            let name = format!("token {symbol} of chain {}", chain.name);
            Some((name, format!("{why}. Until then no payment is asked for in it, and what arrives of it elsewhere waits")))
        });
        let doubts: BTreeMap<String, String> = doubts.collect();
        let mut named = locked(&self.named);
        named.iter().filter(|name| !doubts.contains_key(*name)).for_each(|name| stage::resumed(name));
        doubts.iter().for_each(|(name, cause)| stage::waits(name, cause));
        *named = doubts.into_keys().collect();
    }
}

fn leave_out(left_out: &[ResolveError]) -> Vec<String> {
    let named = left_out.iter().map(|error| {
        stage::leaves_out(error.chain(), &base::error_chain(error));
        error.chain().to_owned()
    });
    named.collect()
}

fn key(chain: &Chain, token: &Token) -> (ChainId, Address, u8) {
    (chain.id, token.address, token.decimals)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
- name: anvil
  chain_id: 31337
  rpc_url: http://127.0.0.1:1
  tokens: [{ symbol: USDX, address: "0x7777777777777777777777777777777777777777", decimals: 6 }]
"#;

    #[tokio::test]
    async fn a_token_is_in_doubt_until_it_fits_and_silence_changes_nothing_that_is_known() {
        let file = std::env::temp_dir().join(format!("ctrip-listing-{}.yaml", std::process::id()));
        std::fs::write(&file, FILE).unwrap();
        let mut watch = Watch::open(&file, true).await.unwrap();
        let chains = watch.listing.chains();
        let (chain, token) = chains.iter().next().map(|chain| (chain, &chain.tokens[0])).unwrap();
        let told = || stage::cause_of("token USDX of chain anvil");
        assert!(told().is_some_and(|cause| cause.contains("could not be asked")), "nobody has answered: {:?}", told());
        let note = |watch: &Watch, verdict| {
            watch.note(chain, token, verdict);
            watch.report();
            let doubt = watch.listing.chains().by_id(chain.id).unwrap().doubts.get(&token.address).cloned();
            assert_eq!(doubt.is_some(), told().is_some());
            doubt
        };
        assert!(note(&watch, TokenVerdict::Unknown("late".into())).is_some_and(|cause| cause.contains("late")));
        let cause = Some("8 decimals".to_owned());
        assert_eq!(note(&watch, TokenVerdict::Wrong("8 decimals".into())), cause);
        assert_eq!(note(&watch, TokenVerdict::Unknown("late".into())), cause);
        assert_eq!(note(&watch, TokenVerdict::Undeclared("nothing".into())), None, "nothing contradicts any more");
        assert!(watch.asks(chain, token), "it is asked again");
        assert_eq!(note(&watch, TokenVerdict::Unknown("late".into())), None);
        assert_eq!(note(&watch, TokenVerdict::Wrong("8 decimals".into())), cause);
        assert_eq!(note(&watch, TokenVerdict::OtherSymbol("it is X".into())), None);
        let asks = |watch: &Watch| {
            let chains = watch.listing.chains();
            let chain = chains.by_id(chain.id).unwrap();
            (chain.doubts.contains_key(&token.address), watch.asks(chain, &chain.tokens[0]))
        };
        assert_eq!(asks(&watch), (false, false));

        // A mistake that is mended: with other decimals, or without the chain for a while.
        let wrong = FILE.replace("decimals: 6", "decimals: 18");
        let without = FILE.replace("31337", "31338");
        for mistake in [&wrong, &without] {
            std::fs::write(&file, mistake).unwrap();
            watch.reload().await;
            std::fs::write(&file, FILE).unwrap();
            watch.reload().await;
            assert_eq!(asks(&watch), (true, true), "nobody would ever offer it again");
            watch.note(chain, token, TokenVerdict::Fits("6".into()));
            assert_eq!(asks(&watch), (false, false));
        }
        std::fs::remove_file(file).unwrap();
    }
}
