//! What an outgoing transaction does, and the bytes that are signed for it. Pure.

use super::fees::Fees;
use alloy::consensus::{
    SignableTransaction as _, Transaction as _, TxEip1559, TxEip7702, TxEnvelope, TxLegacy, TypedTransaction,
};
use alloy::eips::eip2718::{Decodable2718 as _, Encodable2718 as _};
use alloy::eips::eip2930::AccessList;
use alloy::eips::eip7702::SignedAuthorization;
use alloy::primitives::{Address, B256, Bytes, Signature, TxKind, U256};
use topics::ChainId;

/// A transaction that sends nothing to the sender itself needs less than half of this; chains that meter other things ask for more.
const CANCEL_GAS: u64 = 50_000;

/// What one does, whatever its nonce and its fees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// `None` creates a contract.
    pub to: Option<Address>,
    pub value: U256,
    pub data: Bytes,
    pub gas_limit: u64,
    /// With any, it is one of EIP-7702.
    pub authorizations: Vec<SignedAuthorization>,
}

/// A signed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedBytes {
    pub hash: B256,
    /// As `eth_sendRawTransaction` takes it.
    pub raw: Bytes,
}

impl Content {
    /// Sends nothing to its sender.
    pub fn nothing(sender: Address) -> Self {
        let (value, data, authorizations) = (U256::ZERO, Bytes::new(), Vec::new());
        Self { to: Some(sender), value, data, gas_limit: CANCEL_GAS, authorizations }
    }

    /// Whether a transaction can do it: EIP-7702 has no creations.
    pub fn is_possible(&self) -> bool {
        self.to.is_some() || self.authorizations.is_empty()
    }

    /// The transaction to sign. Where the tip is all of the price it is a legacy one, which chains without a base fee take, and
    /// which costs the same on others. `None` if it is not possible.
    pub fn unsigned(&self, chain: ChainId, nonce: u64, fees: Fees) -> Option<TypedTransaction> {
        let to = self.to.map_or(TxKind::Create, TxKind::Call);
        let (chain_id, gas_limit, value, input) = (chain.0, self.gas_limit, self.value, self.data.clone());
        let (max_fee_per_gas, max_priority_fee_per_gas) = (fees.cap, fees.tip);
        let access_list = AccessList::default();
        if !self.authorizations.is_empty() {
            return Some(TypedTransaction::Eip7702(TxEip7702 {
                chain_id,
                nonce,
                gas_limit,
                max_fee_per_gas,
                max_priority_fee_per_gas,
                to: self.to?,
                value,
                access_list,
                authorization_list: self.authorizations.clone(),
                input,
            }));
        }
        Some(if fees.tip == fees.cap {
            let (chain_id, gas_price) = (Some(chain_id), fees.cap);
            TypedTransaction::Legacy(TxLegacy { chain_id, nonce, gas_price, gas_limit, to, value, input })
        } else {
            TypedTransaction::Eip1559(TxEip1559 {
                chain_id,
                nonce,
                gas_limit,
                max_fee_per_gas,
                max_priority_fee_per_gas,
                to,
                value,
                access_list,
                input,
            })
        })
    }
}

impl SignedBytes {
    /// Puts a transaction and its signature together. `None` if the signature is not the sender's: with another key it would be
    /// another account's transaction.
    pub fn new(transaction: TypedTransaction, signature: Signature, sender: Address) -> Option<Self> {
        let by = signature.recover_address_from_prehash(&transaction.signature_hash()).ok()?;
        let envelope: TxEnvelope = transaction.into_signed(signature).into();
        (by == sender).then(|| Self { hash: *envelope.tx_hash(), raw: envelope.encoded_2718().into() })
    }
}

/// What signed bytes say by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadBack {
    pub chain: ChainId,
    /// Who signed them.
    pub sender: Address,
    pub nonce: u64,
    pub hash: B256,
    pub fees: Fees,
    pub content: Content,
}

