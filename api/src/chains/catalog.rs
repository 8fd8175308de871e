//! The chains and tokens of chains.yaml, looked up by the names that requests use.
//!
//! Error texts list what there is, so that a client can correct its request.

use base::text::excerpt;
use chain::{Chain, Chains, Token};
use payments::Asset;
use std::fmt::Display;
use std::sync::Arc;
use topics::{Address, ChainId};

/// All chains, in the order of chains.yaml.
#[derive(Debug, Clone)]
pub struct Catalog(pub Arc<Chains>);

/// Every chain's own coin.
pub const COIN: Asset = Asset { token: None, decimals: chain::COIN_DECIMALS };

fn asset(token: &Token) -> Asset {
    let Token { symbol, address, decimals, .. } = token.clone();
    Asset { token: Some(payments::Token { symbol, address }), decimals }
}

impl Catalog {
    /// Of these chains.
    pub fn of(chains: Vec<Chain>) -> Self {
        Self(Arc::new(chains.into()))
    }

    /// The names of all chains, for error texts.
    pub fn names(&self) -> String {
        list(self.0.iter().map(|chain| &chain.name))
    }

    /// A chain by name.
    ///
    /// # Errors
    /// A text with the names that exist.
    pub fn by_name(&self, name: &str) -> Result<&Chain, String> {
        self.0.by_name(name).ok_or_else(|| format!("there is no chain {:?}; there are {}", excerpt(name), self.names()))
    }

    /// A chain by EIP-155 id.
    ///
    /// # Errors
    /// A text with the ids that exist.
    pub fn by_id(&self, id: ChainId) -> Result<&Chain, String> {
        self.0.by_id(id).ok_or_else(|| {
            let known = list(self.0.iter().map(|chain| format!("{} ({})", chain.id, chain.name)));
            format!("there is no chain {id}; there are {known}")
        })
    }

    /// A token's symbol as chains.yaml spells it; `text` may differ in case.
    ///
    /// # Errors
    /// A text with the symbols that exist.
    pub fn symbol(&self, text: &str) -> Result<String, String> {
        let tokens = || self.0.iter().flat_map(|chain| &chain.tokens).map(|token| &token.symbol);
        let found = tokens().find(|symbol| symbol.eq_ignore_ascii_case(text)).cloned();
        found.ok_or_else(|| format!("there is no token {:?}; there are {}", excerpt(text), list(tokens())))
    }
}

/// A token of a chain by symbol.
///
/// # Errors
/// A text with the symbols that exist.
pub fn by_symbol(chain: &Chain, symbol: &str) -> Result<Asset, String> {
    let known = || list(chain.tokens.iter().map(|token| &token.symbol));
    chain.token_by_symbol(symbol).map(asset).ok_or_else(|| {
        format!("chain {} has no token {:?}; it has {}, and its coin without a token", chain.name, excerpt(symbol), known())
    })
}

/// A token of a chain by contract address, in any case.
///
/// # Errors
/// A text with the addresses that exist.
pub fn by_address(chain: &Chain, text: &str) -> Result<Asset, String> {
    let address: Address =
        text.parse().map_err(|_| format!("expected a contract address, 0x and 40 hex digits, got {:?}", excerpt(text)))?;
    let known = || list(chain.tokens.iter().map(|token| format!("{} ({})", token.address, token.symbol)));
    let token = chain.token_by_address(address).map(asset);
    token.ok_or_else(|| format!("chain {} has no token at {address}; it has {}", chain.name, known()))
}

/// A token of a chain by CAIP-19 id.
///
/// # Errors
/// A text with the form that is expected.
pub fn by_token_id(chain: &Chain, text: &str) -> Result<Asset, String> {
    let expected = || format!("expected a CAIP-19 id like eip155:{}/erc20:0x…, got {:?}", chain.id, excerpt(text));
    let (namespace, asset) = text.split_once('/').ok_or_else(expected)?;
    let id = namespace.strip_prefix("eip155:").ok_or_else(expected)?;
    let address = asset.strip_prefix("erc20:").ok_or_else(expected)?;
    if id != chain.id.to_string() {
        return Err(format!("a token of chain {:?}, but the payment is on {} ({})", excerpt(id), chain.name, chain.id));
    }
    by_address(chain, address)
}

fn list(items: impl Iterator<Item = impl Display>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn chain(name: &str, id: u64, policy: chain::Policy, tokens: Vec<Token>) -> Chain {
        Chain {
            name: name.to_owned(),
            id: ChainId(id),
            rpc_urls: vec![],
            ws_urls: vec![],
            witnesses: 1,
            poa: false,
            policy,
            tiers: vec![],
            min_transfer: topics::Amount::ZERO,
            start_block: None,
            poll_interval: Duration::from_secs(1),
            max_lag: None,
            verify: chain::Verify::Auto,
            traces: false,
            sweeping: chain::Sweeping::default(),
            tokens,
            doubts: BTreeMap::new(),
        }
    }

    pub fn catalog() -> Catalog {
        Catalog::of(chains())
    }

    pub fn chains() -> Vec<Chain> {
        let usdx = Token {
            symbol: "USDX".into(),
            address: Address::repeat_byte(0xab),
            decimals: 6,
            tiers: vec![],
            min_transfer: topics::Amount::ZERO,
        };
        vec![
            chain("anvil", 31337, chain::Policy::Confirmations(3), vec![usdx]),
            chain("base", 8453, chain::Policy::Safe, vec![]),
        ]
    }

    #[test]
    fn a_token_is_found_by_each_of_its_names_and_not_on_another_chain() {
        let catalog = catalog();
        let anvil = catalog.by_name("anvil").unwrap();
        let asset = by_symbol(anvil, "USDX").unwrap();
        let token = &anvil.tokens[0];
        assert_eq!(by_address(anvil, &token.address.to_string().to_lowercase()).unwrap(), asset);
        assert_eq!(by_token_id(anvil, &token.id(anvil.id)).unwrap(), asset);
        assert_eq!(by_token_id(anvil, &token.id(anvil.id).to_lowercase()).unwrap(), asset);
        assert!(by_token_id(anvil, &token.id(ChainId(1))).is_err());
        assert!(by_token_id(anvil, "eip155:31337/slip44:60").is_err());
        assert!(by_symbol(catalog.by_id(ChainId(8453)).unwrap(), "USDX").is_err());
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let catalog = catalog();
        assert_eq!(catalog.by_name("goerli").unwrap_err(), r#"there is no chain "goerli"; there are anvil, base"#);
        assert_eq!(catalog.by_id(ChainId(1)).unwrap_err(), "there is no chain 1; there are 31337 (anvil), 8453 (base)");
        let anvil = catalog.by_name("anvil").unwrap();
        assert_eq!(
            by_symbol(anvil, "DAI").unwrap_err(),
            r#"chain anvil has no token "DAI"; it has USDX, and its coin without a token"#
        );
    }
}
