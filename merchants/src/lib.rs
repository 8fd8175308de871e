//! Merchants, their API keys, and the accounts that deposit addresses are derived from.
//!
//! - [`Merchant`] has a merchant's settings: its account and its default terms.
//! - `keys` says what an API key is, [`Grant`] what it allows and its rate limit. [`KeyCache`] looks keys up for each request.
//! - [`accounts`] gives out deposit addresses, each once; `ahead` derives them before they are asked for.
//! - [`commands`] is `ctrip merchants` and `ctrip keys`; `admin` has their SQL.
//!
//! Left out on purpose: HTTP, and private keys. Addresses are derived from an xpub.

pub mod accounts;
mod admin;
mod ahead;
pub mod commands;
mod grant;
mod key_cache;
mod keys;
mod merchant;
mod rate_limit;
mod unknown_keys;

pub use grant::Grant;
pub use key_cache::{KeyCache, KeyRefused};
pub use keys::{KeyId, Scope};
pub use merchant::{
    BasisPoints, DefaultTerms, Merchant, count_restored_accounts, max_underpaid_tolerance, note_restored_accounts,
    restore_merchants,
};
