//! Records of `payment.intents`: the addresses that the detector watches, one per payment or static address.
//!
//! An address is given out only after Kafka has acknowledged its intent (`store` keeps the unacknowledged ones). An intent says
//! all that makes its row, so that a database which lost the row gets it back ([`issued`]).

use crate::deposit::DepositAddress;
use crate::payment::{Asset, Payment, Sums, Terms, Token};
use crate::policy::Policy;
use std::time::Duration;
use topics::{Amount, AmountError, ChainId, MalformedField, PaymentId, wire};
use uuid::Uuid;

/// How long Kafka has for the acknowledgement of an intent. Later its address is not given out, until it is published again.
pub const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Above it are hardened indices, which no xpub derives.
const MAX_ADDRESS_INDEX: u32 = i32::MAX.cast_unsigned();
/// An account's fingerprint has 16; it becomes part of a sequence's name.
const MAX_FINGERPRINT_DIGITS: usize = 32;

/// The request that an address was issued for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The installation that issued it.
    pub installation: Uuid,
    /// The id of the API key that asked; empty if none did.
    pub asked_by: String,
    pub idempotency: Option<IdempotencyClaim>,
}

impl Origin {
    /// The id of the API key that asked, if one did.
    pub fn asked_by(&self) -> Option<&str> {
        (!self.asked_by.is_empty()).then_some(self.asked_by.as_str())
    }
}

/// An idempotency key, and the hash of the request that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyClaim {
    pub key: String,
    pub request_hash: Vec<u8>,
}

/// What an intent was written for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issued {
    /// As it was created, with nothing paid.
    Payment(Box<Payment>),
    Address(DepositAddress),
}

impl Issued {
    /// The id of the payment or static address.
    pub fn id(&self) -> Uuid {
        match self {
            Self::Payment(payment) => payment.id.0,
            Self::Address(address) => address.id,
        }
    }

    /// The merchant that it was issued to.
    pub fn merchant(&self) -> Uuid {
        match self {
            Self::Payment(payment) => payment.merchant,
            Self::Address(address) => address.merchant,
        }
    }

    /// The fingerprint of the account that its address is derived from, and the index there.
    pub fn account(&self) -> (&str, u32) {
        match self {
            Self::Payment(payment) => (&payment.xpub, payment.address_index),
            Self::Address(address) => (&address.xpub, address.address_index),
        }
    }
}

