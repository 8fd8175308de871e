//! Static deposit addresses: create requests, and the queries of their lists.

use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

/// The query of a list of deposit addresses.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "`routes::addresses` reads the parameters one by one")]
pub struct ListAddresses {
    /// The page's size; 50 if left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u64>,
    /// The `next_cursor` of the previous page.
    #[param(pattern = "^02[0-9a-fA-F]{48}$")]
    cursor: Option<String>,
    /// Of the customer with this reference.
    #[param(pattern = r"^[^\u0000]*$")]
    external_id: Option<String>,
}

/// The query of a list of deposits.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "`routes::address_deposits` reads the parameters one by one")]
pub struct ListDeposits {
    /// The page's size; 50 if left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u64>,
    /// The `next_cursor` of the previous page.
    #[param(pattern = "^02[0-9a-fA-F]{48}$")]
    cursor: Option<String>,
}

/// The body of a request for a deposit address.
#[derive(ToSchema)]
#[expect(dead_code, reason = "`routes::addresses` reads the body field by field")]
#[schema(example = json!({ "external_id": "customer-7", "metadata": { "shop": "north" } }))]
pub struct CreateAddress {
    /// Your reference of the customer; each has one address.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\u0000]*$")]
    external_id: String,
    /// Any data of yours, at most 16 KiB; it is returned as it was written.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Value>,
}
