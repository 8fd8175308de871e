//! What the keys sign, whatever a row of `outgoing` asks for: whoever has the login of the role can write one.
//!
//! What pays nobody and fills or frees a nonce is none of this: the engine signs that for itself.

use crate::engine::content::Content;
use crate::engine::outgoing::Kind;
use crate::engine::work::Rule;
use alloy::primitives::Address;
use chain::Listing;
use topics::ChainId;

/// What is signed on a chain, as it is listed at the moment.
pub struct Allowed {
    pub listing: Listing,
    pub chain: ChainId,
}

impl std::fmt::Debug for Allowed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Allowed({})", self.chain)
    }
}

impl Rule for Allowed {
    fn check(&self, kind: Kind, content: &Content) -> Result<(), &'static str> {
        check(self.listing.chains().by_id(self.chain).and_then(|chain| chain.sweeping.treasury), kind, content)
    }
}

/// Whether this may be signed on a chain with this treasury.
///
/// # Errors
/// With why not.
fn check(treasury: Option<Address>, kind: Kind, content: &Content) -> Result<(), &'static str> {
    let Content { to, value: _, data, gas_limit: _, authorizations } = content;
    match kind {
        Kind::Sweep => {}
        // Nobody plans these yet, and a filler says of itself that it does nothing.
        Kind::Funding | Kind::Refund | Kind::Payout | Kind::Deploy | Kind::Gap => {
            return Err("nothing of its kind is sent but sweeps");
        }
    }
    if treasury.is_none() {
        return Err("chains.yaml names no treasury for its chain");
    }
    if *to != treasury {
        return Err("it does not go to the treasury that chains.yaml names");
    }
    if !data.is_empty() {
        return Err("it has data, and a sweep of coin has none");
    }
    if !authorizations.is_empty() {
        return Err("it delegates addresses, and a sweep of coin delegates none");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::eips::eip7702::Authorization;
    use alloy::primitives::{Bytes, Signature, U256};

    /// A thief of the login may write any row.
    #[test]
    fn only_a_plain_transfer_to_the_treasury_of_now_is_signed() {
        let (treasury, thief) = (Address::repeat_byte(1), Address::repeat_byte(2));
        let to = |to: Address| Content {
            to: Some(to),
            value: U256::from(7),
            data: Bytes::new(),
            gas_limit: 21_000,
            authorizations: Vec::new(),
        };
        let delegation = Authorization { chain_id: U256::from(5), address: thief, nonce: 0 }.into_signed(Signature::new(
            U256::from(1),
            U256::from(1),
            false,
        ));
        let sweep = to(treasury);
        for (name, treasury, kind, content, is_signed) in [
            ("a sweep", Some(treasury), Kind::Sweep, sweep.clone(), true),
            ("more gas", Some(treasury), Kind::Sweep, Content { gas_limit: 1_000_000, ..sweep.clone() }, true),
            ("to a thief", Some(treasury), Kind::Sweep, to(thief), false),
            ("to the treasury of before", Some(thief), Kind::Sweep, sweep.clone(), false),
            ("no treasury", None, Kind::Sweep, sweep.clone(), false),
            ("a creation", Some(treasury), Kind::Sweep, Content { to: None, ..sweep.clone() }, false),
            ("a creation without a treasury", None, Kind::Sweep, Content { to: None, ..sweep.clone() }, false),
            ("a call", Some(treasury), Kind::Sweep, Content { data: vec![1].into(), ..sweep.clone() }, false),
            ("a delegation", Some(treasury), Kind::Sweep, Content { authorizations: vec![delegation], ..sweep.clone() }, false),
        ] {
            assert_eq!(check(treasury, kind, &content).is_ok(), is_signed, "{name}");
        }
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Sweep) {
            assert!(check(Some(treasury), kind, &sweep).is_err(), "{kind:?}");
            assert!(check(Some(treasury), kind, &to(thief)).is_err(), "{kind:?}");
        }
    }
}
