//! Records of `payment.intents`: the addresses that the detector watches, one per payment or static address.
//!
//! An address is given out only after Kafka has acknowledged its intent (`store` keeps the unacknowledged ones).

use crate::deposit::DepositAddress;
use crate::payment::Payment;
use topics::wire;

/// The intent of a payment.
pub fn intent_record(payment: &Payment) -> wire::PaymentIntent {
    let token = payment.asset.token.as_ref();
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
    }
}

/// The intent of a static address, which is watched like a payment's. It names no chain, token or amount.
pub fn address_intent_record(address: &DepositAddress) -> wire::PaymentIntent {
    wire::PaymentIntent {
        address: address.address.to_vec().into(),
        payment_id: address.id.to_string(),
        merchant_id: address.merchant.to_string(),
        created_at: address.created_at,
        address_index: address.address_index,
        external_id: address.external_id.clone().unwrap_or_default(),
        ..wire::PaymentIntent::default()
    }
}
