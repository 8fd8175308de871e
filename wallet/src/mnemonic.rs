//! BIP-39 mnemonics, for `ctrip wallet` and the sweeper: the server never sees one. Errors and `Debug` never show a word.

use crate::account_key::AccountKey;
use crate::xpub::{AccountXpub, XpubError};
use bip32::{DerivationPath, XPrv};
use bip39::WordCount;
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// Ethereum's first account (BIP-44; coin 60 by SLIP-44).
const ACCOUNT_PATH: &str = "m/44'/60'/0'";

/// BIP-39's "25th word", which is unused: whoever gives addresses out and whoever signs for them have to agree.
pub const NO_PASSPHRASE: &str = "";

/// The words of a wallet (BIP-39, English). Only [`words`](Self::words) shows them.
pub struct Mnemonic(bip39::Mnemonic);

/// Why there is no mnemonic, or no account. No variant repeats a word.
#[derive(Debug, thiserror::Error)]
pub enum MnemonicError {
    /// A word that is not in the list, a wrong count, or a wrong checksum.
    #[error("this is no BIP-39 mnemonic; expected 12, 15, 18, 21 or 24 English words with a valid checksum")]
    Malformed,
    /// The system has no randomness.
    #[error("could not generate a mnemonic")]
    Generate(#[source] bip39::Error),
    /// BIP-32 has no key for fewer than one seed in 2^127.
    #[error("this mnemonic has no key at {ACCOUNT_PATH}")]
    Derive(#[source] bip32::Error),
    /// The account has no external chain, which is as unlikely.
    #[error("this mnemonic has no account at {ACCOUNT_PATH}")]
    Account(#[source] XpubError),
}

impl Mnemonic {
    /// 24 new words: 256 bits of the system's randomness.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn generate() -> Result<Self, MnemonicError> {
        bip39::Mnemonic::generate(WordCount::Words24).map(Self).map_err(MnemonicError::Generate)
    }

    /// Parses the words, with any white space between them.
    ///
    /// # Errors
    /// If they are no BIP-39 mnemonic. The error does not say which word is wrong, since errors end up in logs.
    pub fn parse(words: &str) -> Result<Self, MnemonicError> {
        bip39::Mnemonic::parse(words).map(Self).map_err(|_| MnemonicError::Malformed)
    }

    /// The words, separated by single spaces. Write them only to a file that no other user can read, never to a log.
    pub fn words(&self) -> String {
        self.0.to_string()
    }

    /// The xpub at m/44'/60'/0'. The passphrase is BIP-39's "25th word", empty for most wallets.
    ///
    /// # Errors
    /// Practically never; see [`MnemonicError`].
    pub fn account_xpub(&self, passphrase: &str) -> Result<AccountXpub, MnemonicError> {
        AccountXpub::new(&self.account(passphrase)?.public_key()).map_err(MnemonicError::Account)
    }

    /// The private keys at m/44'/60'/0', for whoever signs.
    ///
    /// # Errors
    /// Practically never; see [`MnemonicError`].
    pub fn account_key(&self, passphrase: &str) -> Result<AccountKey, MnemonicError> {
        AccountKey::new(&self.account(passphrase)?).map_err(MnemonicError::Account)
    }

    fn account(&self, passphrase: &str) -> Result<XPrv, MnemonicError> {
        let path = DerivationPath::from_str(ACCOUNT_PATH).map_err(MnemonicError::Derive)?;
        let seed = Zeroizing::new(self.0.to_seed(passphrase));
        XPrv::derive_from_path(&*seed, &path).map_err(MnemonicError::Derive)
    }
}

impl fmt::Debug for Mnemonic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mnemonic(…)")
    }
}
