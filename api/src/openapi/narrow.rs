//! Constraints that Rust types can't express: the chains and tokens of this server, and which fields go together.

use crate::chains::catalog::Catalog;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Removes `null` from a schema: a parameter or a header is present or absent, but never null.
pub fn never_null(schema: &mut Value) {
    if let Some(kinds) = schema["type"].as_array() {
        schema["type"] = kinds.iter().find(|kind| *kind != "null").cloned().unwrap_or_default();
    }
}

/// Lists the values of a query parameter that names a chain or a token.
pub fn narrow_parameter(parameter: &mut Value, catalog: &Catalog) {
    let chains = &*catalog.0;
    let known: BTreeSet<&str> = match parameter["name"].as_str() {
        Some("chain") => chains.iter().map(|chain| chain.name.as_str()).collect(),
        Some("token") => chains.iter().flat_map(|chain| &chain.tokens).map(|token| token.symbol.as_str()).collect(),
        _ => return,
    };
    parameter["schema"]["enum"] = json!(known);
}

/// Adds to the bodies' schemas which chains and tokens exist, and which fields go together.
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
    // An invalid order does not make the request invalid.
    let anything =
        json!({ "title": "Anything else", "description": "Its answer is its problem; the other payments are created." });
    let order = batch["properties"]["payments"]["items"].take();
    batch["properties"]["payments"]["items"] = json!({ "anyOf": [order, anything] });
    for order in ["CreatePayment", "BatchedPayment"] {
        narrow_order(&mut schemas[order], catalog);
    }
}

fn narrow_order(create: &mut Value, catalog: &Catalog) {
    let chains = &*catalog.0;
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
    fields["amount_decimal"]["pattern"] = json!(decimal_pattern(catalog));
    create["additionalProperties"] = json!(false);
    create["example"] = json!({
        "chain": chains.iter().next().map(|chain| &chain.name),
        "amount": "100000000000000",
        "external_id": "order-7",
        "metadata": { "shop": "north" },
    });
    let given = |name: &str, kind: &str| json!({ "required": [name], "properties": { name: { "type": kind } } });
    let none = |[first, second]: [&str; 2]| json!({ "properties": { first: { "type": "null" }, second: { "type": "null" } } });
    let amount = |name: &str, kinds: Value, other: &str| json!({ "required": [name], "properties": { name: { "type": kinds }, other: { "type": "null" } } });
    create["allOf"] = json!([
        { "oneOf": [
            amount("amount", json!(["string", "integer"]), "amount_decimal"),
            amount("amount_decimal", json!("string"), "amount"),
        ] },
        { "anyOf": [given("chain", "string"), given("chain_id", "integer")] },
        { "anyOf": [
            none(["token_id", "token_contract_address"]),
            none(["token", "token_contract_address"]),
            none(["token", "token_id"]),
        ] },
    ]);
}

/// Positive numbers that are an amount of every asset of this server: with so many digits that each has room for them. Others may be
/// accepted as well, by the asset's decimals.
fn decimal_pattern(catalog: &Catalog) -> String {
    let tokens = catalog.0.iter().flat_map(|chain| &chain.tokens).map(|token| token.decimals);
    let decimals: Vec<u8> = tokens.chain([chain::COIN_DECIMALS]).collect();
    let (least, most) =
        (decimals.iter().min().copied().unwrap_or_default(), decimals.iter().max().copied().unwrap_or_default());
    // All numbers of 77 digits are below 2^256.
    let whole = format!("0*[1-9][0-9]{{0,{}}}", 76_u8.saturating_sub(most));
    match least {
        0 => format!("^{whole}$"),
        least => format!(r"^({whole}(\.[0-9]{{1,{least}}})?|0+\.[0-9]{{0,{}}}[1-9])$", least - 1),
    }
}
