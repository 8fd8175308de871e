//! Values of `chains.yaml` with rules of their own: names, symbols, URLs, token addresses, positive numbers.

use super::keys::UniqueKeys;
use super::url::NodeUrl;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Unexpected, Visitor};
use std::fmt;
use std::marker::PhantomData;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;
use topics::{Address, COIN_CONTRACTS, CoinContract};

/// A value parsed from text, with errors reported at the text's location.
pub(super) struct Scalar<T>(pub T);

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Scalar<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text<T>(PhantomData<T>);
        impl<T: FromStr<Err = String>> Visitor<'_> for Text<T> {
            type Value = Scalar<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Scalar<T>, E> {
                text.parse().map(Scalar).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text(PhantomData))
    }
}

/// A number of `chains.yaml`, and how it is asked for.
pub(super) trait Number: Sized {
    const EXPECTED: &'static str;
    fn of(number: u64) -> Option<Self>;
}

impl Number for u8 {
    const EXPECTED: &'static str = "a whole number from 0 to 255";
    fn of(number: u64) -> Option<Self> {
        Self::try_from(number).ok()
    }
}

impl Number for u64 {
    const EXPECTED: &'static str = "a whole number from 0 on";
    fn of(number: u64) -> Option<Self> {
        Some(number)
    }
}

impl Number for NonZeroU64 {
    const EXPECTED: &'static str = "a whole number above 0";
    fn of(number: u64) -> Option<Self> {
        Self::new(number)
    }
}

impl Number for NonZeroU32 {
    const EXPECTED: &'static str = "a whole number above 0, and below 2^32";
    fn of(number: u64) -> Option<Self> {
        Self::try_from(NonZeroU64::new(number)?).ok()
    }
}

/// A whole number, refused at its location and without the name of a type.
pub(super) struct Whole<N>(pub N);

impl<'de, N: Number> Deserialize<'de> for Whole<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Digits<N>(PhantomData<N>);
        impl<N: Number> Visitor<'_> for Digits<N> {
            type Value = Whole<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(N::EXPECTED)
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Whole<N>, E> {
                N::of(number).map(Whole).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
            }
        }
        deserializer.deserialize_u64(Digits(PhantomData))
    }
}

pub(super) struct ChainName(pub String);

impl FromStr for ChainName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if fits { Ok(Self(text.to_owned())) } else { Err(format!("expected up to 64 of a-z 0-9 - _ ., got {text:?}")) }
    }
}

pub(super) struct Symbol(pub String);

impl FromStr for Symbol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=32).contains(&text.chars().count()) && !text.contains(|c: char| c.is_whitespace() || c.is_control());
        if fits { Ok(Self(text.to_owned())) } else { Err(format!("expected a symbol of up to 32 characters, got {text:?}")) }
    }
}

pub(super) struct HttpUrl(pub NodeUrl);

impl FromStr for HttpUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = NodeUrl::from_str(text)?;
        if url.is_http() { Ok(Self(url)) } else { Err("expected http:// or https://".to_owned()) }
    }
}

/// An entry of `rpc_urls`: a URL, or a URL with the group that its endpoint is of.
pub(super) struct RpcUrl(pub NodeUrl);

impl<'de> Deserialize<'de> for RpcUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Grouped {
            url: Scalar<HttpUrl>,
            group: Option<Scalar<ChainName>>,
        }
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
            type Value = RpcUrl;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL, or { url: …, group: … }")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<RpcUrl, E> {
                HttpUrl::from_str(text).map(|url| RpcUrl(url.0)).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RpcUrl, A::Error> {
                let Grouped { url, group } = Grouped::deserialize(MapAccessDeserializer::new(UniqueKeys::new(map)))?;
                Ok(RpcUrl(url.0.0.in_group(group.map(|group| group.0.0))))
            }
        }
        deserializer.deserialize_any(Entry)
    }
}

pub(super) struct WsUrl(pub NodeUrl);

impl FromStr for WsUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = NodeUrl::from_str(text)?;
        if url.is_websocket() { Ok(Self(url)) } else { Err("expected ws:// or wss://".to_owned()) }
    }
}

/// Reads an address, whose checksum (EIP-55) has to be right if it has one.
///
/// # Errors
/// With what was expected.
pub fn read_address(text: &str) -> Result<Address, String> {
    let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 40).unwrap_or_default();
    let address =
        Address::from_str(digits).map_err(|_| format!("expected an address of 0x and 40 hex digits, got {text:?}"))?;
    // Mixed case is a checksum (EIP-55); a single case is none.
    let mixed = digits.contains(|c: char| c.is_ascii_lowercase()) && digits.contains(|c: char| c.is_ascii_uppercase());
    let checksummed = address.to_checksum(None);
    if mixed && text != checksummed {
        return Err(format!("the checksum of {text} is wrong; expected {checksummed} if the digits are right"));
    }
    Ok(address)
}

pub(super) struct TreasuryAddress(pub Address);

impl FromStr for TreasuryAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = read_address(text)?;
        match COIN_CONTRACTS.iter().find(|coin| coin.address == address) {
            _ if address.is_zero() => Err("what is sent to 0x00…00 is gone; expected a wallet of yours".to_owned()),
            Some(CoinContract { what, .. }) => Err(format!("{text} is {what}; expected a wallet of yours")),
            None => Ok(Self(address)),
        }
    }
}

pub(super) struct TokenAddress(pub Address);

impl FromStr for TokenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = read_address(text)?;
        // Whichever chain it is: its id may not be known yet.
        match COIN_CONTRACTS.iter().find(|coin| coin.address == address) {
            Some(CoinContract { what, .. }) => Err(format!(
                "{text} is {what}: as a token it would count the same money twice. Payments in the coin need no token entry"
            )),
            None => Ok(Self(address)),
        }
    }
}
