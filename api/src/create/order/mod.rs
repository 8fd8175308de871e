//! The order of a create request: its JSON fields, read and checked. No IO, no clock.
//!
//! A new field of a create request begins here: in [`FIELDS`], in [`Order`] and, unless it is only another default, in its
//! fingerprint; [`fields`] reads and checks it, and `openapi::schemas` documents it.

mod fields;
#[cfg(test)]
mod tests;

pub use fields::{external_id, metadata};

use crate::chains::catalog::Catalog;
use crate::create::idempotency;
use crate::http::fields::Fields;
use crate::http::problem::Problem;
use merchants::{self, DefaultTerms};
use payments::{Asset, Policy, Terms};
use sha2::{Digest as _, Sha256};
use std::ops::RangeInclusive;
use topics::{Amount, ChainId};

/// The fields of a create request. A test holds them against the OpenAPI schema.
pub const FIELDS: [&str; 14] = [
    "amount",
    "amount_decimal",
    "chain",
    "chain_id",
    "token",
    "token_id",
    "token_contract_address",
    "expires_in",
    "external_id",
    "metadata",
    "confirmations",
    "underpaid_tolerance",
    "overpaid_tolerance",
    "accept_late",
];
/// Only an order in a batch has this field; a single create request has the header.
const IDEMPOTENCY_KEY: &str = "idempotency_key";

/// Seconds.
const DEFAULT_EXPIRES_IN: u64 = 3600;
/// Seconds: a minute, since paying takes that long, to 30 days.
const EXPIRES_IN: RangeInclusive<u64> = 60..=30 * 24 * 3600;
const CONFIRMATIONS: RangeInclusive<u64> = 1..=10_000;

/// A payment to be created, still without its id, address and times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub chain: ChainId,
    pub chain_name: String,
    pub asset: Asset,
    pub amount: Amount,
    /// The request's tolerances, with the merchant's defaults for those left out.
    pub terms: Terms,
    /// The requested confirmations, or the chain's policy for this amount.
    pub policy: Policy,
    /// Seconds.
    pub expires_in: u64,
    /// The merchant's own reference.
    pub external_id: Option<String>,
    /// The merchant's JSON object, as it was written.
    pub metadata: Option<String>,
    /// Equal for requests that mean the same order, however they are written.
    pub fingerprint: [u8; 32],
}

impl Order {
    /// Reads the body of a create request.
    ///
    /// # Errors
    /// A problem that names every wrong field and what was expected there.
    pub fn read(body: &[u8], catalog: &Catalog, terms: DefaultTerms) -> Result<Self, Problem> {
        Self::read_fields(Fields::read(body)?, catalog, terms, &FIELDS)
    }

    /// Reads an order of a batch, which may have an `idempotency_key` of its own.
    ///
    /// # Errors
    /// As [`read`](Self::read). The key of one that is refused is there all the same, if it can be read.
    pub fn read_item(body: &[u8], catalog: &Catalog, terms: DefaultTerms) -> (Result<Self, Problem>, Option<String>) {
        let mut fields = match Fields::read(body) {
            Ok(fields) => fields,
            Err(problem) => return (Err(problem), None),
        };
        let key = fields.text(IDEMPOTENCY_KEY).and_then(|key| {
            let checked = idempotency::check_text(&key).map(|()| key);
            fields.check(IDEMPOTENCY_KEY, checked)
        });
        (Self::read_fields(fields, catalog, terms, &[FIELDS.as_slice(), &[IDEMPOTENCY_KEY]].concat()), key)
    }

    fn read_fields(mut fields: Fields<'_>, catalog: &Catalog, terms: DefaultTerms, known: &[&str]) -> Result<Self, Problem> {
        let chain = fields::chain(&mut fields, catalog);
        let asset = fields::asset(&mut fields, chain);
        let amount_field = if fields.has("amount_decimal") { "amount_decimal" } else { "amount" };
        let amount = fields::amount(&mut fields, asset.as_ref());
        let expires_in = fields::bounded(&mut fields, "expires_in", EXPIRES_IN);
        let confirmations = fields::bounded(&mut fields, "confirmations", CONFIRMATIONS);
        let external_id = external_id(&mut fields);
        let metadata = metadata(&mut fields);
        let underpaid = fields::tolerance(&mut fields, "underpaid_tolerance");
        let overpaid = fields::tolerance(&mut fields, "overpaid_tolerance");
        let accept_late = fields.flag("accept_late");
        if let (Some(amount), Some(chain), Some(asset)) = (amount, chain, &asset) {
            fields::payable(&mut fields, amount_field, chain, asset, amount);
        }
        let finished = fields.finish(known);
        let (Some(amount), Some(chain), Some(asset)) = (amount, chain, asset) else {
            return Err(finished.err().unwrap_or_else(Problem::internal));
        };
        finished?;

        let expires_in = expires_in.unwrap_or(DEFAULT_EXPIRES_IN);
        // A count overrides the chain's policy whatever that is: a merchant that sets one knows the amount at stake.
        let count = confirmations.and_then(|count| u32::try_from(count).ok());
        let token = asset.token.as_ref().map(|token| token.address);
        let meaning = (
            chain.id.0,
            token,
            amount.to_string(),
            expires_in,
            &external_id,
            &metadata,
            count,
            // As requested, without defaults: a merchant may change its own terms between two tries of a request.
            (underpaid.map(|sum| sum.to_string()), overpaid.map(|sum| sum.to_string()), accept_late),
        );
        let meaning = serde_json::to_vec(&meaning).map_err(|_| Problem::internal())?;
        Ok(Self {
            chain: chain.id,
            chain_name: chain.name.clone(),
            asset,
            amount,
            terms: Terms {
                underpaid_tolerance: underpaid
                    .unwrap_or_else(|| terms.underpaid_of(amount))
                    .min(merchants::max_underpaid_tolerance(amount)),
                overpaid_tolerance: overpaid.unwrap_or_else(|| terms.overpaid.of(amount)),
                accept_late: accept_late.unwrap_or(terms.accept_late),
            },
            policy: count.map_or_else(|| chain.policy_for(token, amount).into(), Policy::Confirmations),
            expires_in,
            external_id,
            metadata,
            fingerprint: Sha256::digest(meaning).into(),
        })
    }
}
