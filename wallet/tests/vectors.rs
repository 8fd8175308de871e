//! The official BIP-32 vectors, and 48 accounts whose addresses an independent program derived.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bip32::{DerivationPath, Prefix, XPrv};
use serde_json::Value;
use std::str::FromStr as _;
use wallet::{AccountXpub, Mnemonic, XpubError};

fn vectors(name: &str) -> Vec<Value> {
    let path = format!("{}/../testdata/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap()
}

fn text<'a>(vector: &'a Value, key: &str) -> &'a str {
    vector[key].as_str().unwrap_or_else(|| panic!("no {key} in {vector}"))
}

#[test]
fn bip32_official_vectors_hold() {
    let vectors = vectors("bip32-official-vectors.json");
    assert_eq!(vectors.len(), 17);
    for vector in &vectors {
        let seed = hex::decode(text(vector, "seed")).unwrap();
        let path = DerivationPath::from_str(text(vector, "path")).unwrap();
        let key = XPrv::derive_from_path(&seed, &path).unwrap();
        assert_eq!(key.to_string(Prefix::XPRV).as_str(), text(vector, "xprv"));
        assert_eq!(key.public_key().to_string(Prefix::XPUB), text(vector, "xpub"));
    }
}

#[test]
fn every_address_of_every_account_is_as_another_program_derived_it() {
    let vectors = vectors("eth-xpub-address-vectors.json");
    assert_eq!(vectors.len(), 48);
    let mut addresses = 0;
    for vector in &vectors {
        let account = AccountXpub::parse(text(vector, "account_xpub")).unwrap();
        assert_eq!(account.as_str(), text(vector, "account_xpub"));
        for (index, address) in vector["addresses"].as_object().unwrap() {
            assert_eq!(account.address(index.parse().unwrap()).unwrap().to_checksum(None), address.as_str().unwrap());
            addresses += 1;
        }
    }
    assert_eq!(addresses, 48 * 17);
}

#[test]
fn every_mnemonic_gives_its_account() {
    for vector in &vectors("eth-xpub-address-vectors.json") {
        let mnemonic = Mnemonic::parse(text(vector, "mnemonic")).unwrap();
        let account = mnemonic.account_xpub(text(vector, "passphrase")).unwrap();
        assert_eq!(account.as_str(), text(vector, "account_xpub"));
    }
}

#[test]
fn an_account_is_read_only_from_an_account_xpub() {
    let bip32 = vectors("bip32-official-vectors.json");
    let at = |path: &str| bip32.iter().find(|v| text(v, "path") == path).unwrap();
    let refused = |text: &str| AccountXpub::parse(text).unwrap_err();

    assert!(matches!(refused(text(at("m/0'/1/2'"), "xprv")), XpubError::Private));
    assert!(matches!(refused(text(at("m"), "xpub")), XpubError::Depth(0)));
    assert!(matches!(refused(text(at("m/0'/1/2'/2"), "xpub")), XpubError::Depth(4)));
    assert!(AccountXpub::parse(text(at("m/0'/1/2'"), "xpub")).is_ok());

    let good = text(at("m/0'/1/2'"), "xpub");
    for bad in ["", "xpub", &good[..110], &good.replace('G', "H"), "0x9c32F71D4DB8Fb9e1A58B0a80dF79935e7256FA6"] {
        assert!(matches!(refused(bad), XpubError::Malformed(_)), "{bad}");
    }
}

#[test]
fn a_private_key_is_not_repeated_in_its_refusal() {
    let vector = &vectors("bip32-official-vectors.json")[3];
    let error = AccountXpub::parse(text(vector, "xprv")).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("xprv"), "{error:?}");
}

#[test]
fn a_hardened_index_is_refused() {
    let account = AccountXpub::parse(text(&vectors("eth-xpub-address-vectors.json")[0], "account_xpub")).unwrap();
    assert!(account.address((1 << 31) - 1).is_ok());
    assert!(matches!(account.address(1 << 31), Err(XpubError::Underivable { index: 0x8000_0000, .. })));
}

#[test]
fn a_fingerprint_tells_accounts_apart_and_stays() {
    let vectors = vectors("eth-xpub-address-vectors.json");
    let fingerprints: std::collections::HashSet<String> =
        vectors.iter().map(|v| AccountXpub::parse(text(v, "account_xpub")).unwrap().fingerprint()).collect();
    assert_eq!(fingerprints.len(), vectors.len());
    assert!(fingerprints.contains("7c2426eef7e92cfc"));
}

#[test]
fn a_generated_mnemonic_is_new_whole_and_silent() {
    let (one, other) = (Mnemonic::generate().unwrap(), Mnemonic::generate().unwrap());
    assert_ne!(one.words(), other.words());
    assert_eq!(one.words().split(' ').count(), 24);
    assert_eq!(
        Mnemonic::parse(&one.words()).unwrap().account_xpub("").unwrap().as_str(),
        one.account_xpub("").unwrap().as_str()
    );
    assert_eq!(format!("{one:?}"), "Mnemonic(…)");
    let wrong = one.words().replacen(' ', " zebra ", 1);
    assert!(!format!("{:?}", Mnemonic::parse(&wrong).unwrap_err()).contains("zebra"));
}

#[test]
fn an_xpub_exported_under_another_parent_holds_the_same_key() {
    let ours =
        "xpub6DCoCpSuQZB2jawqnGMEPS63ePKWkwWPH4TU45Q7LPXWuNd8TMtVxRrgjtEshuqpK3mdhaWHPFsBngh5GFZaM6si3yZdUsT8ddYM3PwnATt";
    // The same key and chain code under the parent 01020304.
    let twin =
        "xpub6BfCU6SeCoGLy92bvSZvNKRX2UMZopiPQ1e5UE6v6wVLWWXtMz1Qc94NcGd1MH21r7cdbLkBCJxVmsk2zq8KHW34pZzeR1KPN71raQyzwsj";
    let (ours, twin) = (AccountXpub::parse(ours).unwrap(), AccountXpub::parse(twin).unwrap());
    assert!(ours.holds_key_of(&twin) && ours.fingerprint() != twin.fingerprint());
    assert_eq!(ours.address(7).unwrap(), twin.address(7).unwrap());
    let other = Mnemonic::generate().unwrap().account_xpub("").unwrap();
    assert!(!ours.holds_key_of(&other));
}
