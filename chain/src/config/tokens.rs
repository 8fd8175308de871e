//! The token list of a chain in `chains.yaml`.

use super::chain::Token;
use super::keys::UniqueKeys;
use super::presets;
use super::scalar::{Scalar, Symbol, TokenAddress, Whole};
use super::tiers::{self, Decimal, RawTier};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// The tokens of a chain, with unique symbols and addresses.
#[derive(Default)]
pub(super) struct Tokens(pub Vec<Token>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    symbol: Scalar<Symbol>,
    address: Scalar<TokenAddress>,
    decimals: Whole<u8>,
    #[serde(default)]
    tiers: Vec<RawTier>,
    min_transfer: Option<Scalar<Decimal>>,
}

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tokens: symbol, address, decimals, tiers, min_transfer")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tokens, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = list.next_element_seed(UniqueToken { seen: &tokens })? {
                    tokens.push(token);
                }
                Ok(Tokens(tokens))
            }

            fn visit_unit<E>(self) -> Result<Tokens, E> {
                Ok(Tokens::default())
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// Reads one token and refuses a symbol or address that was seen before.
struct UniqueToken<'a> {
    seen: &'a [Token],
}

impl<'de> DeserializeSeed<'de> for UniqueToken<'_> {
    type Value = Token;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Token, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for UniqueToken<'_> {
    type Value = Token;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token: symbol, address, decimals")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Token, A::Error> {
        let RawToken { symbol, address, decimals: Whole(decimals), tiers, min_transfer } =
            RawToken::deserialize(MapAccessDeserializer::new(UniqueKeys::new(map)))?;
        let tiers = tiers::check(tiers, decimals).map_err(A::Error::custom)?;
        let min_transfer = tiers::amount("min_transfer", min_transfer, decimals)
            .map_err(A::Error::custom)?
            .unwrap_or_else(|| presets::min_transfer(address.0.0, decimals));
        let token = Token { symbol: symbol.0.0, address: address.0.0, decimals, tiers, min_transfer };
        for other in self.seen {
            if other.symbol.eq_ignore_ascii_case(&token.symbol) {
                let symbol = &token.symbol;
                return Err(A::Error::custom(format!("symbol: {symbol:?} is listed already; expected each symbol once")));
            }
            if other.address == token.address {
                let (address, symbol) = (token.address, &other.symbol);
                return Err(A::Error::custom(format!("address: {address} is listed already, as {symbol}; expected each once")));
            }
        }
        Ok(token)
    }
}
