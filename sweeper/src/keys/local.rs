//! A private key in this process.

use super::signer::{SignError, Signer};
use alloy::primitives::{Address, B256, Signature};
use futures::future::{BoxFuture, FutureExt as _, ready};
use k256::ecdsa::SigningKey;
use std::fmt;

/// A key in memory, overwritten when it is dropped.
#[derive(Clone)]
pub struct LocalKey {
    key: SigningKey,
    address: Address,
}

/// The bytes are no key: 0, or beyond the order of the curve.
#[derive(Debug, thiserror::Error)]
#[error("these 32 bytes are no private key")]
pub struct LocalKeyError;

impl LocalKey {
    /// A key of its secp256k1 scalar, big-endian.
    ///
    /// # Errors
    /// If it is 0 or beyond the order of the curve.
    pub fn new(scalar: &[u8; 32]) -> Result<Self, LocalKeyError> {
        let key = SigningKey::from_slice(scalar).map_err(|_| LocalKeyError)?;
        let address = Address::from_public_key(key.verifying_key());
        Ok(Self { key, address })
    }
}

impl Signer for LocalKey {
    fn address(&self) -> Address {
        self.address
    }

    fn sign_hash(&self, hash: B256) -> BoxFuture<'_, Result<Signature, SignError>> {
        // Deterministic (RFC 6979), and with the lower s, which chains ask for (EIP-2).
        let signed = self.key.sign_prehash_recoverable(hash.as_slice());
        let failed = |source| SignError { address: self.address, source: Box::new(source) };
        ready(signed.map(Signature::from).map_err(failed)).boxed()
    }
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalKey({})", self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::consensus::{SignableTransaction as _, TxEip1559, TypedTransaction};
    use alloy::eips::eip7702::Authorization;
    use alloy::primitives::{U256, address, b256, keccak256};

    fn cow() -> LocalKey {
        // The key of EIP-712's example is keccak256("cow").
        LocalKey::new(&keccak256(b"cow").0).unwrap()
    }

    #[tokio::test]
    async fn the_example_of_eip_712_has_the_signature_that_it_prints() {
        let domain = b256!("f2cee375fa42b42143804025fc449deafd50cc031ca257e0b194a650a912090f");
        let message = b256!("c52c0ee5d84264471806290a3f2c4cecfc5490626bf912d01f240d7a274b371e");
        let signature = cow().sign_message(domain, message).await.unwrap();
        assert_eq!(cow().address(), address!("cd2a3d9f938e13cd947ec05abc7fe734df8dd826"));
        assert_eq!(
            signature.r().to_be_bytes::<32>(),
            b256!("4355c47d63924e8a72e509b65029052eb6c299d53a04e167c5775fd466751c9d").0
        );
        assert_eq!(
            signature.s().to_be_bytes::<32>(),
            b256!("07299936d304c153f6443dfa05f40ff007d72911b6f72307f996231605b91562").0
        );
        assert!(signature.v(), "v is 28");
    }

    #[tokio::test]
    async fn a_transaction_and_an_authorization_are_signed_by_their_address() {
        let transaction = TypedTransaction::Eip1559(TxEip1559 { chain_id: 1, nonce: 7, ..TxEip1559::default() });
        let signature = cow().sign_transaction(&transaction).await.unwrap();
        assert_eq!(signature.recover_address_from_prehash(&transaction.signature_hash()).unwrap(), cow().address());
        let authorization = Authorization { chain_id: U256::from(1), address: Address::ZERO, nonce: 3 };
        let signature = cow().sign_authorization(&authorization).await.unwrap();
        assert_eq!(authorization.into_signed(signature).recover_authority().unwrap(), cow().address());
    }

    #[test]
    fn neither_debug_nor_an_error_shows_a_key() {
        assert_eq!(format!("{:?}", cow()), format!("LocalKey({})", cow().address()));
        assert!(LocalKey::new(&[0; 32]).is_err_and(|error| !error.to_string().contains("[0")));
        assert!(LocalKey::new(&[255; 32]).is_err());
    }
}
