//! What is kept of an API key: its hash, its public id and its scope. Its text is made in `admin/keys.rs`.
//!
//! A key is 32 random bytes, so its SHA-256 can't be inverted by guessing, and only that hash is stored. An index lookup takes a time
//! that depends on how much of a hash agrees with a stored one. An attacker can choose inputs whose hashes begin as he likes, so such
//! a lookup could leak a stored hash bit by bit. It would not leak the key, which he would still have to find among 2^256. We do not
//! rely on that alone: the index has only the first 8 bytes of a hash, which are the key's public id, and the whole hash is compared
//! in constant time.

use runtime::Failure;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// SHA-256 of a key's text.
pub type KeyHash = [u8; 32];

pub fn hash_key(key: &str) -> KeyHash {
    Sha256::digest(key.as_bytes()).into()
}

/// A key's public id: the first 8 bytes of its hash. Anyone with the key can compute it; it reveals nothing about the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    pub fn of(hash: &KeyHash) -> Self {
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Read all that is the merchant's.
    Read,
    /// Read, create and change.
    Write,
}

impl Scope {
    /// The name in the database, in commands and in errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        [Self::Read, Self::Write]
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| Failure::Halt(anyhow::anyhow!("api_keys.scope: expected read or write, got {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_beginning_of_the_hash() {
        let hash = hash_key("ctrip_00");
        assert_eq!(KeyId::of(&hash).to_string(), hex::encode(&hash[..8]));
        assert!(Scope::Write > Scope::Read);
    }
}
