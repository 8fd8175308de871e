//! Account xpubs, their fingerprints, by which logs and lists name them, and the deposit addresses derived from them. A private key is
//! refused, and never repeated in an error.

use alloy::primitives::Address;
use bip32::{ChildNumber, ExtendedKey, Prefix, PublicKey as _, XPub};
use k256::elliptic_curve::sec1::ToSec1Point as _;
use k256::{NonZeroScalar, ProjectivePoint, PublicKey};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// Depth of an account below the master key: purpose, coin, account (BIP-44).
const ACCOUNT_DEPTH: u8 = 3;
/// BIP-44's external chain, whose addresses payers see.
pub(crate) const EXTERNAL_CHAIN: u32 = 0;

/// The extended public key of an account, m/44'/60'/0'. The deposit address with index i is at /0/i.
#[derive(Clone)]
pub struct AccountXpub {
    text: String,
    // Derived once, which saves most of the work per address.
    external: XPub,
}

/// Why text is no account xpub, or an index has no address.
#[derive(Debug, thiserror::Error)]
pub enum XpubError {
    /// Not base58, a wrong checksum, or no point on the curve.
    #[error("this is no extended public key; expected an xpub… of 111 characters")]
    Malformed(#[source] bip32::Error),
    /// A private key, where a public one belongs. The text is not repeated.
    #[error("this is an extended PRIVATE key; expected the account's xpub…, and take the private key off this machine")]
    Private,
    /// A test network's or another wallet's prefix.
    #[error("the key starts with {0}; expected xpub")]
    Prefix(String),
    /// The master key, or an address.
    #[error("the key is at depth {0}; expected an account key at depth {ACCOUNT_DEPTH}, m/44'/60'/0'")]
    Depth(u8),
    /// The index is hardened, which a public key can't derive; or BIP-32 has no key for it (fewer than one in 2^127).
    #[error("no address at index {index}; expected 0 to 2147483647")]
    Underivable {
        index: u32,
        #[source]
        source: bip32::Error,
    },
}

impl AccountXpub {
    /// Parses an account's xpub.
    ///
    /// # Errors
    /// If it is a private key, has another depth than an account, or is no key at all.
    pub fn parse(text: &str) -> Result<Self, XpubError> {
        let text = text.trim();
        let key = ExtendedKey::from_str(text).map_err(XpubError::Malformed)?;
        // `XPub::try_from` also accepts private keys and strips them, which would hide that one was pasted here.
        if key.prefix.is_private() {
            return Err(XpubError::Private);
        }
        if key.prefix != Prefix::XPUB {
            return Err(XpubError::Prefix(key.prefix.to_string()));
        }
        if key.attrs.depth != ACCOUNT_DEPTH {
            return Err(XpubError::Depth(key.attrs.depth));
        }
        Self::new(&XPub::try_from(key).map_err(XpubError::Malformed)?)
    }

    pub(crate) fn new(account: &XPub) -> Result<Self, XpubError> {
        let external = child(EXTERNAL_CHAIN, |number| account.derive_child(number))?;
        Ok(Self { text: account.to_string(Prefix::XPUB), external })
    }

    /// The deposit address at /0/`index`.
    ///
    /// # Errors
    /// If `index` is 2^31 or more, which would be a hardened child.
    pub fn address(&self, index: u32) -> Result<Address, XpubError> {
        let key = child(index, |number| self.address_key(number))?;
        let point = key.to_sec1_point(false);
        // The first byte is SEC1's tag of an uncompressed point.
        Ok(Address::from_raw_public_key(&point.as_bytes()[1..]))
    }

    /// The public key at /0/`number`: what `derive_child` gives, in half of the time, since it looks multiples of the curve's
    /// generator up in a table and leaves out what only a key with children needs.
    fn address_key(&self, number: ChildNumber) -> Result<PublicKey, bip32::Error> {
        let parent = self.external.public_key();
        let (tweak, _) = parent.derive_tweak(&self.external.attrs().chain_code, number)?;
        let tweak = Option::<NonZeroScalar>::from(NonZeroScalar::from_repr(tweak.into())).ok_or(bip32::Error::Crypto)?;
        // Nothing here is a secret, so the time that it takes may tell it.
        let offset = ProjectivePoint::mul_by_generator_vartime(&tweak);
        let point = ProjectivePoint::from(*parent.as_affine()) + offset;
        PublicKey::from_affine(point.to_affine()).map_err(|_| bip32::Error::Crypto)
    }

    /// A short, stable name of this xpub: the first 8 bytes of its text's SHA-256, in hex. It reveals nothing about the key.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(self.text.as_bytes());
        digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether both hold the same key and chain code, and so have the same addresses, though their texts may differ: an xpub also
    /// tells its parent and its place there.
    pub fn holds_key_of(&self, other: &Self) -> bool {
        let of = |xpub: &Self| (xpub.external.to_bytes(), xpub.external.attrs().chain_code);
        of(self) == of(other)
    }

    /// The xpub as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// An xpub reveals all payments of its account, so logs get only its fingerprint.
impl fmt::Debug for AccountXpub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccountXpub({})", self.fingerprint())
    }
}

impl FromStr for AccountXpub {
    type Err = XpubError;

    fn from_str(text: &str) -> Result<Self, XpubError> {
        Self::parse(text)
    }
}

/// A child that is not hardened.
pub(crate) fn child<K>(index: u32, derive: impl FnOnce(ChildNumber) -> Result<K, bip32::Error>) -> Result<K, XpubError> {
    ChildNumber::new(index, false).and_then(derive).map_err(|source| XpubError::Underivable { index, source })
}
