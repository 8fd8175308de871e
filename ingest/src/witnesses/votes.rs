//! The votes: how far endpoints witness our blocks, whether a majority of them contradicts us, and which tags count. Pure.
//!
//! An endpoint that has a block of ours has all below it, since a block's hash commits to its ancestors; one that has another
//! block has another above it too. So a vote is two heights. Where a chain skips numbers a height has no block, and what is
//! said of it holds for the one above. Endpoints of one provider are one voter.
//!
//! Below a block in doubt, whose content is one endpoint's word, nobody is taken to have more than was seen: that word says what the
//! block stands on as well.

use crate::window::Window;
use chain::{Head, Tags};
use std::collections::{BTreeMap, BTreeSet};

/// After so many looks a contradiction is one, even if another endpoint lags below it.
const MAX_UNDECIDED_LOOKS: u32 = 4;

/// The votes of a chain's endpoints, in the order of `chains.yaml`.
#[derive(Clone, Debug)]
pub struct Votes {
    /// Witnesses that a block needs.
    needed: usize,
    votes: Vec<Vote>,
    /// Height of the lowest block in doubt.
    doubtful: Option<u64>,
    /// The highest block that was ever witnessed and is ours still.
    witnessed: Option<u64>,
}

/// The vote of one endpoint.
#[derive(Clone, Debug, Default)]
struct Vote {
    provider: String,
    answer: Answer,
    /// The highest block of ours that it has given.
    agrees: Option<u64>,
    /// The highest below all that are in doubt.
    trusted: Option<u64>,
    differs: Option<Difference>,
    tags: Tags,
}

/// The outcome of the last look at an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answer {
    /// Nobody has looked yet. Until then it may have our blocks, so no majority is found without it.
    #[default]
    Outstanding,
    Given,
    /// Silence is no vote.
    None,
}

/// The blocks of ours for which an endpoint has others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Difference {
    /// The lowest.
    from: u64,
    /// The lowest in the look before.
    before: Option<u64>,
    /// The highest that it has shown. Above it the endpoint lags, which is no vote.
    to: u64,
    /// Looks running that have shown a difference.
    looks: u32,
}

impl Difference {
    /// The lowest block that it has contradicted in two looks running.
    fn confirmed_from(&self) -> Option<u64> {
        self.before.map(|before| before.max(self.from))
    }

    fn covers(&self, number: u64) -> bool {
        (self.from..=self.to).contains(&number)
    }
}

/// What the endpoints of a provider say of one block, of less weight first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Opinion {
    DiffersOnce,
    DiffersTwice,
    Agrees,
}

impl Votes {
    /// No votes yet, of endpoints of these providers.
    pub fn new(needed: usize, providers: impl IntoIterator<Item = String>) -> Self {
        let votes = providers.into_iter().map(|provider| Vote { provider, ..Vote::default() }).collect();
        Self { needed, votes, doubtful: None, witnessed: None }
    }

    /// The lowest block in doubt is at this height now; `None` if no block is in doubt.
    pub fn doubt_from(&mut self, lowest: Option<u64>) {
        self.doubtful = lowest;
        for place in 0..self.votes.len() {
            if let Some(agrees) = self.votes.get(place).and_then(|vote| vote.agrees) {
                self.trust(place, agrees);
            }
        }
    }

    /// An endpoint has this block of ours, and all below it unless it is in doubt itself or above a block that is.
    pub fn trust(&mut self, place: usize, number: u64) {
        let Some(vote) = self.votes.get_mut(place).filter(|_| self.doubtful.is_none_or(|lowest| number < lowest)) else {
            return;
        };
        vote.trusted = vote.trusted.max(Some(number));
    }

    /// Whether an endpoint is known to have this block of ours and all below it.
    pub fn is_trusted(&self, place: usize, number: u64) -> bool {
        self.votes.get(place).is_some_and(|vote| vote.trusted >= Some(number))
    }

    /// An endpoint has given this block of ours.
    pub fn agree(&mut self, place: usize, number: u64) {
        self.trust(place, number);
        let Some(vote) = self.votes.get_mut(place) else { return };
        vote.answer = Answer::Given;
        vote.agrees = vote.agrees.max(Some(number));
        vote.differs = None;
    }

    /// An endpoint has other blocks than ours, or none, from one height to another; `agrees` is the block of ours below that it
    /// has.
    pub fn differ(&mut self, place: usize, agrees: Option<u64>, from: u64, to: u64) {
        let Some(vote) = self.votes.get_mut(place) else { return };
        vote.answer = Answer::Given;
        vote.agrees = agrees;
        vote.trusted = vote.trusted.min(agrees);
        let (before, looks) = vote.differs.map_or((None, 0), |last| (Some(last.from), last.looks));
        vote.differs = Some(Difference { from, before, to, looks: looks.saturating_add(1) });
        if let Some(agrees) = agrees {
            self.trust(place, agrees);
        }
    }

    /// An endpoint did not answer, or shows nothing to compare.
    pub fn silent(&mut self, place: usize) {
        let Some(vote) = self.votes.get_mut(place) else { return };
        vote.answer = Answer::None;
        vote.differs = None;
    }

    /// An endpoint's tags. One that it does not report now stays: what was final is final.
    pub fn tagged(&mut self, place: usize, tags: Tags) {
        let Some(vote) = self.votes.get_mut(place) else { return };
        vote.tags = Tags { safe: tags.safe.or(vote.tags.safe), finalized: tags.finalized.or(vote.tags.finalized) };
    }

