//! Witnesses: what a chain's other endpoints say of the blocks that one of them gave.
//!
//! A block proves that it agrees with itself. That it is on the chain, only other endpoints can say. So each is looked at in the
//! background, while a block is fetched and afterwards, and no block waits for them. `votes` counts, `looks` asks; `contents` asks
//! for what a hash says nothing of.

mod contents;
mod looks;
mod votes;

use crate::records::FinalityTags;
use crate::window::Window;
use base::metrics;
use chain::{Chain, Endpoint, Head, Rpc, Tags};
use contents::{Contents, Looked};
pub use looks::{Fork, find_fork};
use looks::{Looks, Seen};
use std::sync::Arc;
use std::time::{Duration, Instant};
use topics::B256;
use votes::Votes;
pub use votes::nth_highest;

/// How often an endpoint that has our tip is looked at again while nothing happens.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);
/// How often tags are asked for while no block comes, at most.
const MIN_TAG_INTERVAL: Duration = Duration::from_secs(3);

/// Other content for the same block is asked for again after so long, each time twice as long, up to the most.
const FIRST_PAUSE: Duration = Duration::from_secs(4);
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// The attempts to get other content for a block of ours.
#[derive(Default)]
struct Attempts {
    /// The block of the last one, when it is due again, and the pause after that.
    last: Option<(B256, Instant, Duration)>,
}

impl Attempts {
    fn is_due(&self, block: B256, now: Instant) -> bool {
        self.last.is_none_or(|(last, due, _)| last != block || due <= now)
    }

    fn begin(&mut self, block: B256, now: Instant) {
        let again = self.last.filter(|(last, ..)| *last == block);
        let pause = again.map_or(FIRST_PAUSE, |(_, _, pause)| pause);
        self.last = Some((block, now + pause, (pause * 2).min(MAX_PAUSE)));
    }
}

/// What a look in the background has found.
pub enum News {
    Seen(usize, Seen),
    Content(Looked),
}

/// The witnesses of a chain.
pub struct Witnesses {
    chain: Arc<Chain>,
    rpc: Arc<Rpc>,
    votes: Votes,
    looks: Looks,
    contents: Contents,
    /// A block of ours for which others have other content than this.
    refuted: Option<(Head, B256)>,
    /// It was found just now.
    is_news: bool,
    /// A block of ours with this content, and who has other content for it, as far as was seen last.
    disputed: Option<(Head, B256, String)>,
    attempts: Attempts,
    /// What endpoints showed last, until it can be compared with the window.
    shown: Vec<Option<Head>>,
    /// When each endpoint was looked at, or showed a head.
    seen_at: Vec<Option<Instant>>,
    tags_asked_at: Option<Instant>,
    /// The contradictions counted last, by endpoint: our block that it contradicted.
    counted: Vec<Option<B256>>,
    /// The same, of blocks for which it has other content.
    counted_contents: Vec<Option<B256>>,
}

impl Witnesses {
    pub fn new(chain: Arc<Chain>, rpc: Arc<Rpc>) -> Self {
        let count = rpc.endpoints().len();
        Self {
            votes: Votes::new(chain.witnesses, rpc.endpoints().iter().map(|endpoint| endpoint.provider().to_owned())),
            looks: Looks::new(rpc.clone()),
            contents: Contents::new(chain.clone(), rpc.clone()),
            refuted: None,
            is_news: false,
            disputed: None,
            attempts: Attempts::default(),
            shown: vec![None; count],
            seen_at: vec![None; count],
            tags_asked_at: None,
            counted: vec![None; count],
            counted_contents: vec![None; count],
            chain,
            rpc,
        }
    }

    fn place(&self, endpoint: &Arc<Endpoint>) -> Option<usize> {
        self.rpc.endpoints().iter().position(|other| Arc::ptr_eq(other, endpoint))
    }

    /// An endpoint has shown its head.
    pub fn shows(&mut self, endpoint: &Arc<Endpoint>, head: Head) {
        let Some(place) = self.place(endpoint) else { return };
        self.mark_seen(place);
        if let Some(shown) = self.shown.get_mut(place) {
            *shown = Some(head);
        }
    }

    /// An endpoint has given a block that is published now.
    pub fn gave(&mut self, endpoint: &Arc<Endpoint>, number: u64, window: &Window) {
        self.votes.doubt_from(lowest_doubt(window));
        if let Some(place) = self.place(endpoint) {
            self.votes.agree(place, number);
        }
    }

