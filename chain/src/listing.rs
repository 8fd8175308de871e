//! What a process lists by now: the chains file as it was read last, and what tokens' contracts have said.
//!
//! A token is in doubt until its contract was asked. With wrong decimals each amount that is made from them would be wrong, so no
//! payment is asked for in such a token, and what arrives of it waits.

use crate::config::{Chain, Chains, ConfigError, Token};
use crate::resolve::ResolveError;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;
use topics::ChainId;

const NOT_ASKED: &str = "its contract has not been asked for its decimals yet";

/// The chains and tokens that are listed now. Cheap to clone.
#[derive(Clone)]
pub struct Listing(watch::Sender<Arc<Chains>>);

impl Listing {
    /// Reads the file. A chain whose id can't be known now is left out.
    ///
    /// # Errors
    /// With the line and key of the first mistake.
    pub async fn open(file: &Path) -> Result<(Self, Vec<ResolveError>), ConfigError> {
        let (mut chains, left_out) = Chains::load(file)?.resolve_known().await;
        chains.iter_mut().for_each(|chain| doubt_all_but(chain, None));
        Ok((Self(watch::Sender::new(Arc::new(chains))), left_out))
    }

    /// Reads the file again and takes it whole. A chain that has no id in it keeps the one that is known under its name or
    /// endpoints; another whose id can't be known now is left out.
    ///
    /// # Errors
    /// With the line and key of the first mistake. Then nothing has changed.
    pub async fn reload(&self, file: &Path) -> Result<Vec<ResolveError>, ConfigError> {
        let (mut chains, left_out) = Chains::load(file)?.with_ids_of(&self.chains()).resolve_known().await;
        self.0.send_modify(|before| {
            chains.iter_mut().for_each(|chain| doubt_all_but(chain, before.by_id(chain.id)));
            *before = Arc::new(chains);
        });
        Ok(left_out)
    }

    /// What is listed now. It does not change while it is held.
    pub fn chains(&self) -> Arc<Chains> {
        self.0.borrow().clone()
    }

    /// Tells of each change.
    pub fn changes(&self) -> watch::Receiver<Arc<Chains>> {
        self.0.subscribe()
    }

    /// Notes why a token is in doubt, or that it is not. Returns whether it was: `None` if this token is not listed any more.
    pub fn judge(&self, chain: ChainId, token: &Token, doubt: Option<String>) -> Option<bool> {
        let mut before = None;
        self.0.send_if_modified(|chains| {
            let is_same = |listed: &Token| (listed.address, listed.decimals) == (token.address, token.decimals);
            let of_token = |listed: &&mut Chain| listed.id == chain && listed.tokens.iter().any(is_same);
            let Some(listed) = Arc::make_mut(chains).iter_mut().find(of_token) else { return false };
            let was = match doubt.clone() {
                Some(why) => listed.doubts.insert(token.address, why),
                None => listed.doubts.remove(&token.address),
            };
            before = Some(was.is_some());
            was != doubt
        });
        before
    }
}

/// Doubts the tokens of a chain, but for those that it had `before` with the same decimals: of them nothing new is known.
fn doubt_all_but(chain: &mut Chain, before: Option<&Chain>) {
    let doubt = |token: &Token| {
        let known =
            before.filter(|before| before.token_by_address(token.address).is_some_and(|t| t.decimals == token.decimals));
        known.map_or_else(|| Some(NOT_ASKED.to_owned()), |before| before.doubts.get(&token.address).cloned())
    };
    chain.doubts = chain.tokens.iter().filter_map(|token| Some((token.address, doubt(token)?))).collect();
}
