//! Payments: create requests, batches, and the queries of their lists and events.

use crate::openapi::schemas::texts::{Exception, Status};
use serde_json::Value;
use std::borrow::Cow;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

/// The query of a list of payments.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "`routes::payments_list` reads the parameters one by one")]
pub struct ListPayments {
    /// The page's size; 50 if left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u64>,
    /// The `next_cursor` of the previous page.
    #[param(pattern = "^02[0-9a-fA-F]{48}$")]
    cursor: Option<String>,
    /// With this status.
    #[param(inline)]
    status: Option<Status>,
    /// With this exception.
    #[param(inline)]
    exception: Option<Exception>,
    /// On this chain, by name.
    chain: Option<String>,
    /// In this token, by symbol.
    token: Option<String>,
    /// With this reference of yours. One that more than 1,000 payments have is not combined with `exception`, `chain` or `token`.
    #[param(pattern = r"^[^\u0000]*$")]
    external_id: Option<String>,
    /// With this deposit address.
    #[param(pattern = "^0x[0-9a-fA-F]{40}$")]
    address: Option<String>,
    /// With a transfer, credited or not, in the transaction of this hash.
    #[param(pattern = "^0x[0-9a-fA-F]{64}$")]
    transaction_hash: Option<String>,
    /// Created at this time (RFC 3339) or later.
    #[param(format = "date-time")]
    created_from: Option<String>,
    /// Created before this time (RFC 3339).
    #[param(format = "date-time")]
    created_before: Option<String>,
}

/// The query of a payment's events.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "`routes::payment_events` reads the parameters one by one")]
pub struct ListEvents {
    /// The page's size; 100 if left out. The stream ignores it.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// The `next_cursor` of the previous page: the id of its last event. A value that is no event of this payment counts as none.
    cursor: Option<String>,
}

/// The query of a list of transfers.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "`routes::transfers` reads the parameters one by one")]
pub struct ListTransfers {
    /// The page's size; 50 if left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u64>,
    /// The `next_cursor` of the previous page.
    #[param(pattern = "^03[0-9a-fA-F]{56}0[0-2][0-9a-fA-F]{8}$")]
    cursor: Option<String>,
}

/// The body of a create request. `null` is the same as leaving a field out.
#[derive(ToSchema)]
#[expect(dead_code, reason = "`create::order` reads the body field by field")]
pub struct CreatePayment {
    #[schema(schema_with = amount, required = false)]
    amount: String,
    /// In whole coins or tokens, such as `1.5`, with at most as many digits after the point as the asset has decimals. This or
    /// `amount`.
    amount_decimal: Option<String>,
    /// The chain to pay on, by name. This or `chain_id`; both if they agree.
    chain: Option<String>,
    /// The chain to pay on, by EIP-155 id.
    chain_id: Option<u64>,
    /// The token to pay in, by symbol. One of this, `token_id` and `token_contract_address`; none of them for the chain's coin.
    token: Option<String>,
    /// The token to pay in, by CAIP-19 id.
    token_id: Option<String>,
    /// The token to pay in, by contract.
    token_contract_address: Option<String>,
    /// Seconds until the payment expires; an hour if left out.
    #[schema(minimum = 60, maximum = 2_592_000)]
    expires_in: Option<u64>,
    /// Your own reference.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\u0000]*$")]
    external_id: Option<String>,
    /// Any data of yours, at most 16 KiB; it is returned as it was written.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Value>,
    /// Overrides the chain's policy: blocks from the transfer's own to the head, both included.
    #[schema(minimum = 1, maximum = 10_000)]
    confirmations: Option<u64>,
    #[schema(schema_with = underpaid_tolerance)]
    underpaid_tolerance: Option<String>,
    #[schema(schema_with = overpaid_tolerance)]
    overpaid_tolerance: Option<String>,
    /// Whether transfers after the expiry count; your merchant's setting if left out.
    accept_late: Option<bool>,
}

/// The body of a batch request.
#[derive(ToSchema)]
#[expect(dead_code, reason = "`routes::payments_batch` reads the body field by field")]
pub struct CreatePayments {
    /// Each order has its own answer.
    #[schema(min_items = 1, max_items = 1000)]
    payments: Vec<BatchedPayment>,
}

/// An order of a batch: the fields of a create request, and an idempotency key of its own.
pub enum BatchedPayment {}

impl PartialSchema for BatchedPayment {
    fn schema() -> RefOr<Schema> {
        let mut schema = CreatePayment::schema();
        if let RefOr::T(Schema::Object(order)) = &mut schema {
            let key = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(255));
            let key = key.pattern(Some("^[ -~]+$")).description(Some("Like the header Idempotency-Key, for this order alone."));
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

fn amount() -> Schema {
    // All numbers of 77 digits are below 2^256. Some of 78 digits are as well, and are accepted.
    let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^0*[1-9][0-9]{0,76}$"));
    let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
    let nothing = ObjectBuilder::new().schema_type(Type::Null);
    let either = OneOfBuilder::new().item(text).item(number).item(nothing);
    either
        .description(Some(
            "Base units of the asset. Better a string, since many programs read a JSON number into 53 bits. This or `amount_decimal`.",
        ))
        .into()
}

fn underpaid_tolerance() -> Schema {
    tolerance(
        "Base units that may be missing while the payment still counts as paid in full, though some transfer is needed; your \
         merchant's share of the amount if left out.",
    )
}

fn overpaid_tolerance() -> Schema {
    tolerance("Base units above the amount that do not count as overpaid; your merchant's share of the amount if left out.")
}

fn tolerance(description: &str) -> Schema {
    let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[0-9]{1,77}$"));
    let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
    let nothing = ObjectBuilder::new().schema_type(Type::Null);
    OneOfBuilder::new().item(text).item(number).item(nothing).description(Some(description)).into()
}