    /// An endpoint shows a branch that leaves ours. Returns whether the branch may replace ours.
    pub fn leaves(&mut self, endpoint: &Arc<Endpoint>, fork: Fork) -> bool {
        let Some(place) = self.place(endpoint) else { return false };
        if let Some(shown) = self.shown.get_mut(place) {
            *shown = None;
        }
        self.votes.differ(place, fork.agrees, fork.from(), fork.to);
        self.votes.may_replace(place, fork.from())
    }

    /// Whether an endpoint's branch may replace our blocks from this height on, as far as is known.
    pub fn may_replace(&self, endpoint: &Arc<Endpoint>, from: u64) -> bool {
        self.place(endpoint).is_some_and(|place| self.votes.may_replace(place, from))
    }

    /// Our blocks above this tip were taken off, or all.
    pub fn removed(&mut self, tip: Option<u64>) {
        self.votes.removed(tip);
    }

    /// An endpoint's tags.
    pub fn tagged(&mut self, endpoint: &Arc<Endpoint>, tags: Tags) {
        if let Some(place) = self.place(endpoint) {
            self.votes.tagged(place, tags);
        }
    }

    /// Looks at each endpoint that has not given this block, and now and then, or while any differs from us, at those that have.
    /// `but` has just shown its head.
    pub fn look(&mut self, number: u64, but: &Arc<Endpoint>) {
        let but = self.place(but);
        for place in (0..self.shown.len()).filter(|place| Some(*place) != but) {
            let idle = self.seen_at.get(place).copied().flatten().is_some_and(|seen| seen.elapsed() < IDLE_INTERVAL);
            if !(idle && self.votes.has_given(place, number)) || self.votes.is_disputed() {
                self.looks.at(place, number);
            }
        }
    }

    /// Asks for tags if they were asked for before `since`, or some time ago. `but` is asked by the caller.
    pub fn refresh_tags(&mut self, since: Option<Instant>, but: Option<&Arc<Endpoint>>) -> bool {
        let interval = self.chain.poll_interval.max(MIN_TAG_INTERVAL);
        let due =
            self.tags_asked_at.is_none_or(|asked| since.is_some_and(|since| asked < since) || asked.elapsed() >= interval);
        if due {
            self.tags_asked_at = Some(Instant::now());
            let but = but.and_then(|endpoint| self.place(endpoint));
            (0..self.shown.len()).filter(|place| Some(*place) != but).for_each(|place| self.looks.for_tags(place));
        }
        due
    }

    /// Waits for the outcome of a look.
    pub async fn next(&mut self) -> News {
        tokio::select! {
            (place, seen) = self.looks.next() => News::Seen(place, seen),
            looked = self.contents.next() => News::Content(looked),
        }
    }

    /// Takes all that is known now: what endpoints have shown, compared with the window, and the tags, which may make blocks
    /// final. Returns what is known of the chain.
    pub fn settle(&mut self, window: &mut Window) -> FinalityTags {
        while let Some((place, seen)) = self.looks.try_next() {
            self.take_seen(place, seen, window);
        }
        while let Some(looked) = self.contents.try_next() {
            self.take_content(looked, window);
        }
        self.contents.ask(window);
        self.votes.doubt_from(lowest_doubt(window));
        for place in 0..self.shown.len() {
            self.compare(place, window);
        }
        let safe = self.votes.tag(|tags| tags.safe, window);
        let finalized = self.votes.tag(|tags| tags.finalized, window);
        let witnessed = below_doubts(self.votes.witnessed(), window);
        // A block in doubt may be taken back although its hash is final, and so may those below it that nobody else has shown.
        let doubtful = lowest_doubt(window).unwrap_or(u64::MAX);
        let finalized =
            finalized.map(|head| head.number).filter(|number| *number < doubtful).or(witnessed.filter(|_| finalized.is_some()));
        if let Some(finalized) = finalized.and_then(|number| window.at(number).copied()) {
            window.finalize(&finalized);
        }
        if let Some(witnessed) = witnessed {
            #[expect(clippy::cast_precision_loss, reason = "block numbers are far below 2^52")]
            metrics::CHAIN_WITNESSED.gauge(&[("chain", &self.chain.name)]).set(witnessed as f64);
        }
        self.name_contradictions(window);
        FinalityTags { safe: safe.map(|head| head.number), finalized, witnessed }
    }

    /// Takes the outcome of a look.
    pub fn take(&mut self, news: News, window: &mut Window) {
        match news {
            News::Seen(place, seen) => self.take_seen(place, seen, window),
            News::Content(looked) => self.take_content(looked, window),
        }
    }