/// Why an intent is not enough to make its row again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IntentError {
    /// It was written before intents named their account.
    #[error("it is from before intents said all about their payments")]
    Incomplete,
    /// An id that is none.
    #[error("field {0}: expected a UUID")]
    Id(&'static str),
    /// An amount of more than 256 bits.
    #[error("{0}")]
    Amount(#[from] AmountError),
    #[error("{0}")]
    Field(#[from] MalformedField),
}

/// The intent of a payment.
pub fn intent_record(payment: &Payment, origin: &Origin) -> wire::PaymentIntent {
    let token = payment.asset.token.as_ref();
    let claim = origin.idempotency.as_ref();
    wire::PaymentIntent {
        address: payment.address.to_vec().into(),
        payment_id: payment.id.to_string(),
        merchant_id: payment.merchant.to_string(),
        chain_id: payment.chain.0,
        chain: payment.chain_name.clone(),
        token_address: token.map(|t| t.address.to_vec()).unwrap_or_default().into(),
        token: token.map(|t| t.symbol.clone()).unwrap_or_default(),
        amount: payment.amount.to_wire().into(),
        created_at: payment.created_at,
        expires_at: payment.expires_at,
        address_index: payment.address_index,
        external_id: payment.external_id.clone().unwrap_or_default(),
        decimals: payment.asset.decimals.into(),
        metadata: payment.metadata.as_deref().unwrap_or_default().to_owned(),
        account: payment.xpub.clone(),
        underpaid_tolerance: payment.terms.underpaid_tolerance.to_wire().into(),
        overpaid_tolerance: payment.terms.overpaid_tolerance.to_wire().into(),
        accept_late: payment.terms.accept_late,
        confirmations_required: payment.policy.confirmations(),
        finality: payment.policy.finality().unwrap_or_default().to_owned(),
        asked_by: origin.asked_by.clone(),
        idempotency_key: claim.map(|claim| claim.key.clone()).unwrap_or_default(),
        request_hash: claim.map(|claim| claim.request_hash.clone()).unwrap_or_default().into(),
        installation: origin.installation.to_string(),
    }
}

/// The intent of a static address, which is watched like a payment's. It names no chain, token or amount.
pub fn address_intent_record(address: &DepositAddress, installation: Uuid) -> wire::PaymentIntent {
    wire::PaymentIntent {
        address: address.address.to_vec().into(),
        payment_id: address.id.to_string(),
        merchant_id: address.merchant.to_string(),
        created_at: address.created_at,
        address_index: address.address_index,
        external_id: address.external_id.clone().unwrap_or_default(),
        metadata: address.metadata.as_deref().unwrap_or_default().to_owned(),
        account: address.xpub.clone(),
        asked_by: address.asked_by.clone().unwrap_or_default(),
        installation: installation.to_string(),
        ..wire::PaymentIntent::default()
    }
}

/// The account of an intent's address and the index there, which are given out whatever else it says.
///
/// # Errors
/// When no xpub can have them, or the intent does not name them.
pub fn account(intent: &wire::PaymentIntent) -> Result<(&str, u32), IntentError> {
    if intent.account.is_empty() {
        return Err(IntentError::Incomplete);
    }
    if intent.account.len() > MAX_FINGERPRINT_DIGITS
        || !intent.account.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Err(MalformedField {
            field: "account",
            expected: "a fingerprint in lower-case hex",
            got: base::text::excerpt(&intent.account),
        }
        .into());
    }
    if intent.address_index > MAX_ADDRESS_INDEX {
        let got = intent.address_index.to_string();
        return Err(MalformedField { field: "address_index", expected: "below 2^31 (BIP-32)", got }.into());
    }
    Ok((&intent.account, intent.address_index))
}

/// The installation that issued an intent's address; nil if it does not say.
pub fn installation(intent: &wire::PaymentIntent) -> Uuid {
    intent.installation.parse().unwrap_or_default()
}

/// The payment or static address of an intent, and the request that it was issued for.
///
/// # Errors
/// When the intent does not say all about it.
pub fn issued(intent: &wire::PaymentIntent) -> Result<(Issued, Origin), IntentError> {
    let (account, address_index) = account(intent)?;
    let id = uuid("payment_id", &intent.payment_id)?;
    let merchant = uuid("merchant_id", &intent.merchant_id)?;
    let address = topics::address("address", &intent.address)?;
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    // No key's id has a NUL, which Postgres can't keep; who asked is no reason to leave the address out.
    let asked_by = intent.asked_by.replace('\0', "");
    let origin = Origin {
        installation: installation(intent),
        asked_by: asked_by.clone(),
        idempotency: text(&intent.idempotency_key)
            .map(|key| IdempotencyClaim { key, request_hash: intent.request_hash.to_vec() }),
    };
    // A payment always has a chain, and a static address none.
    if intent.chain_id == 0 {
        let address = DepositAddress {
            id,
            merchant,
            external_id: text(&intent.external_id),
            metadata: text(&intent.metadata).map(Into::into),
            address,
            xpub: account.to_owned(),
            address_index,
            created_at: intent.created_at,
            asked_by: text(&asked_by),
        };
        return Ok((Issued::Address(address), origin));
    }
    let token = if intent.token_address.is_empty() {
        None
    } else {
        Some(Token { symbol: intent.token.clone(), address: topics::address("token_address", &intent.token_address)? })
    };
    let decimals = u8::try_from(intent.decimals).map_err(|_| MalformedField {
        field: "decimals",
        expected: "at most 255",
        got: intent.decimals.to_string(),
    })?;
    let payment = Payment {
        id: PaymentId(id),
        merchant,
        external_id: text(&intent.external_id),
        metadata: text(&intent.metadata).map(Into::into),
        chain: ChainId(intent.chain_id),
        chain_name: intent.chain.clone(),
        asset: Asset { token, decimals },
        address,
        xpub: account.to_owned(),
        address_index,
        amount: Amount::from_wire(&intent.amount)?,
        terms: Terms {
            underpaid_tolerance: Amount::from_wire(&intent.underpaid_tolerance)?,
            overpaid_tolerance: Amount::from_wire(&intent.overpaid_tolerance)?,
            accept_late: intent.accept_late,
        },
        policy: policy(intent)?,
        created_at: intent.created_at,
        expires_at: intent.expires_at,
        deposit_address: None,
        cancelled: false,
        expired_by: None,
        settlement: None,
        sums: Sums::default(),
        parts: Vec::new(),
        transfers: Vec::new(),
        sequence: 1,
        updated_at: intent.created_at,
    };
    Ok((Issued::Payment(Box::new(payment)), origin))
}

fn policy(intent: &wire::PaymentIntent) -> Result<Policy, MalformedField> {
    match intent.finality.as_str() {
        "" => Ok(Policy::Confirmations(intent.confirmations_required)),
        "safe" => Ok(Policy::Safe),
        "finalized" => Ok(Policy::Finalized),
        other => Err(MalformedField { field: "finality", expected: "safe or finalized", got: other.to_owned() }),
    }
}

fn uuid(field: &'static str, text: &str) -> Result<Uuid, IntentError> {
    text.parse().map_err(|_| IntentError::Id(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_whose_account_or_index_no_xpub_can_have_is_refused() {
        let address = DepositAddress {
            id: Uuid::from_u128(1),
            merchant: Uuid::from_u128(2),
            external_id: None,
            metadata: None,
            address: topics::Address::ZERO,
            xpub: "0a1b".to_owned(),
            address_index: MAX_ADDRESS_INDEX,
            created_at: 0,
            asked_by: Some("0a1b2c3d4e5f6071".to_owned()),
        };
        let right = address_intent_record(&address, Uuid::nil());
        assert_eq!(issued(&right).map(|(issued, _)| issued), Ok(Issued::Address(address)));
        let hardened = wire::PaymentIntent { address_index: MAX_ADDRESS_INDEX + 1, ..right.clone() };
        let long = wire::PaymentIntent { account: "a".repeat(3_000), ..right.clone() };
        let other = wire::PaymentIntent { account: "a'; --".to_owned(), ..right };
        for (wrong, field) in [(hardened, "address_index"), (long, "account"), (other, "account")] {
            assert!(matches!(issued(&wrong), Err(IntentError::Field(error)) if error.field == field));
        }
    }

    /// Anyone who can write to the topic can forge one; Postgres keeps no NUL.
    #[test]
    fn a_nul_in_who_asked_is_left_out() {
        let intent = |chain_id| wire::PaymentIntent {
            address: vec![7; 20].into(),
            payment_id: Uuid::from_u128(1).to_string(),
            merchant_id: Uuid::from_u128(2).to_string(),
            amount: vec![1].into(),
            account: "0a1b".to_owned(),
            asked_by: "0a\0b".to_owned(),
            chain_id,
            ..wire::PaymentIntent::default()
        };
        for chain in [0, 1] {
            let (issued, origin) = issued(&intent(chain)).unwrap();
            assert_eq!(origin.asked_by, "0ab");
            let Issued::Address(address) = issued else { continue };
            assert_eq!(address.asked_by.as_deref(), Some("0ab"));
        }
    }
}