    /// A reorg took our blocks above this tip off, or all: nobody witnesses one of them any more.
    pub fn removed(&mut self, tip: Option<u64>) {
        self.witnessed = self.witnessed.min(tip);
        for vote in &mut self.votes {
            vote.agrees = vote.agrees.min(tip);
            vote.trusted = vote.trusted.min(tip);
            vote.differs = vote.differs.filter(|difference| Some(difference.from) <= tip);
        }
    }

    /// Whether an endpoint has given this block of ours.
    pub fn has_given(&self, place: usize, number: u64) -> bool {
        self.votes.get(place).is_some_and(|vote| vote.answer == Answer::Given && vote.agrees >= Some(number))
    }

    /// The highest block that enough providers have given.
    pub fn witnessed(&mut self) -> Option<u64> {
        let mut given: BTreeMap<&str, Option<u64>> = BTreeMap::new();
        for vote in &self.votes {
            let highest = given.entry(&vote.provider).or_default();
            *highest = (*highest).max(vote.trusted);
        }
        // Once given by enough it is a fact, which no later silence takes back.
        self.witnessed = self.witnessed.max(nth_highest(self.needed, given.into_values().flatten()));
        self.witnessed
    }

    /// The tagged block that as many providers have reached as a block needs witnesses. A tag counts only if it is of our window.
    pub fn tag(&self, of: impl Fn(&Tags) -> Option<Head>, window: &Window) -> Option<Head> {
        let ours = |tag: &Head| window.at(tag.number).is_some_and(|ours| ours.hash == tag.hash);
        let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
        for (vote, tag) in self.votes.iter().filter_map(|vote| of(&vote.tags).filter(ours).map(|tag| (vote, tag))) {
            let highest = reached.entry(&vote.provider).or_default();
            *highest = (*highest).max(tag.number);
        }
        nth_highest(self.needed, reached.into_values()).and_then(|number| window.at(number).copied())
    }

    /// The lowest block of ours that a strict majority of those that answer at its height has contradicted in two looks running.
    pub fn outvoted(&self) -> Option<u64> {
        let mut heights: Vec<u64> =
            self.votes.iter().filter_map(|vote| vote.differs).filter_map(|difference| difference.confirmed_from()).collect();
        heights.sort_unstable();
        heights.into_iter().find(|height| {
            let opinions = self.opinions(*height);
            let against = opinions.iter().filter(|opinion| **opinion == Opinion::DiffersTwice).count();
            2 * against > opinions.len()
        })
    }

    /// Whether a branch that an endpoint shows may replace our blocks from this height on: a majority must contradict them. Where
    /// one witness is enough, so is one endpoint.
    pub fn may_replace(&self, place: usize, from: u64) -> bool {
        let lowest = if self.needed == 1 {
            self.votes.get(place).and_then(|vote| vote.differs).and_then(|difference| difference.confirmed_from())
        } else {
            self.outvoted()
        };
        lowest.is_some_and(|lowest| lowest <= from)
    }

    /// The endpoints that contradict us in two looks running, each with the lowest block that it contradicts. While others have
    /// still to say which side they are on, nobody knows who contradicts whom; they have a few looks' time.
    pub fn contradicting(&self) -> Vec<(usize, u64)> {
        let from = |vote: &Vote| {
            let difference = vote.differs?;
            let from = difference.confirmed_from()?;
            (difference.looks >= MAX_UNDECIDED_LOOKS || self.is_decided(from)).then_some(from)
        };
        self.votes.iter().enumerate().filter_map(|(place, vote)| Some((place, from(vote)?))).collect()
    }

    /// Whether any endpoint has another block than we.
    pub fn is_disputed(&self) -> bool {
        self.votes.iter().any(|vote| vote.differs.is_some())
    }

    /// The endpoints that answer and have our block at this height.
    pub fn agreeing(&self, number: u64) -> Vec<usize> {
        (0..self.votes.len()).filter(|place| self.has_given(*place, number)).collect()
    }

    /// Whether all providers that answer have an opinion of our block at this height, and those that differ have differed twice.
    fn is_decided(&self, height: u64) -> bool {
        let answering = self.votes.iter().filter(|vote| vote.answer != Answer::None).map(|vote| &vote.provider);
        let opinions = self.opinions(height);
        opinions.len() == answering.collect::<BTreeSet<_>>().len() && !opinions.contains(&Opinion::DiffersOnce)
    }

    /// One opinion per provider that answers at this height.
    fn opinions(&self, height: u64) -> Vec<Opinion> {
        let mut opinions: BTreeMap<&str, Opinion> = BTreeMap::new();
        for vote in self.votes.iter().filter(|vote| vote.answer != Answer::None) {
            let opinion = match vote.differs {
                _ if vote.answer == Answer::Outstanding || vote.agrees >= Some(height) => Opinion::Agrees,
                Some(difference) if !difference.covers(height) => continue,
                Some(difference) if difference.confirmed_from().is_some_and(|from| from <= height) => Opinion::DiffersTwice,
                Some(_) => Opinion::DiffersOnce,
                None => continue,
            };
            let known = opinions.entry(&vote.provider).or_insert(opinion);
            *known = (*known).max(opinion);
        }
        opinions.into_values().collect()
    }
}

/// The highest number that this many reach.
pub fn nth_highest(nth: usize, numbers: impl IntoIterator<Item = u64>) -> Option<u64> {
    let mut numbers: Vec<u64> = numbers.into_iter().collect();
    numbers.sort_unstable_by_key(|number| std::cmp::Reverse(*number));
    numbers.get(nth.saturating_sub(1)).copied()
}

#[cfg(test)]
#[path = "votes_tests.rs"]
mod tests;
