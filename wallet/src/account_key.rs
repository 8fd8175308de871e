//! The private keys of an account, for the sweeper alone. `Debug` shows none, and they are overwritten when they are dropped.

use crate::xpub::{AccountXpub, EXTERNAL_CHAIN, XpubError, child};
use bip32::XPrv;
use std::fmt;
use zeroize::Zeroizing;

/// The private key of an account, m/44'/60'/0'. The key of the deposit address with index i is at /0/i.
pub struct AccountKey {
    xpub: AccountXpub,
    external: XPrv,
}

impl AccountKey {
    pub(crate) fn new(account: &XPrv) -> Result<Self, XpubError> {
        let xpub = AccountXpub::new(&account.public_key())?;
        Ok(Self { xpub, external: child(EXTERNAL_CHAIN, |number| account.derive_child(number))? })
    }

    /// What the addresses are derived from.
    pub fn xpub(&self) -> &AccountXpub {
        &self.xpub
    }

    /// The secp256k1 scalar, big-endian, of the address that [`AccountXpub::address`] has at `index`.
    ///
    /// # Errors
    /// If `index` is 2^31 or more, which would be a hardened child.
    pub fn key(&self, index: u32) -> Result<Zeroizing<[u8; 32]>, XpubError> {
        Ok(Zeroizing::new(child(index, |number| self.external.derive_child(number))?.to_bytes()))
    }
}

impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccountKey({})", self.xpub.fingerprint())
    }
}
