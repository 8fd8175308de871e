//! What a transaction offers for its gas, and what it takes to replace one in a node's pool. Pure.
//!
//! `eth_feeHistory` is odd in the field: rewards of zero in every block (a tip of 1 wei is never mined), null in place of a
//! list, one huge tip in an idle block. So tips of zero and of idle blocks are passed over, the median counts, and where too
//! few are left the node's own suggestion does. Chains without a base fee are priced by `eth_gasPrice`.

use alloy::primitives::U128;
use serde::Deserialize;

/// A block that used less of its gas is idle: its tips say nothing about what it takes to be mined.
const IDLE_RATIO: f64 = 0.05;
/// Fewer tips say nothing: one may be a stranger's mistake.
const MIN_TIPS: usize = 3;
/// The base fee may rise by an eighth a block: twice of it lasts for six full blocks.
pub const BASE_FEE_HEADROOM: u128 = 2;
/// The least that nodes ask of a replacement, in thousandths (geth's `txpool.pricebump`, Erigon's and Reth's: 10 %).
pub const MIN_RAISE: u32 = 100;

/// What a transaction offers for each unit of gas, in wei.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fees {
    /// `maxPriorityFeePerGas`.
    pub tip: u128,
    /// `maxFeePerGas`, never below the tip. A legacy transaction's price is both.
    pub cap: u128,
}

/// The answer of `eth_feeHistory`, as nodes give it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeeHistory {
    /// Of each block and of the next one; absent before London.
    base_fee_per_gas: Option<Vec<Option<U128>>>,
    gas_used_ratio: Option<Vec<Option<f64>>>,
    /// Of each block one for each percentile that was asked for.
    reward: Option<Vec<Option<Vec<Option<U128>>>>>,
}

/// What gas costs on a chain now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Market {
    /// Of the next block; `None` on a chain that has none, whose transactions are legacy ones.
    pub base: Option<u128>,
    /// On top of it.
    pub tip: u128,
}

impl Market {
    /// Reads what a node told. `suggested_tip` is its `eth_maxPriorityFeePerGas`, `gas_price` its `eth_gasPrice`, as far as it
    /// answers them. `None` if nothing is known.
    pub fn read(history: Option<&FeeHistory>, suggested_tip: Option<u128>, gas_price: Option<u128>) -> Option<Self> {
        let base = history.and_then(FeeHistory::next_base_fee);
        let Some(base) = base else {
            return gas_price.filter(|price| *price > 0).map(|price| Self { base: None, tip: price });
        };
        let suggested = suggested_tip.filter(|tip| *tip > 0);
        let above_base = || gas_price.and_then(|price| price.checked_sub(base)).filter(|tip| *tip > 0);
        let tip = history.and_then(FeeHistory::usual_tip).or(suggested).or_else(above_base);
        // A tip of 1 wei is one that is raised from, where nobody tips and the node suggests nothing.
        Some(Self { base: Some(base), tip: tip.unwrap_or(1) })
    }

    /// What a unit of gas costs now, in wei.
    pub fn price(&self) -> u128 {
        self.base.unwrap_or_default().saturating_add(self.tip)
    }

    /// What a transaction offers now, at most `max_fee`. `None` if that does not even pay for the next block: it would wait in
    /// the pool and hold up all behind it.
    pub fn fees(&self, max_fee: u128) -> Option<Fees> {
        let base = self.base.unwrap_or_default();
        if base.saturating_add(self.tip) > max_fee {
            return None;
        }
        Some(self.wanted().within(max_fee))
    }

    /// What it would offer if it might cost anything.
    fn wanted(&self) -> Fees {
        match self.base {
            Some(base) => Fees { tip: self.tip, cap: base.saturating_mul(BASE_FEE_HEADROOM).saturating_add(self.tip) },
            None => Fees { tip: self.tip, cap: self.tip },
        }
    }
}

impl FeeHistory {
    /// The last one is the next block's. `None` where a node has none, or null.
    fn next_base_fee(&self) -> Option<u128> {
        self.base_fee_per_gas.as_ref()?.last().copied().flatten().map(|fee| fee.to())
    }

    /// The median of what busy blocks were tipped. The first percentile that was asked for counts.
    fn usual_tip(&self) -> Option<u128> {
        let ratios = self.gas_used_ratio.as_deref().unwrap_or_default();
        let is_idle = |block: usize| ratios.get(block).copied().flatten().is_some_and(|ratio| ratio < IDLE_RATIO);
        let tips = self.reward.iter().flatten().enumerate().filter(|(block, _)| !is_idle(*block));
        let tips = tips.filter_map(|(_, tips)| tips.as_ref()?.first().copied().flatten());
        let mut tips: Vec<u128> = tips.map(|tip| tip.to()).filter(|tip| *tip > 0).collect();
        tips.sort_unstable();
        tips.get(tips.len() / 2).copied().filter(|_| tips.len() >= MIN_TIPS)
    }
}

