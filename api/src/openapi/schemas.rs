//! Shapes of what goes in and out: texts that have a form, and bodies that are read by hand.

use crate::catalog::Catalog;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeSet;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, SchemaFormat, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use webhooks::body::{KINDS, TYPES};

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
    /// A sum of base units.
    Amount = "^(0|[1-9][0-9]{0,77})$", None, "1500000000000000000";
    /// With the checksum of EIP-55.
    Address = "^0x[0-9a-fA-F]{40}$", None, "0x9858EfFD232B4033E47d90003D41EC34EcaEda94";
    /// 32 bytes.
    Hash = "^0x[0-9a-f]{64}$", None, "0x88e96d4537bea4d9c05d12549907b32561d3bf31f45aae734cdc119f13406cb6";
    /// RFC 3339 in UTC, to the second.
    Time = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
        Some("date-time"), "2026-11-25T12:00:00Z";
    /// A payment's id, a UUID.
    PaymentId = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        Some("uuid"), "0198c5a2-7b1e-7c3a-9d1f-3b2a1c0d9e8f";
    /// An event's id: the payment's and the event's number.
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
#[expect(dead_code, reason = "its names are what matters; the replies have them from `confirmer`")]
pub enum Status {
    Pending,
    Detected,
    Confirmed,
    Settled,
    Expired,
    Cancelled,
}

/// What is off about a payment.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "its names are what matters; the replies have them from `confirmer`")]
pub enum Exception {
    Underpaid,
    Overpaid,
    Late,
}

/// The tag of a chain that confirms in place of a count.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "its names are what matters; the replies have them from `confirmer`")]
pub enum Finality {
    Safe,
    Finalized,
}

/// Where in its block a transfer was seen.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "its names are what matters; the replies have them from `topics`")]
pub enum Source {
    Transaction,
    Log,
    Trace,
}

/// How far a delivery is.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "its names are what matters; the replies have them from `webhooks`")]
pub enum DeliveryState {
    Pending,
    Delivered,
    Failed,
}

/// Which payments a list has, and how many at once.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "parameters are read one by one, so that every mistake is told: see `list::Filter`")]
pub struct ListPayments {
    /// At most so many; 50 if left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    #[param(pattern = "^02[0-9a-fA-F]{48}$")]
    cursor: Option<String>,
    /// Of this status.
    #[param(inline)]
    status: Option<Status>,
    /// On this chain, by name.
    chain: Option<String>,
    /// In this token, by symbol.
    token: Option<String>,
    /// With this reference of yours.
    #[param(pattern = r"^[^\u0000]*$")]
    external_id: Option<String>,
    /// With this deposit address.
    #[param(pattern = "^0x[0-9a-fA-F]{40}$")]
    address: Option<String>,
    /// Created at this time (RFC 3339) or later.
    #[param(format = "date-time")]
    created_from: Option<String>,
    /// Created before this time (RFC 3339).
    #[param(format = "date-time")]
    created_before: Option<String>,
}

/// Which deposit addresses a list has, and how many at once.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "parameters are read one by one: see `addresses::Asked`")]
pub struct ListAddresses {
    /// At most so many; 50 if left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    #[param(pattern = "^02[0-9a-fA-F]{48}$")]
    cursor: Option<String>,
    /// The customer's.
    #[param(pattern = r"^[^\u0000]*$")]
    external_id: Option<String>,
}

/// How many deposits a list has at once.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "parameters are read one by one: see `addresses::Asked`")]
pub struct ListDeposits {
    /// At most so many; 50 if left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    #[param(pattern = "^02[0-9a-fA-F]{48}$")]
    cursor: Option<String>,
}

/// Which of a payment's events.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "parameters are read one by one: see `history::page`")]
pub struct ListEvents {
    /// At most so many; 100 if left out. Not for the stream.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// `next_cursor` of the page before: the id of its last event. What is no event of this payment is as none.
    cursor: Option<String>,
}

