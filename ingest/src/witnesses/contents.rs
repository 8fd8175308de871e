//! Looks at the content of blocks that no root proves and one endpoint alone has given: others are asked for it, until as many have
//! given the same as a block needs witnesses. The block's hash says nothing of it.

use crate::window::Window;
use chain::{Chain, Head, Rpc, Witnesses, find_content_witnesses};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use topics::B256;

/// Blocks that are asked for at the same time, the lowest first.
const MAX_BLOCKS: usize = 8;
/// Between two rounds, unless the first has taken a block out of doubt.
const PAUSE: Duration = Duration::from_secs(2);

/// Who gives the content of a block, and who gives another.
pub struct Looked {
    pub head: Head,
    /// A digest of what was compared.
    pub content: B256,
    pub found: Witnesses,
}

/// The looks under way. Dropping it ends them.
pub struct Contents {
    chain: Arc<Chain>,
    rpc: Arc<Rpc>,
    running: JoinSet<Looked>,
    paused_until: Option<Instant>,
    /// Contents that were outvoted in the look before.
    outvoted: HashSet<B256>,
}

impl Contents {
    pub fn new(chain: Arc<Chain>, rpc: Arc<Rpc>) -> Self {
        Self { chain, rpc, running: JoinSet::new(), paused_until: None, outvoted: HashSet::new() }
    }

    /// Begins the next round, if blocks are in doubt and it is due.
    pub fn ask(&mut self, window: &Window) {
        let now = Instant::now();
        if !self.running.is_empty() || self.paused_until.is_some_and(|until| now < until) {
            return;
        }
        for (head, content) in window.doubts().take(MAX_BLOCKS) {
            // With one witness a second word shows whether anybody contradicts.
            let (rpc, verify, needed) = (self.rpc.clone(), self.chain.verify, self.chain.witnesses.max(2));
            self.running.spawn(async move {
                let found = find_content_witnesses(&rpc, verify, head.hash, content, needed).await;
                Looked { head, content, found }
            });
        }
        if !self.running.is_empty() {
            self.paused_until = Some(now + PAUSE);
        }
    }

    /// Waits for the outcome of a look, for ever if none is under way.
    pub async fn next(&mut self) -> Looked {
        match self.running.join_next().await {
            Some(ended) => self.end(ended),
            None => std::future::pending().await,
        }
    }

    /// An outcome that is there already.
    pub fn try_next(&mut self) -> Option<Looked> {
        self.running.try_join_next().map(|ended| self.end(ended))
    }

    fn end(&mut self, ended: Result<Looked, tokio::task::JoinError>) -> Looked {
        // Not aborted: only dropping the set aborts. So it panicked.
        let looked = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        if self.confirms(&looked.found) {
            self.paused_until = None;
        }
        looked
    }

    /// Whether enough providers give the content, and most of those that answer.
    pub fn confirms(&self, found: &Witnesses) -> bool {
        found.count_with() >= self.chain.witnesses && found.count_with() > found.count_against()
    }

    /// Whether as many providers as a block needs witnesses give other content, and most of those that answer, in two looks
    /// running.
    pub fn refutes(&mut self, Looked { content, found, .. }: &Looked) -> bool {
        if !found.refute(self.chain.witnesses) {
            self.outvoted.remove(content);
            return false;
        }
        let is_second = self.outvoted.remove(content);
        if !is_second {
            self.outvoted.insert(*content);
        }
        is_second
    }
}