/// What comes after a transaction that is not mined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// A transaction with the same nonce that nodes take in its place.
    Raise(Fees),
    /// Nodes would take none that may be paid: the same bytes are sent again, since pools drop them.
    AtCap,
}

impl Fees {
    fn within(self, max_fee: u128) -> Self {
        let cap = self.cap.min(max_fee);
        Self { tip: self.tip.min(cap), cap }
    }

    /// Raised by so many thousandths, rounded up, and by 1 wei at least.
    fn raised(self, thousandths: u32) -> Self {
        let raise = |fee: u128| {
            let more = fee.saturating_mul(thousandths.into()).div_ceil(1000).max(1);
            fee.saturating_add(more)
        };
        Self { tip: raise(self.tip), cap: raise(self.cap) }
    }

    /// What replaces a transaction with these fees: both raised by `raise` thousandths, 10 % at least, and more if the market
    /// asks it.
    pub fn replacement(self, market: Option<&Market>, raise: u32, max_fee: u128) -> Replacement {
        let least = self.raised(raise.max(MIN_RAISE));
        if least.cap > max_fee || least.cap == u128::MAX {
            return Replacement::AtCap;
        }
        let wanted = market.map_or(least, Market::wanted);
        Replacement::Raise(Fees { tip: least.tip.max(wanted.tip), cap: least.cap.max(wanted.cap) }.within(max_fee))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GWEI: u128 = 1_000_000_000;

    fn history(json: &str) -> FeeHistory {
        serde_json::from_str(json).unwrap()
    }

    /// Blocks with one tip each, in gwei, and how full they were.
    fn tipped(blocks: &[(u64, f64)]) -> FeeHistory {
        FeeHistory {
            base_fee_per_gas: Some(vec![Some(U128::from(10 * GWEI)); blocks.len() + 1]),
            gas_used_ratio: Some(blocks.iter().map(|(_, ratio)| Some(*ratio)).collect()),
            reward: Some(blocks.iter().map(|(tip, _)| Some(vec![Some(U128::from(u128::from(*tip) * GWEI))])).collect()),
        }
    }

    fn tip(history: &FeeHistory, suggested: Option<u128>, price: Option<u128>) -> u128 {
        Market::read(Some(history), suggested, price).unwrap().tip
    }

    #[test]
    fn the_median_of_busy_blocks_is_the_tip_and_twice_the_base_fee_the_room() {
        let market = Market::read(Some(&tipped(&[(1, 0.5), (3, 0.5), (2, 0.9)])), None, None).unwrap();
        assert_eq!(market, Market { base: Some(10 * GWEI), tip: 2 * GWEI });
        assert_eq!(market.fees(u128::MAX), Some(Fees { tip: 2 * GWEI, cap: 22 * GWEI }));
    }

    /// boundless-xyz/boundless#1909: a tip of 1 wei, never mined.
    #[test]
    fn rewards_of_zero_leave_the_tip_to_the_nodes_suggestion() {
        let zeros = tipped(&[(0, 0.5), (0, 0.5), (0, 0.5), (0, 0.5)]);
        assert_eq!(tip(&zeros, Some(GWEI), Some(13 * GWEI)), GWEI);
        assert_eq!(tip(&zeros, None, Some(13 * GWEI)), 3 * GWEI);
        assert_eq!(tip(&zeros, Some(0), Some(9 * GWEI)), 1, "nobody says more, and it is raised from there");
    }

    #[test]
    fn one_odd_tip_in_an_idle_block_is_nobodys_price() {
        let odd = tipped(&[(0, 0.0), (5000, 0.001), (0, 0.0), (0, 0.0)]);
        assert_eq!(tip(&odd, Some(GWEI), None), GWEI);
        let busy = tipped(&[(1, 0.5), (5000, 0.001), (1, 0.5), (1, 0.5)]);
        assert_eq!(tip(&busy, None, None), GWEI);
        let one = tipped(&[(0, 0.5), (5000, 0.5), (0, 0.5)]);
        assert_eq!(tip(&one, Some(GWEI), None), GWEI, "one of few is no price either");
    }

    #[test]
    fn nulls_and_what_is_left_out_are_survived() {
        for (json, expected) in [
            (r#"{"baseFeePerGas":["0xa","0x14"],"reward":null,"gasUsedRatio":null,"oldestBlock":"0x1"}"#, (Some(20), 7)),
            (r#"{"baseFeePerGas":["0xa","0x14"],"reward":[null,["0x9"],[null],[]],"gasUsedRatio":[null,0.5]}"#, (Some(20), 7)),
            (r#"{"baseFeePerGas":["0xa","0x14"]}"#, (Some(20), 7)),
            // A base fee of 0, as on BNB Smart Chain, is one.
            (r#"{"baseFeePerGas":["0x0","0x0"],"reward":[["0x5"],["0x5"],["0x6"]]}"#, (Some(0), 5)),
            (r#"{"baseFeePerGas":["0xa",null]}"#, (None, 100)),
            (r#"{"baseFeePerGas":null}"#, (None, 100)),
            (r#"{"baseFeePerGas":[]}"#, (None, 100)),
            ("{}", (None, 100)),
        ] {
            let market = Market::read(Some(&history(json)), Some(7), Some(100)).unwrap();
            assert_eq!((market.base, market.tip), expected, "{json}");
        }
        assert_eq!(Market::read(None, None, Some(9)).unwrap().fees(9), Some(Fees { tip: 9, cap: 9 }), "legacy");
        assert_eq!(Market::read(Some(&FeeHistory::default()), Some(7), None), None);
        assert_eq!(Market::read(None, None, Some(0)), None);
    }

    #[test]
    fn what_the_next_block_would_not_take_is_not_begun() {
        let market = Market { base: Some(10), tip: 2 };
        assert_eq!(market.fees(11), None);
        assert_eq!(market.fees(12), Some(Fees { tip: 2, cap: 12 }));
        assert_eq!(market.fees(15), Some(Fees { tip: 2, cap: 15 }));
    }

    #[test]
    fn a_replacement_follows_the_market_and_ends_at_the_cap() {
        let old = Fees { tip: 10, cap: 100 };
        assert_eq!(old.replacement(None, MIN_RAISE, 1000), Replacement::Raise(Fees { tip: 11, cap: 110 }));
        assert_eq!(old.replacement(None, 125, 1000), Replacement::Raise(Fees { tip: 12, cap: 113 }));
        assert_eq!(old.replacement(None, 1, 1000), Replacement::Raise(Fees { tip: 11, cap: 110 }), "10 % at least");
        let market = Market { base: Some(200), tip: 30 };
        assert_eq!(old.replacement(Some(&market), 100, 1000), Replacement::Raise(Fees { tip: 30, cap: 430 }));
        assert_eq!(old.replacement(Some(&market), 100, 300), Replacement::Raise(Fees { tip: 30, cap: 300 }));
        assert_eq!(old.replacement(Some(&market), 100, 110), Replacement::Raise(Fees { tip: 30, cap: 110 }));
        assert_eq!(old.replacement(Some(&market), 100, 109), Replacement::AtCap);
    }

    proptest! {
        /// Nodes refuse a replacement of which either is raised by less; a transaction whose tip is above its cap is none.
        #[test]
        fn both_are_raised_by_ten_percent_and_nothing_exceeds_the_cap(
            tip in 0_u128..10_u128.pow(15), more in 0_u128..10_u128.pow(15), base in prop::option::of(0_u128..10_u128.pow(15)),
            market_tip in 0_u128..10_u128.pow(15), raise in 0_u32..400, max_fee in 0_u128..10_u128.pow(17),
        ) {
            let old = Fees { tip, cap: tip + more };
            let market = Market { base, tip: market_tip };
            match old.replacement(Some(&market), raise, max_fee) {
                Replacement::Raise(new) => {
                    prop_assert!(new.tip * 10 >= old.tip * 11 && new.cap * 10 >= old.cap * 11);
                    prop_assert!(new.tip > old.tip && new.cap > old.cap);
                    prop_assert!(new.tip <= new.cap && new.cap <= max_fee);
                }
                Replacement::AtCap => prop_assert!(old.cap + old.cap * u128::from(raise.max(100)) / 1000 + 1 > max_fee),
            }
            if let Some(first) = market.fees(max_fee) {
                prop_assert!(first.tip <= first.cap && first.cap <= max_fee);
                prop_assert!(first.cap >= base.unwrap_or_default() + market_tip);
            }
        }

        /// Whatever it begins with, raising ends: at the cap nothing is raised any more, however often it is asked.
        #[test]
        fn raising_has_an_end(tip in 0_u128..GWEI, cap in GWEI..100 * GWEI, max_fee in GWEI..10_000 * GWEI) {
            let mut fees = Fees { tip, cap };
            let mut raised = 0;
            while let Replacement::Raise(next) = fees.replacement(None, MIN_RAISE, max_fee) {
                fees = next;
                raised += 1;
                prop_assert!(raised < 200);
            }
            prop_assert_eq!(fees.replacement(None, MIN_RAISE, max_fee), Replacement::AtCap);
        }
    }
}
