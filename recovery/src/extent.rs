//! Which partitions a comparison reaches, and what it leaves out.

use runtime::Failure;
use runtime::kafka::{Backlog, Offsets, Unanswered};
use std::collections::BTreeMap;
use topics::Topic;

/// What has to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All partitions of both topics.
    Whole,
    /// Those that answer. Topics that are new to the database are compared whole all the same.
    Answered,
}

impl Extent {
    /// The ends of those that have to be compared, and why others don't answer. For all of them a slow broker gets the time of any call:
    /// nothing is written yet that would wait meanwhile.
    pub fn ends(self, backlog: &Backlog, topic: Topic) -> Result<(Offsets, Unanswered), Failure> {
        match self {
            Self::Whole => Ok((backlog.ends(topic)?, Unanswered::new())),
            Self::Answered => backlog.answered_ends(topic),
        }
    }
}

/// Partitions that were not compared, since they do not answer, and why.
pub type LeftOut = BTreeMap<(Topic, i32), String>;

/// For which partitions whoever has to compare them waits.
pub fn waits_for(left_out: &LeftOut) -> Option<String> {
    let causes: Vec<&str> = left_out.values().map(String::as_str).collect();
    (!causes.is_empty()).then(|| causes.join("; "))
}
