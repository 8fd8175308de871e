//! Looks at single endpoints, in the background: what they have at a height, where they leave our chain, and their tags.
//!
//! Each endpoint has one look of a kind under way at most, so one that hangs delays nobody. One that fails is left alone for a
//! while. Circuit breakers are neither asked nor changed: they tell of the requests that blocks depend on.

use chain::{Endpoint, Head, Rpc, RpcError, Tags, fetch_tags, look_at};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const MIN_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// The outcome of a look.
#[derive(Debug)]
pub enum Seen {
    /// Its block at the height asked for, or its head if that is lower.
    Block(Head),
    /// It has none at this height. Its chain goes on with this block.
    Hole(u64, Head),
    /// Where it leaves our chain.
    Fork(Fork),
    /// Its block below one of ours that is in doubt.
    Below(Head),
    /// Its tags.
    Tags(Tags),
    /// No answer.
    Nothing,
}

/// Where an endpoint leaves our chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The highest block of ours that it has; none if it lies below all that were compared.
    pub agrees: Option<u64>,
    /// The lowest of ours that it does not have.
    pub ours: Head,
    /// The height up to which it has shown others.
    pub to: u64,
}

impl Fork {
    /// The height from which on it has others.
    pub fn from(&self) -> u64 {
        self.agrees.map_or(self.ours.number, |agrees| agrees + 1)
    }
}

/// The looks under way. Dropping it ends them.
pub struct Looks {
    rpc: Arc<Rpc>,
    running: JoinSet<(usize, Seen)>,
    states: Vec<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    blocks: bool,
    tags: bool,
    failures: u32,
    paused_until: Option<Instant>,
}

impl Looks {
    pub fn new(rpc: Arc<Rpc>) -> Self {
        let states = vec![State::default(); rpc.endpoints().len()];
        Self { rpc, running: JoinSet::new(), states }
    }

    /// Looks for an endpoint's block at a height.
    pub fn at(&mut self, place: usize, number: u64) {
        self.start(place, |endpoint| async move {
            Ok(match look_at(&endpoint, number).await? {
                Some(head) if head.number > number => Seen::Hole(number, head),
                Some(head) => Seen::Block(head),
                None => Seen::Nothing,
            })
        });
    }

    /// Looks for an endpoint's block at a height below a block in doubt, of which it has shown another above.
    pub fn below_doubt(&mut self, place: usize, number: u64) {
        self.start(place, |endpoint| async move { Ok(look_at(&endpoint, number).await?.map_or(Seen::Nothing, Seen::Below)) });
    }

    /// Looks for the place where an endpoint leaves these blocks of ours, of which it does not have the last, up to `to`.
    pub fn for_fork(&mut self, place: usize, ours: Vec<Head>, to: u64) {
        self.start(place, move |endpoint| async move {
            Ok(find_fork(&endpoint, &ours, to).await?.map_or(Seen::Nothing, Seen::Fork))
        });
    }

    /// Asks an endpoint for its tags.
    pub fn for_tags(&mut self, place: usize) {
        let (Some(endpoint), Some(state)) = (self.rpc.endpoints().get(place).cloned(), self.states.get_mut(place)) else {
            return;
        };
        if !std::mem::replace(&mut state.tags, true) {
            self.running.spawn(async move { (place, Seen::Tags(fetch_tags(&endpoint).await)) });
        }
    }

    fn start<F>(&mut self, place: usize, look: impl FnOnce(Arc<Endpoint>) -> F)
    where
        F: Future<Output = Result<Seen, RpcError>> + Send + 'static,
    {
        let (Some(endpoint), Some(state)) = (self.rpc.endpoints().get(place).cloned(), self.states.get_mut(place)) else {
            return;
        };
        if state.blocks || state.paused_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        state.blocks = true;
        let look = look(endpoint.clone());
        self.running.spawn(async move { (place, look.await.unwrap_or_else(|error| silence(&endpoint, &error))) });
    }

    /// Waits for the next outcome, for ever if no look is under way.
    pub async fn next(&mut self) -> (usize, Seen) {
        match self.running.join_next().await {
            Some(ended) => self.end(ended),
            None => std::future::pending().await,
        }
    }

    /// An outcome that is there already.
    pub fn try_next(&mut self) -> Option<(usize, Seen)> {
        self.running.try_join_next().map(|ended| self.end(ended))
    }

    fn end(&mut self, ended: Result<(usize, Seen), tokio::task::JoinError>) -> (usize, Seen) {
        // Not aborted: only dropping the set aborts. So the look panicked.
        let (place, seen) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        if let Some(state) = self.states.get_mut(place) {
            match seen {
                Seen::Tags(_) => state.tags = false,
                Seen::Block(_) | Seen::Hole(..) | Seen::Fork(_) | Seen::Below(_) => {
                    (state.blocks, state.failures, state.paused_until) = (false, 0, None);
                }
                Seen::Nothing => {
                    state.blocks = false;
                    let pause = MIN_PAUSE.saturating_mul(1 << state.failures.min(10)).min(MAX_PAUSE);
                    state.failures = state.failures.saturating_add(1);
                    state.paused_until = Some(Instant::now() + pause);
                }
            }
        }
        (place, seen)
    }
}

fn silence(endpoint: &Endpoint, error: &RpcError) -> Seen {
    tracing::debug!(endpoint = endpoint.host(), "no witness now: {error}");
    Seen::Nothing
}

/// Goes down from the last of `ours` in growing steps, and then halves what is left. `None` if the endpoint lacks a block on
/// the way, or has ours after all.
pub async fn find_fork(endpoint: &Endpoint, ours: &[Head], to: u64) -> Result<Option<Fork>, RpcError> {
    let has = |place: usize| async move {
        let Some(block) = ours.get(place) else { return Ok(None) };
        let theirs = look_at(endpoint, block.number).await?.filter(|theirs| theirs.number >= block.number);
        Ok::<_, RpcError>(theirs.map(|theirs| theirs.hash == block.hash))
    };
    let Some(mut differs) = ours.len().checked_sub(1) else { return Ok(None) };
    let (mut agrees, mut step) = (None, 1);
    while differs > 0 && agrees.is_none() {
        let place = differs.saturating_sub(step);
        match has(place).await? {
            Some(true) => agrees = Some(place),
            Some(false) => (differs, step) = (place, step * 2),
            None => return Ok(None),
        }
    }
    while let Some(known) = agrees.filter(|known| differs - known > 1) {
        let place = known.midpoint(differs);
        match has(place).await? {
            Some(true) => agrees = Some(place),
            Some(false) => differs = place,
            None => return Ok(None),
        }
    }
    let agrees = agrees.and_then(|place| ours.get(place)).map(|block| block.number);
    Ok(ours.get(differs).map(|block| Fork { agrees, ours: *block, to }))
}