/// Which deliveries of a webhook a list has, and how many at once.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "parameters are read one by one: see `webhooks::deliveries`")]
pub struct ListDeliveries {
    /// At most so many; 50 if left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    #[param(pattern = "^[0-9]{1,18}$")]
    cursor: Option<String>,
    /// In this state.
    #[param(inline)]
    state: Option<DeliveryState>,
}

/// Which tokens.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "parameters are read one by one")]
pub struct ListTokens {
    /// Of this chain, by name.
    chain: Option<String>,
}

/// What a create request's body has. `null` is the same as leaving a field out.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field, so that no number goes through a float: see `order`")]
pub struct CreatePayment {
    #[schema(schema_with = positive)]
    amount: String,
    /// Where it is to be paid, by name. This or `chain_id`; both if they agree.
    chain: Option<String>,
    /// Where it is to be paid, by EIP-155 id.
    chain_id: Option<u64>,
    /// In what, by symbol. One of this, `token_id` and `token_contract_address`; none of them for the chain's coin.
    token: Option<String>,
    /// In what, by CAIP-19 id.
    token_id: Option<String>,
    /// In what, by contract.
    token_contract_address: Option<String>,
    /// Seconds until it expires; an hour if left out.
    #[schema(minimum = 60, maximum = 2_592_000)]
    expires_in: Option<u64>,
    /// Your own reference.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\u0000]*$")]
    external_id: Option<String>,
    /// Anything of yours, at most 16 KiB; it comes back as it was written.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Value>,
    /// Instead of the chain's policy: blocks from the transfer's own to the head, both counted.
    #[schema(minimum = 1, maximum = 10_000)]
    confirmations: Option<u64>,
    #[schema(schema_with = less)]
    underpaid_tolerance: Option<String>,
    #[schema(schema_with = more)]
    overpaid_tolerance: Option<String>,
    /// Whether what arrives after its expiry counts; your merchant's setting if left out.
    accept_late: Option<bool>,
}

/// What the body of a request for a deposit address has.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field: see `addresses`")]
#[schema(example = json!({ "external_id": "customer-7", "metadata": { "shop": "north" } }))]
pub struct CreateAddress {
    /// Your reference of the customer; there is one address for each.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\u0000]*$")]
    external_id: String,
    /// Anything of yours, at most 16 KiB; it comes back as it was written.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Value>,
}

/// What the body of a request for a webhook has.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field: see `webhooks`")]
#[schema(example = json!({ "url": "https://shop.example/events", "events": ["payment.confirmed", "payment.expired"] }))]
pub struct CreateWebhook {
    /// Where events are sent to: https, on the public Internet, without user and password.
    #[schema(
        max_length = 2048,
        pattern = r"^https://([a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?\.)+[a-z]{2,24}(:[1-9][0-9]{0,3})?(/[!-~]*)?$"
    )]
    url: String,
    /// The types it gets, `payment.*` being all of a kind; all there are if left out or empty.
    #[schema(schema_with = event_types)]
    events: Option<Vec<String>>,
    /// Your words.
    #[schema(max_length = 255, pattern = r"^[^\u0000]*$")]
    description: Option<String>,
}

/// What a change of a webhook has; what is left out stays.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field: see `webhooks`")]
#[schema(example = json!({ "enabled": true }))]
pub struct UpdateWebhook {
    /// Where events are sent to.
    #[schema(
        max_length = 2048,
        pattern = r"^https://([a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?\.)+[a-z]{2,24}(:[1-9][0-9]{0,3})?(/[!-~]*)?$"
    )]
    url: Option<String>,
    /// The types it gets; empty is all there are.
    #[schema(schema_with = event_types)]
    events: Option<Vec<String>>,
    /// Your words; empty is none.
    #[schema(max_length = 255, pattern = r"^[^\u0000]*$")]
    description: Option<String>,
    /// Whether it is sent anything.
    enabled: Option<bool>,
}

