use alloy::primitives::Address;
use bip32::{ChildNumber, ExtendedKey, Prefix, XPub};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// Levels below the master key at which an account stands: purpose, coin, account (BIP-44).
const ACCOUNT_DEPTH: u8 = 3;
/// BIP-44's external chain, the one that payers see.
const EXTERNAL: u32 = 0;

/// The public key of an account, m/44'/60'/0', from which every deposit address is derived: number i is at /0/i.
#[derive(Clone)]
pub struct AccountXpub {
    text: String,
    // Derived once: it saves each address half of its work.
    external: XPub,
}

/// Why a text is no account xpub, or an index no address.
#[derive(Debug, thiserror::Error)]
pub enum XpubError {
    /// Not base58, a wrong checksum, or no point on the curve.
    #[error("this is no extended public key; expected an xpub… of 111 characters")]
    Malformed(#[source] bip32::Error),
    /// Somebody pasted a private key where a public one belongs. The text is not repeated.
    #[error("this is an extended PRIVATE key; expected the account's xpub…, and take the private key off this machine")]
    Private,
    /// A test network's or another wallet's prefix.
    #[error("the key starts with {0}; expected xpub")]
    Prefix(String),
    /// The master key, or an address.
    #[error("the key is at depth {0}; expected an account key at depth {ACCOUNT_DEPTH}, m/44'/60'/0'")]
    Depth(u8),
    /// BIP-32 leaves out less than one index in 2^127; and a public key has no hardened children.
    #[error("no address at index {index}; expected 0 to 2147483647")]
    Underivable {
        /// The index asked for.
        index: u32,
        /// What BIP-32 says.
        #[source]
        source: bip32::Error,
    },
}

impl AccountXpub {
    /// Reads an account's xpub.
    ///
    /// # Errors
    /// When it is a private key, of another depth than an account's, or no key at all.
    pub fn parse(text: &str) -> Result<Self, XpubError> {
        let text = text.trim();
        let key = ExtendedKey::from_str(text).map_err(XpubError::Malformed)?;
        // `XPub::try_from` takes private keys too and strips them: by then one has been in this process.
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
        let external = child(account, EXTERNAL)?;
        Ok(Self { text: account.to_string(Prefix::XPUB), external })
    }

    /// The deposit address at /0/`index`.
    ///
    /// # Errors
    /// When `index` is 2^31 or more, which would be a hardened child.
    pub fn address(&self, index: u32) -> Result<Address, XpubError> {
        use bip32::secp256k1::elliptic_curve::sec1::ToSec1Point as _;
        let key = child(&self.external, index)?;
        let point = key.public_key().as_affine().to_sec1_point(false);
        // The first byte is SEC1's tag of an uncompressed point.
        Ok(Address::from_raw_public_key(&point.as_bytes()[1..]))
    }

    /// A short, stable name of this xpub: the first 8 bytes of its text's SHA-256, in hex. It says nothing about the key.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(self.text.as_bytes());
        digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The xpub as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// An xpub shows all payments of its account, so logs get its fingerprint only.
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

fn child(key: &XPub, index: u32) -> Result<XPub, XpubError> {
    ChildNumber::new(index, false)
        .and_then(|number| key.derive_child(number))
        .map_err(|source| XpubError::Underivable { index, source })
}
