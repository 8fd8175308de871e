//! Strings with a format: amounts, addresses, ids, times, and the names of states.

use serde_json::json;
use std::borrow::Cow;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

macro_rules! texts {
    ($($(#[doc = $doc:literal])+ $name:ident = $pattern:literal, $format:expr, $example:literal;)*) => {$(
        $(#[doc = $doc])+
        pub enum $name {}

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some($pattern)).examples([json!($example)]);
                let format: Option<&str> = $format;
                text.format(format.map(|name| SchemaFormat::Custom(name.to_owned()))).description(Some(concat!($($doc),+).trim())).build().into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }
        }
    )*};
}

texts! {
    /// An amount in base units: wei, or a token's smallest unit.
    Amount = "^(0|[1-9][0-9]{0,77})$", None, "1500000000000000000";
    /// An address with the checksum of EIP-55.
    Address = "^0x[0-9a-fA-F]{40}$", None, "0x9858EfFD232B4033E47d90003D41EC34EcaEda94";
    /// 32 bytes.
    Hash = "^0x[0-9a-f]{64}$", None, "0x88e96d4537bea4d9c05d12549907b32561d3bf31f45aae734cdc119f13406cb6";
    /// RFC 3339 in UTC, truncated to the second.
    Time = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
        Some("date-time"), "2026-11-25T12:00:00Z";
    /// A payment's id, a UUID.
    PaymentId = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        Some("uuid"), "0198c5a2-7b1e-7c3a-9d1f-3b2a1c0d9e8f";
    /// An event's id: the payment's id and the event's number.
    EventId = "^evt_[0-9a-f]{32}_[0-9]+$", None, "evt_0198c5a27b1e7c3a9d1f3b2a1c0d9e8f_2";
    /// A webhook's id, a UUID.
    WebhookId = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        Some("uuid"), "0198c5a2-7b1e-7c3a-9d1f-3b2a1c0d9e8f";
    /// A CAIP-19 id.
    TokenId = "^eip155:[0-9]+/erc20:0x[0-9a-fA-F]{40}$", None, "eip155:1/erc20:0xdAC17F958D2ee523a2206206994597C13D831ec7";
}

/// A payment's status.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only the names are needed; the replies have them from `payments`")]
pub enum Status {
    Pending,
    Detected,
    Confirmed,
    Settled,
    Expired,
    Cancelled,
}

/// How a payment differs from its order.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only the names are needed; the replies have them from `payments`")]
pub enum Exception {
    Underpaid,
    Overpaid,
    Late,
}

/// The block tag of a chain that confirms by tag instead of by a count.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only the names are needed; the replies have them from `payments`")]
pub enum Finality {
    Safe,
    Finalized,
}

/// How coin that contracts send is seen on a chain.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only the names are needed; the replies have them from the chains file")]
pub enum CoinFromContracts {
    Traced,
    Logged,
}

/// Where in its block a transfer was found.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only the names are needed; the replies have them from `topics`")]
pub enum Source {
    Transaction,
    Log,
    Trace,
}

/// The state of a delivery.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only the names are needed; the replies have them from `webhooks`")]
pub enum DeliveryState {
    Pending,
    Delivered,
    Failed,
}