/// What is sent again: one of `event_id`, `from` with `before`, and `failed`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field: see `webhooks::deliveries`")]
#[schema(example = json!({ "failed": true }))]
pub struct RedeliverWebhook {
    /// The one of this event.
    #[schema(pattern = r"^[^\u0000]*$")]
    event_id: Option<String>,
    /// Those made at this time (RFC 3339) or later.
    #[schema(format = "date-time")]
    from: Option<String>,
    /// Those made before this time (RFC 3339).
    #[schema(format = "date-time")]
    before: Option<String>,
    /// All that failed, for good or so far.
    failed: Option<bool>,
    /// The `next_cursor` of the answer before: goes on after those.
    #[schema(pattern = r"^[0-9]{1,17}_[0-9]{1,18}$")]
    cursor: Option<String>,
}

fn event_types() -> Schema {
    let kind = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(KINDS.into_iter().chain(TYPES)));
    let types = ArrayBuilder::new()
        .items(kind)
        .max_items(Some(50))
        .description(Some("Event types, `payment.*` being all of a kind; none is all."));
    OneOfBuilder::new().item(types).item(ObjectBuilder::new().schema_type(Type::Null)).into()
}

/// What a batch's body has.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field: see `bulk`")]
pub struct CreatePayments {
    /// Each is answered for itself.
    #[schema(min_items = 1, max_items = 1000)]
    payments: Vec<BatchedPayment>,
}

/// An order of a batch: what a create request has, and a key of its own.
pub enum BatchedPayment {}

impl PartialSchema for BatchedPayment {
    fn schema() -> RefOr<Schema> {
        let mut schema = CreatePayment::schema();
        if let RefOr::T(Schema::Object(order)) = &mut schema {
            let key = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(255));
            let key = key.pattern(Some("^[ -~]+$")).description(Some("As the header Idempotency-Key, for this order alone."));
            order.properties.insert("idempotency_key".to_owned(), key.build().into());
            order.description = Some("An order of a batch.".to_owned());
        }
        schema
    }
}

impl ToSchema for BatchedPayment {
    fn name() -> Cow<'static, str> {
        "BatchedPayment".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        CreatePayment::schemas(schemas);
    }
}

fn less() -> Schema {
    units(
        "Base units by which less is as good as the amount, though something has to be paid; your merchant's share of the amount if left out.",
    )
}

fn more() -> Schema {
    units("Base units by which more is no exception; your merchant's share of the amount if left out.")
}

fn units(description: &str) -> Schema {
    let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[0-9]{1,77}$"));
    let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
    let nothing = ObjectBuilder::new().schema_type(Type::Null);
    OneOfBuilder::new().item(text).item(number).item(nothing).description(Some(description)).into()
}

fn positive() -> Schema {
    // 77 digits are below 2^256 whatever they are; some numbers of 78 are as well, and are taken.
    let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^0*[1-9][0-9]{0,76}$"));
    let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
    let either = OneOfBuilder::new().item(text).item(number);
    either.description(Some("Base units of the asset; a string, since many read a JSON number into 53 bits.")).into()
}

/// What is never `null`: a parameter or a header is there or not.
pub fn never_null(schema: &mut Value) {
    if let Some(kinds) = schema["type"].as_array() {
        schema["type"] = kinds.iter().find(|kind| *kind != "null").cloned().unwrap_or_default();
    }
}

/// A query's parameter of which there are only so many.
pub fn narrow_parameter(parameter: &mut Value, catalog: &Catalog) {
    let chains = &catalog.0;
    let known: BTreeSet<&str> = match parameter["name"].as_str() {
        Some("chain") => chains.iter().map(|chain| chain.name.as_str()).collect(),
        Some("token") => chains.iter().flat_map(|chain| &chain.tokens).map(|token| token.symbol.as_str()).collect(),
        _ => return,
    };
    parameter["schema"]["enum"] = json!(known);
}

