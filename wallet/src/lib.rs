//! Deposit addresses from an account xpub (BIP-32, BIP-44), and the mnemonic behind it.
//!
//! Pure: no clock, no IO, no storage. Whoever issues addresses holds an [`AccountXpub`], which has no private key and can
//! make none; a [`Mnemonic`] is for `ctrip wallet` and for the sweeper, in other processes. The xpub together with the
//! private key of one address gives the account's private key away, so the two must not meet.

mod mnemonic;
mod xpub;

pub use mnemonic::{Mnemonic, MnemonicError};
pub use xpub::{AccountXpub, XpubError};
