//! Checking what `chains.yaml` says of sweeps: where the money goes, when, and at which price.

use super::chain::{COIN_DECIMALS, SweepAt};
use super::scalar::{Scalar, TreasuryAddress};
use super::tiers::{self, Decimal, base_units};
use super::tokens::Tokens;
use topics::{Address, Amount};

/// Decimals of a gwei, in which `max_fee` is given.
const GWEI_DECIMALS: u8 = 9;
/// In wei: a million gwei. Whoever gives more has given wei.
const MOST_MAX_FEE: u128 = 1_000_000_000_000_000;

/// What the file says of it.
#[derive(Debug)]
pub(super) struct SweepingEntry {
    pub treasury: Option<Address>,
    pub at: SweepAt,
    pub max_fee: Option<u128>,
    pub minimum: Option<Amount>,
    pub l1_fee: Option<Amount>,
}

/// Checks the keys of a chain.
///
/// # Errors
/// If `max_fee` is 0, has more decimals than wei or is more than a million gwei, `sweep_minimum` or `l1_fee` has more than the coin, or a
/// token's contract is the treasury.
pub(super) fn check(
    treasury: Option<Scalar<TreasuryAddress>>,
    at: Option<SweepAt>,
    max_fee: Option<Scalar<Decimal>>,
    minimum: Option<Scalar<Decimal>>,
    l1_fee: Option<Scalar<Decimal>>,
    tokens: &Tokens,
) -> Result<SweepingEntry, String> {
    let minimum = tiers::amount("sweep_minimum", minimum, COIN_DECIMALS)?;
    let l1_fee = tiers::amount("l1_fee", l1_fee, COIN_DECIMALS)?;
    let treasury = treasury.map(|Scalar(TreasuryAddress(address))| address);
    if let Some(token) = tokens.0.iter().find(|token| Some(token.address) == treasury) {
        let symbol = &token.symbol;
        return Err(format!("treasury: it is the contract of {symbol}, which gives nothing back; expected a wallet of yours"));
    }
    let wei = |Scalar(Decimal(text)): Scalar<Decimal>| {
        let wei = base_units(&text, GWEI_DECIMALS).and_then(|wei| u128::try_from(wei.units()).ok()).filter(|wei| *wei > 0);
        match wei {
            Some(wei) if wei > MOST_MAX_FEE => Err(format!("max_fee is in gwei: expected 1000000 at most, got {text}")),
            Some(wei) => Ok(wei),
            None => {
                Err(format!("max_fee: expected gwei above 0 with at most {GWEI_DECIMALS} digits after the point, got {text}"))
            }
        }
    };
    Ok(SweepingEntry { treasury, at: at.unwrap_or_default(), max_fee: max_fee.map(wei).transpose()?, minimum, l1_fee })
}