/// What a type can't say: the chains and tokens there are, and which fields go together.
pub fn narrow(schemas: &mut Value, catalog: &Catalog) {
    for closed in ["CreateAddress", "CreateWebhook", "UpdateWebhook", "RedeliverWebhook"] {
        schemas[closed]["additionalProperties"] = json!(false);
    }
    let given = |required: &[&str], kinds: Value, absent: &[&str]| {
        let mut properties = kinds;
        for name in absent {
            properties[*name] = json!({ "type": "null" });
        }
        json!({ "required": required, "properties": properties })
    };
    let text = json!({ "type": "string" });
    schemas["RedeliverWebhook"]["oneOf"] = json!([
        given(&["event_id"], json!({ "event_id": text }), &["from", "before", "failed"]),
        given(&["from", "before"], json!({ "from": text, "before": text }), &["event_id", "failed"]),
        given(&["failed"], json!({ "failed": { "const": true } }), &["event_id", "from", "before"]),
    ]);
    let batch = &mut schemas["CreatePayments"];
    batch["additionalProperties"] = json!(false);
    // An order that is wrong is no reason to refuse the request.
    let anything =
        json!({ "title": "Anything else", "description": "It is answered with its problem, and the others are made." });
    let order = batch["properties"]["payments"]["items"].take();
    batch["properties"]["payments"]["items"] = json!({ "anyOf": [order, anything] });
    for order in ["CreatePayment", "BatchedPayment"] {
        narrow_order(&mut schemas[order], catalog);
    }
}

fn narrow_order(create: &mut Value, catalog: &Catalog) {
    let chains = &catalog.0;
    let tokens = || chains.iter().flat_map(|chain| chain.tokens.iter().map(move |token| (chain, token)));
    let one_of = |values: &mut dyn Iterator<Item = Value>| {
        let mut seen = BTreeSet::new();
        let distinct = values.filter(|value| seen.insert(value.to_string()));
        distinct.chain([Value::Null]).collect::<Vec<_>>()
    };
    let fields = &mut create["properties"];
    fields["chain"]["enum"] = one_of(&mut chains.iter().map(|chain| json!(chain.name))).into();
    fields["chain_id"]["enum"] = one_of(&mut chains.iter().map(|chain| json!(chain.id.0))).into();
    fields["token"]["enum"] = one_of(&mut tokens().map(|(_, token)| json!(token.symbol))).into();
    fields["token_id"]["enum"] = one_of(&mut tokens().map(|(chain, token)| json!(token.id(chain.id)))).into();
    fields["token_contract_address"]["enum"] = one_of(&mut tokens().map(|(_, token)| json!(token.address.to_string()))).into();
    create["additionalProperties"] = json!(false);
    create["example"] = json!({
        "chain": chains.first().map(|chain| &chain.name),
        "amount": "100000000000000",
        "external_id": "order-7",
        "metadata": { "shop": "north" },
    });
    let given = |name: &str, kind: &str| json!({ "required": [name], "properties": { name: { "type": kind } } });
    let none = |[first, second]: [&str; 2]| json!({ "properties": { first: { "type": "null" }, second: { "type": "null" } } });
    create["allOf"] = json!([
        { "anyOf": [given("chain", "string"), given("chain_id", "integer")] },
        { "anyOf": [
            none(["token_id", "token_contract_address"]),
            none(["token", "token_contract_address"]),
            none(["token", "token_id"]),
        ] },
    ]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body is read by hand, so nothing else keeps the two together.
    #[test]
    fn the_document_has_the_fields_that_are_read() {
        let schema = serde_json::to_value(CreatePayment::schema()).unwrap();
        let documented: BTreeSet<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(documented, crate::order::FIELDS.into_iter().collect());
        let schema = serde_json::to_value(CreateAddress::schema()).unwrap();
        let documented: BTreeSet<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(documented, crate::addresses::FIELDS.into_iter().collect());
        for (schema, read) in [
            (CreateWebhook::schema(), &crate::webhooks::FIELDS[..]),
            (UpdateWebhook::schema(), &crate::webhooks::UPDATE_FIELDS[..]),
            (RedeliverWebhook::schema(), &crate::webhooks::deliveries::FIELDS[..]),
        ] {
            let schema = serde_json::to_value(schema).unwrap();
            let documented: BTreeSet<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(documented, read.iter().copied().collect());
        }
    }
}
