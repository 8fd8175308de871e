//! A key of a test, which signs what no node would sign for it.

use alloy::consensus::{SignableTransaction as _, TxEip1559, TxEip7702};
use alloy::eips::eip2718::Encodable2718 as _;
use alloy::eips::eip7702::{Authorization, SignedAuthorization};
use alloy::hex;
use alloy::primitives::{Address, B256, Bytes, Signature, U256};
use anyhow::Result;
use k256::ecdsa::SigningKey;

/// The public key of anvil's first account, [`PAYER`](crate::PAYER).
const PAYER_KEY: [u8; 32] = hex!("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80");
/// More than any test's block asks for.
const MAX_FEE: u128 = 100_000_000_000;

/// A private key.
pub struct Signer {
    key: SigningKey,
    /// Its address.
    pub address: Address,
}

/// A call of a contract that [`Signer::transaction`] signs.
pub struct Call {
    pub chain_id: u64,
    pub nonce: u64,
    pub gas: u64,
    pub to: Address,
    pub input: Bytes,
    /// With any it is of type 4, else of type 2.
    pub authorizations: Vec<SignedAuthorization>,
}

impl Signer {
    /// A new key.
    ///
    /// # Errors
    /// Never in practice: one number in 2¹²⁸ is no key.
    pub fn random() -> Result<Self> {
        Self::new(&rand::random())
    }

    /// The key of [`PAYER`](crate::PAYER).
    ///
    /// # Errors
    /// Never: it is one.
    pub fn payer() -> Result<Self> {
        Self::new(&PAYER_KEY)
    }

    fn new(bytes: &[u8; 32]) -> Result<Self> {
        let key = SigningKey::from_slice(bytes)?;
        let address = Address::from_public_key(key.verifying_key());
        Ok(Self { key, address })
    }

    /// Signs a digest.
    ///
    /// # Errors
    /// Never in practice: no digest that anybody found is refused.
    pub fn sign(&self, digest: B256) -> Result<Signature> {
        Ok(self.key.sign_prehash_recoverable(digest.as_slice())?.into())
    }

    /// Delegates the account to a contract (EIP-7702), if its nonce is this one by then.
    ///
    /// # Errors
    /// As [`sign`](Self::sign).
    pub fn delegate(&self, chain_id: u64, to: Address, nonce: u64) -> Result<SignedAuthorization> {
        let authorization = Authorization { chain_id: U256::from(chain_id), address: to, nonce };
        let signature = self.sign(authorization.signature_hash())?;
        Ok(authorization.into_signed(signature))
    }

    /// The bytes of a transaction, for `eth_sendRawTransaction`.
    ///
    /// # Errors
    /// As [`sign`](Self::sign).
    pub fn transaction(&self, call: Call) -> Result<Bytes> {
        let Call { chain_id, nonce, gas: gas_limit, to, input, authorizations } = call;
        let (max_fee_per_gas, max_priority_fee_per_gas) = (MAX_FEE, 1);
        let (value, access_list) = (U256::ZERO, Default::default());
        if authorizations.is_empty() {
            let to = to.into();
            let transaction = TxEip1559 {
                chain_id,
                nonce,
                gas_limit,
                max_fee_per_gas,
                max_priority_fee_per_gas,
                to,
                value,
                access_list,
                input,
            };
            let signature = self.sign(transaction.signature_hash())?;
            return Ok(transaction.into_signed(signature).encoded_2718().into());
        }
        let transaction = TxEip7702 {
            chain_id,
            nonce,
            gas_limit,
            max_fee_per_gas,
            max_priority_fee_per_gas,
            to,
            value,
            access_list,
            authorization_list: authorizations,
            input,
        };
        let signature = self.sign(transaction.signature_hash())?;
        Ok(transaction.into_signed(signature).encoded_2718().into())
    }
}
