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
            let of_token = |listed: &Chain| listed.id == chain && listed.tokens.iter().any(is_same);
            let Some(listed) = chains.iter().find(|listed| of_token(listed)) else { return false };
            let was = listed.doubts.get(&token.address);
            before = Some(was.is_some());
            // Whoever follows the list takes another one for a change.
            if was == doubt.as_ref() {
                return false;
            }
            let Some(listed) = Arc::make_mut(chains).iter_mut().find(|listed| of_token(listed)) else { return false };
            match doubt.clone() {
                Some(why) => drop(listed.doubts.insert(token.address, why)),
                None => drop(listed.doubts.remove(&token.address)),
            }
            true
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Who follows the list begins anew with each change of it.
    #[tokio::test]
    async fn a_doubt_that_is_known_already_is_no_change() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = "tokens: [{ symbol: T, address: \"0x00000000000000000000000000000000000000aa\", decimals: 6 }]";
        std::fs::write(file.path(), format!("- name: c\n  chain_id: 7\n  rpc_url: http://127.0.0.1:9\n  {token}\n")).unwrap();
        let (listing, _) = Listing::open(file.path()).await.unwrap();
        let held = listing.chains();
        let token = held.by_id(ChainId(7)).unwrap().tokens[0].clone();
        assert_eq!(listing.judge(ChainId(7), &token, Some("silent".to_owned())), Some(true), "it was not asked before");
        let held = listing.chains();
        assert_eq!(listing.judge(ChainId(7), &token, Some("silent".to_owned())), Some(true));
        assert!(Arc::ptr_eq(&held, &listing.chains()));
        assert_eq!(listing.judge(ChainId(7), &token, None), Some(true));
        assert_eq!(listing.judge(ChainId(7), &token, None), Some(false));
        assert!(!Arc::ptr_eq(&held, &listing.chains()));
    }
}
