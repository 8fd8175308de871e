//! The mnemonics behind the deposit addresses, from `CTRIP_MNEMONIC_FILE`: one a line, several where `CTRIP_XPUB` was replaced.

use super::local::{LocalKey, LocalKeyError};
use super::memory;
use super::private_file::{self, PrivateFileError};
use std::path::Path;
use wallet::{AccountKey, AccountXpub, Mnemonic, MnemonicError, NO_PASSPHRASE, XpubError};

/// The accounts whose deposit addresses can be signed for. `Debug` shows fingerprints.
#[derive(Debug)]
pub struct Seeds(Vec<AccountKey>);

/// Why there are no seeds, or no key. No variant repeats a word.
#[derive(Debug, thiserror::Error)]
pub enum SeedsError {
    #[error("this process can't be kept from being dumped, with its keys")]
    Memory(#[source] rustix::io::Errno),
    #[error("CTRIP_MNEMONIC_FILE")]
    File(#[source] PrivateFileError),
    #[error("CTRIP_MNEMONIC_FILE, line {line}")]
    Mnemonic {
        line: usize,
        #[source]
        source: MnemonicError,
    },
    #[error("CTRIP_MNEMONIC_FILE holds no mnemonic; expected one a line")]
    Empty,
    /// Another mnemonic's addresses can't be signed for.
    #[error("the mnemonic is not that of CTRIP_XPUB: {found} in CTRIP_MNEMONIC_FILE; expected {expected}")]
    OtherXpub { found: String, expected: String },
    #[error("no mnemonic for the account {0}; add it as a line of CTRIP_MNEMONIC_FILE")]
    UnknownAccount(String),
    #[error("no key at index {index} of the account {account}")]
    Index {
        account: String,
        index: u32,
        #[source]
        source: XpubError,
    },
    #[error("no key at index {index} of the account {account}")]
    Key {
        account: String,
        index: u32,
        #[source]
        source: LocalKeyError,
    },
}

impl Seeds {
    /// Reads the mnemonics of a file that nobody else can read, after which the process can't be dumped any more. Empty lines
    /// are passed over.
    ///
    /// # Errors
    /// If others can read the file, it is not this user's, or a line is no mnemonic.
    pub fn read(path: &Path) -> Result<Self, SeedsError> {
        memory::close().map_err(SeedsError::Memory)?;
        let text = private_file::read(path).map_err(SeedsError::File)?;
        let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
        let account = |(words, line): (&str, usize)| {
            let key = Mnemonic::parse(words).and_then(|mnemonic| mnemonic.account_key(NO_PASSPHRASE));
            key.map_err(|source| SeedsError::Mnemonic { line, source })
        };
        let accounts: Vec<AccountKey> = lines.map(account).collect::<Result<_, _>>()?;
        if accounts.is_empty() { Err(SeedsError::Empty) } else { Ok(Self(accounts)) }
    }

    /// Refuses seeds of which none is that of the account.
    ///
    /// # Errors
    /// If it is the account of none of the mnemonics.
    pub fn expect(&self, xpub: &AccountXpub) -> Result<(), SeedsError> {
        let found = || self.0.iter().map(|account| account.xpub().fingerprint()).collect::<Vec<_>>().join(", ");
        match self.find(xpub) {
            Some(_) => Ok(()),
            None => Err(SeedsError::OtherXpub { found: found(), expected: xpub.fingerprint() }),
        }
    }

    /// The key of the address that the account has at an index.
    ///
    /// # Errors
    /// If the account is that of no mnemonic here, or has no such address.
    pub fn key(&self, xpub: &AccountXpub, index: u32) -> Result<LocalKey, SeedsError> {
        let account = || xpub.fingerprint();
        let seed = self.find(xpub).ok_or_else(|| SeedsError::UnknownAccount(account()))?;
        let scalar = seed.key(index).map_err(|source| SeedsError::Index { account: account(), index, source })?;
        LocalKey::new(&scalar).map_err(|source| SeedsError::Key { account: account(), index, source })
    }

    fn find(&self, xpub: &AccountXpub) -> Option<&AccountKey> {
        self.0.iter().find(|account| account.xpub().holds_key_of(xpub))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Signer as _;
    use std::fs;
    use std::os::unix::fs::OpenOptionsExt as _;

    const ABOUT: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";
    const ZOO: &str = "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo wrong";

    fn seeds(lines: &str) -> Result<Seeds, SeedsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mnemonic");
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, lines.as_bytes()).unwrap();
        Seeds::read(&path)
    }

    fn xpub(words: &str) -> AccountXpub {
        Mnemonic::parse(words).unwrap().account_xpub(NO_PASSPHRASE).unwrap()
    }

    /// The API gives out the xpub's addresses; a key of another one could not move what arrives there.
    #[test]
    fn the_key_at_an_index_is_that_of_the_address_that_was_given_out() {
        let seeds = seeds(&format!("{ABOUT}\n\n  {ZOO}\n")).unwrap();
        for words in [ABOUT, ZOO] {
            let xpub = xpub(words);
            seeds.expect(&xpub).unwrap();
            for index in [0, 1, 2, 1000, (1 << 31) - 1] {
                assert_eq!(seeds.key(&xpub, index).unwrap().address(), xpub.address(index).unwrap(), "{index}");
            }
            assert!(matches!(seeds.key(&xpub, 1 << 31), Err(SeedsError::Index { .. })));
        }
    }

    #[test]
    fn a_mnemonic_of_another_account_is_refused() {
        let seeds = seeds(ZOO).unwrap();
        let refused = seeds.expect(&xpub(ABOUT)).unwrap_err().to_string();
        assert!(refused.starts_with("the mnemonic is not that of CTRIP_XPUB"), "{refused}");
        assert!(matches!(seeds.key(&xpub(ABOUT), 0), Err(SeedsError::UnknownAccount(_))));
    }

    #[test]
    fn no_error_and_no_debug_shows_a_word() {
        let shown = format!("{:?}", seeds(ABOUT).unwrap());
        assert!(!shown.contains("abandon"), "{shown}");
        let error = seeds(&format!("{ABOUT}\nabandon zoo")).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("line 2") && !shown.contains("abandon") && !shown.contains("zoo"), "{shown}");
        assert!(matches!(seeds("\n \n"), Err(SeedsError::Empty)));
    }
}
