//! Signatures: Standard Webhooks 1.0.0, symmetric (HMAC-SHA256, `v1`). Receivers verify them with any of its libraries.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use rand::TryRngCore as _;
use sha2::Sha256;
use std::fmt;

const SECRET_PREFIX: &str = "whsec_";
/// The specification allows 24 to 64.
const SECRET_BYTES: usize = 32;

/// A signing secret. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// Text that is not a secret. The error does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {SECRET_PREFIX} and the base64 of 24 to 64 bytes")]
pub struct InvalidSecret;

impl Secret {
    /// A new secret from the system's random number generator.
    ///
    /// # Errors
    /// When the generator fails.
    pub fn generate() -> Result<Self, rand::rand_core::OsError> {
        let mut bytes = vec![0; SECRET_BYTES];
        rand::rngs::OsRng.try_fill_bytes(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The reverse of [`Self::reveal`].
    ///
    /// # Errors
    /// When the text is not a secret.
    pub fn parse(text: &str) -> Result<Self, InvalidSecret> {
        let encoded = text.strip_prefix(SECRET_PREFIX).ok_or(InvalidSecret)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| InvalidSecret)?;
        if (24..=64).contains(&bytes.len()) { Ok(Self(bytes)) } else { Err(InvalidSecret) }
    }

    /// As `whsec_…`: the form that the merchant sees once, that libraries take, and that the database stores.
    pub fn reveal(&self) -> String {
        format!("{SECRET_PREFIX}{}", STANDARD.encode(&self.0))
    }

    fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
        // HMAC takes a key of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        for part in [id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body] {
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

/// The header `webhook-signature`: one signature per valid secret, so that a receiver that knows any of them can verify the
/// message. `timestamp` is the attempt's, in Unix seconds.
pub fn signature_header(secrets: &[Secret], id: &str, timestamp: i64, body: &[u8]) -> String {
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
        let signed = signature_header(&[secret], ID, 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn the_documented_vector_has_its_documented_signature() {
        let page = include_str!("../../docs/webhooks.md");
        let cell = |name: &str| {
            let row = page.lines().find_map(|line| line.strip_prefix(&format!("| {name} | `"))).unwrap();
            row.strip_suffix("` |").unwrap()
        };
        let secret = Secret::parse(cell("secret")).unwrap();
        let signed = signature_header(
            &[secret],
            cell("`webhook-id`"),
            cell("`webhook-timestamp`").parse().unwrap(),
            cell("body").as_bytes(),
        );
        assert_eq!(signed, cell("`webhook-signature`"));
    }

    #[test]
    fn while_a_secret_rotates_both_sign() {
        let (new, old) = (Secret::generate().unwrap(), Secret::parse(SECRET).unwrap());
        let both = signature_header(&[new.clone(), old.clone()], ID, 7, b"{}");
        assert_eq!(both, format!("{} {}", signature_header(&[new], ID, 7, b"{}"), signature_header(&[old], ID, 7, b"{}")));
    }

    #[test]
    fn a_secret_comes_back_as_it_was_shown_and_is_not_printed() {
        let secret = Secret::generate().unwrap();
        assert_eq!(Secret::parse(&secret.reveal()), Ok(secret.clone()));
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        for bad in ["", "whsec_", "whsec_AAAA", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!"] {
            assert_eq!(Secret::parse(bad), Err(InvalidSecret), "{bad}");
        }
    }
}