impl ReadBack {
    /// Reads a signed transaction of a type that we sign. `None` if it is none, or names no chain.
    pub fn of(raw: &[u8]) -> Option<Self> {
        let envelope = TxEnvelope::decode_2718_exact(raw).ok()?;
        let sender = envelope.signature().recover_address_from_prehash(&envelope.signature_hash()).ok()?;
        let content = Content {
            to: envelope.to(),
            value: envelope.value(),
            data: envelope.input().clone(),
            gas_limit: envelope.gas_limit(),
            authorizations: envelope.authorization_list().unwrap_or_default().to_vec(),
        };
        let cap = envelope.max_fee_per_gas();
        let fees = Fees { tip: envelope.max_priority_fee_per_gas().unwrap_or(cap), cap };
        let read = Self {
            chain: ChainId(envelope.chain_id()?),
            sender,
            nonce: envelope.nonce(),
            hash: *envelope.tx_hash(),
            fees,
            content,
        };
        // What it does not say again, such as an access list, we never sign.
        let signed = read.content.unsigned(read.chain, read.nonce, read.fees)?;
        (signed.signature_hash() == envelope.signature_hash()).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{LocalKey, Signer as _};
    use alloy::eips::eip7702::Authorization;
    use alloy::primitives::keccak256;

    async fn signed(content: &Content, fees: Fees) -> TxEnvelope {
        let key = LocalKey::new(&keccak256(b"cow").0).unwrap();
        let transaction = content.unsigned(ChainId(5), 7, fees).unwrap();
        let signature = key.sign_transaction(&transaction).await.unwrap();
        assert_eq!(SignedBytes::new(transaction.clone(), signature, Address::ZERO), None, "signed by another");
        let SignedBytes { hash, raw } = SignedBytes::new(transaction, signature, key.address()).unwrap();
        assert_eq!(keccak256(&raw), hash);
        let envelope = TxEnvelope::decode_2718_exact(&raw).unwrap();
        let (chain, sender) = (ChainId(5), key.address());
        assert_eq!(ReadBack::of(&raw), Some(ReadBack { chain, sender, nonce: 7, hash, fees, content: content.clone() }));
        assert_eq!(ReadBack::of(&raw[1..]), None);
        assert_eq!((envelope.chain_id(), envelope.nonce(), envelope.gas_limit()), (Some(5), 7, content.gas_limit));
        assert_eq!((envelope.to(), envelope.value(), envelope.input()), (content.to, content.value, &content.data));
        assert_eq!(envelope.max_fee_per_gas(), fees.cap);
        envelope
    }

    #[tokio::test]
    async fn each_type_says_what_was_asked_for() {
        let (to, data) = (Some(Address::repeat_byte(9)), Bytes::from_static(b"data"));
        let mut content = Content { to, value: U256::from(3), data, gas_limit: 60_000, authorizations: Vec::new() };
        let dynamic = signed(&content, Fees { tip: 2, cap: 9 }).await;
        assert!(dynamic.is_eip1559() && dynamic.max_priority_fee_per_gas() == Some(2));
        assert!(signed(&content, Fees { tip: 9, cap: 9 }).await.is_legacy(), "a chain without a base fee");
        let delegation = Authorization { chain_id: U256::from(5), address: Address::repeat_byte(1), nonce: 0 };
        let signature = LocalKey::new(&[1; 32]).unwrap().sign_authorization(&delegation).await.unwrap();
        content.authorizations = vec![delegation.into_signed(signature)];
        assert!(signed(&content, Fees { tip: 9, cap: 9 }).await.is_eip7702());
        content.to = None;
        assert_eq!(content.unsigned(ChainId(5), 7, Fees { tip: 2, cap: 9 }), None, "it would create a contract");
        assert!(!content.is_possible());
        content.authorizations.clear();
        assert!(signed(&content, Fees { tip: 2, cap: 9 }).await.kind().is_create() && content.is_possible());
    }
}
