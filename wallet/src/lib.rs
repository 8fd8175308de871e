//! Deposit addresses from an account xpub (BIP-32, BIP-44), and the mnemonic behind it.
//!
//! Pure: no clock, no IO, no storage. The server that issues addresses holds an [`AccountXpub`], from which no private key can
//! be derived. A [`Mnemonic`] is for `ctrip wallet` and for the sweeper, its [`AccountKey`] for the sweeper alone, in other
//! processes. The xpub together with the private key of one address reveals the account's private key, so never keep the two in one place.

mod account_key;
mod mnemonic;
mod xpub;

pub use account_key::AccountKey;
pub use mnemonic::{Mnemonic, MnemonicError, NO_PASSPHRASE};
pub use xpub::{AccountXpub, XpubError};
