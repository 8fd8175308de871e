//! Tokens that are not offered, since their contracts contradict chains.yaml. `/health` and the log name each; its chain and all
//! other tokens go on.
//!
//! A token whose contract nobody has asked yet is offered: a node that does not answer stops nothing. It is asked again until it
//! fits, so that a contract that is deployed later, or a node that comes to its senses, needs no restart.

use crate::chains::catalog::Catalog;
use base::{backoff, locked};
use chain::{Chain, Rpc, Token, TokenVerdict, check_token};
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use runtime::stage;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use topics::{Address, ChainId};

/// Between two looks.
const MAX_DELAY: Duration = Duration::from_secs(30);
/// Of one chain.
const MAX_TOKENS_AT_ONCE: usize = 8;

/// What is known of tokens. Cheap to clone.
#[derive(Clone)]
pub struct WrongTokens {
    chains: Arc<Vec<(Chain, Rpc)>>,
    causes: Arc<Mutex<Causes>>,
}

/// Why a token is not offered; `None` for one that fits.
type Causes = HashMap<(ChainId, Address), Option<String>>;

impl WrongTokens {
    /// Knows nothing before the first [`look`](Self::look).
    pub fn new(catalog: &Catalog) -> Self {
        let chains = catalog.0.iter().map(|chain| (chain.clone(), Rpc::of(chain))).collect();
        Self { chains: Arc::new(chains), causes: Arc::default() }
    }

    /// Why a token is not offered, or `None` for one that is.
    pub fn cause(&self, chain: ChainId, token: Address) -> Option<String> {
        locked(&self.causes).get(&(chain, token)).cloned().flatten()
    }

    /// Asks all chains at the same time for the tokens that are not known to fit.
    pub async fn look(&self) {
        join_all(self.chains.iter().map(|(chain, rpc)| self.look_at(chain, rpc))).await;
    }

    /// Looks again and again until `stop`, at each chain by itself: one whose nodes hang delays no other.
    pub async fn run(self, stop: CancellationToken) {
        let watches = self.chains.iter().map(|(chain, rpc)| self.watch(chain, rpc));
        stop.run_until_cancelled(join_all(watches)).await;
        // With no chain there is nothing to watch.
        stop.cancelled().await;
    }

    async fn watch(&self, chain: &Chain, rpc: &Rpc) {
        let mut delays = backoff::delays(MAX_DELAY);
        loop {
            tokio::time::sleep(delays.next().unwrap_or(MAX_DELAY)).await;
            self.look_at(chain, rpc).await;
        }
    }

    async fn look_at(&self, chain: &Chain, rpc: &Rpc) {
        let unknown = stream::iter(chain.tokens.iter().filter(|token| !self.fits(chain, token)));
        let look = async |token| self.note(chain, token, check_token(rpc, token).await);
        unknown.for_each_concurrent(MAX_TOKENS_AT_ONCE, look).await;
    }

    fn fits(&self, chain: &Chain, token: &Token) -> bool {
        locked(&self.causes).get(&(chain.id, token.address)) == Some(&None)
    }

    fn note(&self, chain: &Chain, token: &Token, verdict: TokenVerdict) {
        let (name, symbol, key) = (&chain.name, &token.symbol, (chain.id, token.address));
        let wrong = match verdict {
            TokenVerdict::Fits(_) | TokenVerdict::Undeclared(_) => None,
            TokenVerdict::OtherSymbol(ref how) => {
                tracing::warn!(chain = name, "token {symbol}: {how}");
                None
            }
            TokenVerdict::Wrong(ref cause) => {
                Some(format!("{cause}. Deposits at static addresses have amounts by the chains file all the same"))
            }
            TokenVerdict::Unknown(ref why) => {
                tracing::debug!(chain = name, "token {symbol} is asked again: {why}");
                return;
            }
        };
        let before = match verdict {
            // Another endpoint may know more later: it is asked again.
            TokenVerdict::Undeclared(_) => locked(&self.causes).remove(&key),
            _ => locked(&self.causes).insert(key, wrong.clone()),
        };
        let (before, stage) = (before.flatten(), format!("token {symbol} of chain {name}"));
        match wrong {
            Some(cause) => {
                stage::waits(&stage, &cause);
                if before.is_none() {
                    tracing::error!(chain = name, "token {symbol} is not offered, while the chain's others are: {cause}");
                }
            }
            None if before.is_some() => {
                stage::resumed(&stage);
                tracing::info!(chain = name, "token {symbol} is offered again");
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chains::catalog::tests::catalog;

    #[test]
    fn a_wrong_token_is_named_until_it_fits_and_silence_changes_nothing() {
        let catalog = catalog();
        let tokens = WrongTokens::new(&catalog);
        let (chain, token) = (&catalog.0[0], &catalog.0[0].tokens[0]);
        let told =
            || stage::waiting().into_iter().find(|(stage, _)| stage == "token USDX of chain anvil").map(|(_, cause)| cause);
        let note = |verdict| {
            tokens.note(chain, token, verdict);
            (tokens.cause(chain.id, token.address), told())
        };
        assert_eq!(note(TokenVerdict::Unknown("late".into())), (None, None));
        assert!(!tokens.fits(chain, token), "it is asked again");
        let cause = Some("8 decimals. Deposits at static addresses have amounts by the chains file all the same".to_owned());
        assert_eq!(note(TokenVerdict::Wrong("8 decimals".into())), (cause.clone(), cause.clone()));
        assert_eq!(note(TokenVerdict::Unknown("late".into())), (cause.clone(), cause.clone()));
        assert_eq!(note(TokenVerdict::Undeclared("nothing".into())), (None, None), "nothing contradicts any more");
        assert!(!tokens.fits(chain, token), "it is asked again");
        assert_eq!(note(TokenVerdict::Wrong("8 decimals".into())), (cause.clone(), cause));
        assert_eq!(note(TokenVerdict::OtherSymbol("it is X".into())), (None, None));
        assert!(tokens.fits(chain, token));
    }
}