    /// The lowest block for which enough endpoints have other content than was published, until it makes way for that.
    pub fn refuted(&self, window: &Window) -> Option<Head> {
        self.refuted.filter(|(head, content)| window.doubt_of(head) == Some(*content)).map(|(head, _)| head)
    }

    /// A block in doubt for which others have other content, too few to take its place, and who they are.
    pub fn disputed(&self, window: &Window) -> Option<(u64, &str)> {
        let disputed = self.disputed.as_ref().filter(|(head, content, _)| window.doubt_of(head) == Some(*content));
        disputed.map(|(head, _, others)| (head.number, others.as_str()))
    }

    /// Whether that was found just now, once for each time. Where those that contradict do not agree among themselves, nothing can take
    /// its place, and asking for it takes long: so it is asked for more and more rarely.
    pub fn take_refuted(&mut self, window: &Window) -> Option<Head> {
        let now = Instant::now();
        let refuted = self.due(window, now)?;
        self.is_news = false;
        self.attempts.begin(refuted.hash, now);
        Some(refuted)
    }

    /// Whether [`take_refuted`](Self::take_refuted) has a block.
    pub fn has_refuted(&self, window: &Window) -> bool {
        self.due(window, Instant::now()).is_some()
    }

    fn due(&self, window: &Window, now: Instant) -> Option<Head> {
        self.refuted(window).filter(|head| self.is_news && self.attempts.is_due(head.hash, now))
    }

    /// Takes a block out of doubt whose content enough endpoints have given, and names those that give something else. Remembers a
    /// block whose content enough contradict.
    fn take_content(&mut self, looked: Looked, window: &mut Window) {
        let refutes = self.contents.refutes(&looked);
        let Looked { head, content, found } = looked;
        if self.contents.confirms(&found) && window.trust(&head, content) {
            self.votes.doubt_from(lowest_doubt(window));
            for place in found.with.iter().filter_map(|endpoint| self.place(endpoint)).collect::<Vec<_>>() {
                self.votes.trust(place, head.number);
            }
        }
        if !found.against.is_empty() {
            let others: Vec<&str> = found.against.iter().map(|other| other.host()).collect();
            self.disputed = Some((head, content, others.join(", ")));
        }
        if refutes {
            self.is_news = true;
            if self.refuted(window).is_none_or(|lowest| head.number < lowest.number) {
                self.refuted = Some((head, content));
            }
        }
        let (liars, others) = if found.outvote() { (&found.with, &found.against) } else { (&found.against, &found.with) };
        let is_decided = found.count_with() != found.count_against();
        for endpoint in liars.iter().filter(|_| !others.is_empty()) {
            if is_decided {
                endpoint.record_contradiction();
            }
            let Some(counted) = self.place(endpoint).and_then(|place| self.counted_contents.get_mut(place)) else { continue };
            if counted.replace(head.hash) != Some(head.hash) {
                endpoint.count_contradiction();
                let others: Vec<&str> = others.iter().map(|other| other.host()).collect();
                let (chain, number, endpoint, others) = (&self.chain.name, head.number, endpoint.host(), others.join(", "));
                tracing::warn!(chain, endpoint, "contradiction: it has other content for block {number} than {others}");
            }
        }
    }

    fn take_seen(&mut self, place: usize, seen: Seen, window: &Window) {
        match seen {
            Seen::Tags(tags) => self.votes.tagged(place, tags),
            Seen::Nothing => self.votes.silent(place),
            Seen::Below(head) => {
                if window.at(head.number).is_some_and(|ours| ours.hash == head.hash) {
                    self.votes.trust(place, head.number);
                }
            }
            Seen::Fork(fork) => {
                // A reorg of ours meanwhile makes it void.
                if window.at(fork.ours.number).is_some_and(|block| block.hash == fork.ours.hash) {
                    self.votes.differ(place, fork.agrees, fork.from(), fork.to);
                }
            }
            Seen::Hole(number, head) if window.at(number).is_some() => {
                self.mark_seen(place);
                self.look_for_fork(place, number, head.number, window);
            }
            Seen::Hole(_, head) | Seen::Block(head) => {
                self.mark_seen(place);
                if let Some(shown) = self.shown.get_mut(place) {
                    *shown = Some(head);
                }
            }
        }
    }

    fn mark_seen(&mut self, place: usize) {
        if let Some(seen) = self.seen_at.get_mut(place) {
            *seen = Some(Instant::now());
        }
    }

    /// Looks for the place where an endpoint leaves ours that does not have our block at a height.
    fn look_for_fork(&mut self, place: usize, ours: u64, to: u64, window: &Window) {
        // From the last final block on, which nobody leaves.
        let floor = window.finalized().unwrap_or(0);
        let compared = window.iter().filter(|block| (floor..=ours).contains(&block.number)).copied().collect();
        self.looks.for_fork(place, compared, to);
    }

