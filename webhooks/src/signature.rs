//! How a message is signed: Standard Webhooks 1.0.0, symmetric.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use rand::TryRngCore as _;
use sha2::Sha256;
use std::fmt;

const PREFIX: &str = "whsec_";
/// The specification wants 24 to 64.
const BYTES: usize = 32;

/// A signing secret. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// Text that is no secret. It is not repeated here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {PREFIX} and the base64 of 24 to 64 bytes")]
pub struct NoSecret;

impl Secret {
    /// A new one, of the system's random numbers.
    ///
    /// # Errors
    /// When the system has none.
    pub fn generate() -> Result<Self, rand::rand_core::OsError> {
        let mut bytes = vec![0; BYTES];
        rand::rngs::OsRng.try_fill_bytes(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The reverse of [`Self::reveal`].
    ///
    /// # Errors
    /// When the text is no secret.
    pub fn parse(text: &str) -> Result<Self, NoSecret> {
        let encoded = text.strip_prefix(PREFIX).ok_or(NoSecret)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| NoSecret)?;
        if (24..=64).contains(&bytes.len()) { Ok(Self(bytes)) } else { Err(NoSecret) }
    }

    /// As the merchant is shown it, once, and as libraries take it.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&self.0))
    }

    fn sign(&self, id: &str, timestamp: i64, body: &str) -> Option<String> {
        // HMAC takes a key of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        for part in [id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body.as_bytes()] {
            mac.update(part);
        }
        Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The header `webhook-signature`: one signature for each secret that is live, so that a receiver that knows any of them can
/// verify it. `timestamp` is in Unix seconds, of this attempt.
pub fn header(secrets: &[Secret], id: &str, timestamp: i64, body: &str) -> String {
    let signatures: Vec<String> = secrets.iter().filter_map(|secret| secret.sign(id, timestamp, body)).collect();
    signatures.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// The vector of the Standard Webhooks libraries' own tests.
    #[test]
    fn the_published_vector_has_its_published_signature() {
        let secret = Secret::parse(SECRET).unwrap();
        let signed = header(&[secret], ID, 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn while_a_secret_rotates_both_sign() {
        let (new, old) = (Secret::generate().unwrap(), Secret::parse(SECRET).unwrap());
        let both = header(&[new.clone(), old.clone()], ID, 7, "{}");
        assert_eq!(both, format!("{} {}", header(&[new], ID, 7, "{}"), header(&[old], ID, 7, "{}")));
    }

    #[test]
    fn a_secret_comes_back_as_it_was_shown_and_is_not_printed() {
        let secret = Secret::generate().unwrap();
        assert_eq!(Secret::parse(&secret.reveal()), Ok(secret.clone()));
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        for bad in ["", "whsec_", "whsec_AAAA", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!"] {
            assert_eq!(Secret::parse(bad), Err(NoSecret), "{bad}");
        }
    }
}
