//! What the engine signs with.

use alloy::consensus::{SignableTransaction as _, TypedTransaction};
use alloy::eips::eip7702::Authorization;
use alloy::primitives::{Address, B256, Signature, keccak256};
use futures::future::BoxFuture;
use std::error::Error;
use std::fmt;

/// Why there is no signature. A key elsewhere may be asked again; nothing was signed as far as the caller knows.
#[derive(Debug, thiserror::Error)]
#[error("{address} did not sign")]
pub struct SignError {
    pub address: Address,
    /// Shows no key.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// A key that signs, wherever it is kept. A service that signs no bare hashes overrides the others.
pub trait Signer: Send + Sync + fmt::Debug {
    /// The address of the key.
    fn address(&self) -> Address;

    /// Signs 32 bytes as they are.
    fn sign_hash(&self, hash: B256) -> BoxFuture<'_, Result<Signature, SignError>>;

    /// Signs a transaction of any type.
    fn sign_transaction<'s>(&'s self, transaction: &'s TypedTransaction) -> BoxFuture<'s, Result<Signature, SignError>> {
        self.sign_hash(transaction.signature_hash())
    }

    /// Signs the delegation of this address to a contract (EIP-7702).
    fn sign_authorization<'s>(&'s self, authorization: &'s Authorization) -> BoxFuture<'s, Result<Signature, SignError>> {
        self.sign_hash(authorization.signature_hash())
    }

    /// Signs a message of a domain (EIP-712), given as `DOMAIN_SEPARATOR()` and `hashStruct(message)`.
    fn sign_message(&self, domain_separator: B256, message: B256) -> BoxFuture<'_, Result<Signature, SignError>> {
        let mut digest = [0; 66];
        digest[..2].copy_from_slice(b"\x19\x01");
        digest[2..34].copy_from_slice(domain_separator.as_slice());
        digest[34..].copy_from_slice(message.as_slice());
        self.sign_hash(keccak256(digest))
    }
}
