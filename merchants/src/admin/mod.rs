//! The SQL of `ctrip merchants` and `ctrip keys`: an operator's commands, straight on the database and not through the API.

mod database;
mod keys;
mod merchants;

pub use keys::{NewKey, create_key, list_keys, revoke_key, rotate_key};
pub use merchants::{MerchantChanges, create_merchant, history, list_merchants, update_merchant};