    /// Looks at the block below the lowest in doubt, if the endpoint has shown one above and not yet this.
    fn look_below_doubts(&mut self, place: usize, shown: u64, window: &Window) {
        let below = lowest_doubt(window).and_then(|lowest| window.below(lowest)).map(|below| below.number);
        if let Some(below) = below.filter(|below| *below < shown && !self.votes.is_trusted(place, *below)) {
            self.looks.below_doubt(place, below);
        }
    }

    /// Compares what an endpoint has shown with our block at its height, or, if we have none there, with the one above, which
    /// that contradicts as well. So does another parent under the same hash. Above our tip only the tip's child says something.
    fn compare(&mut self, place: usize, window: &Window) {
        let Some(shown) = self.shown.get(place).copied().flatten() else { return };
        let Some(tip) = window.tip() else { return };
        let is_in_window = window.bottom().is_some_and(|bottom| bottom.number <= shown.number);
        match window.at_or_above(shown.number) {
            Some(ours) if (ours.hash, ours.parent_hash) == (shown.hash, shown.parent_hash) => {
                self.votes.agree(place, shown.number);
                self.look_below_doubts(place, shown.number, window);
            }
            Some(ours) if is_in_window => self.look_for_fork(place, ours.number, shown.number, window),
            // It lags.
            Some(_) => self.votes.silent(place),
            None => {
                if shown.parent_hash == tip.hash {
                    self.votes.agree(place, tip.number);
                }
                // It is kept: the next block may be it, or stand on it.
                return;
            }
        }
        if let Some(shown) = self.shown.get_mut(place) {
            *shown = None;
        }
    }

    /// Names and counts the endpoints that contradict us in two looks running, or, if they are the majority, those that do not.
    /// They rank behind the others while it goes on.
    fn name_contradictions(&mut self, window: &Window) {
        let outvoted = self.votes.outvoted().filter(|_| self.chain.witnesses > 1);
        let contradicting = match outvoted {
            Some(from) => self.votes.agreeing(from).into_iter().map(|place| (place, from)).collect(),
            None => self.votes.contradicting(),
        };
        for (place, from) in contradicting {
            let host = |place: usize| self.rpc.endpoints().get(place).map(|endpoint| endpoint.host());
            let others: Vec<&str> = match outvoted {
                Some(_) => self.votes.contradicting().into_iter().filter_map(|(place, _)| host(place)).collect(),
                None => self.votes.agreeing(from).into_iter().filter_map(host).collect(),
            };
            let (Some(endpoint), Some(ours)) = (self.rpc.endpoints().get(place), window.at_or_above(from)) else { continue };
            // Alone it contradicts nobody: its chain has changed, and ours will.
            if others.is_empty() {
                continue;
            }
            endpoint.record_contradiction();
            let Some(counted) = self.counted.get_mut(place).filter(|counted| **counted != Some(ours.hash)) else { continue };
            *counted = Some(ours.hash);
            endpoint.count_contradiction();
            let (chain, number, endpoint, others) = (&self.chain.name, ours.number, endpoint.host(), others.join(", "));
            tracing::warn!(chain, endpoint, "contradiction: it has another block {number} than {others}; asking it last");
        }
    }
}

/// Height of the lowest block whose content one endpoint alone has given.
fn lowest_doubt(window: &Window) -> Option<u64> {
    window.doubts().next().map(|(head, _)| head.number)
}

/// Down to below the lowest block in doubt.
fn below_doubts(witnessed: Option<u64>, window: &Window) -> Option<u64> {
    let Some(doubtful) = lowest_doubt(window) else { return witnessed };
    witnessed.min(window.below(doubtful).map(|head| head.number))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each attempt took 15 s, one after the other, and nothing was published meanwhile.
    #[test]
    fn content_that_nobody_agrees_on_is_asked_for_more_and_more_rarely() {
        let (mut attempts, [block, other]) = (Attempts::default(), [1, 2].map(B256::repeat_byte));
        let mut now = Instant::now();
        for pause in [4, 8, 16, 32, 64, 128, 256, 300, 300].map(Duration::from_secs) {
            assert!(attempts.is_due(block, now));
            attempts.begin(block, now);
            assert!(!attempts.is_due(block, now + pause - Duration::from_millis(1)) && attempts.is_due(other, now));
            now += pause;
        }
        attempts.begin(other, now);
        assert!(attempts.is_due(block, now) && attempts.is_due(other, now + FIRST_PAUSE));
    }
}
