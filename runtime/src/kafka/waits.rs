//! For what a partition is held, while the others of its stage go on, and whether it is over.

use super::client::Kafka;
use super::hanging::{MAX_OPEN, OpenTransaction};
use super::offsets::{CALL_TIMEOUT, Ends, GroupOffsets, group_remedy};
use super::unanswered;
use crate::failure::Failure;
use rdkafka::consumer::BaseConsumer;
use std::collections::BTreeMap;
use std::time::Duration;
use topics::Topic;

/// How long a look waits for offsets. Its connection is kept from one to the next, and may take longer to come.
const OFFSETS_PATIENCE: Duration = Duration::from_secs(1);

/// For what a partition is held.
#[derive(Clone, Debug)]
pub enum Wait {
    /// Somebody has left a transaction open in it.
    Transaction(OpenTransaction),
    /// Kafka does not tell the offsets that this group has committed for the partition in these topics, as while a transaction holds them.
    Offsets { group: &'static str, topics: Vec<Topic> },
    /// No broker tells its end in one of these topics.
    Silence { topics: Vec<Topic>, cause: String },
}

impl Wait {
    /// How long it is nothing to tell. A transaction of which no broker has lost sight is over by then, and a partition whose broker is
    /// restarted has another leader.
    pub(crate) const fn patience(&self) -> Duration {
        match self {
            Self::Transaction(_) | Self::Offsets { .. } => MAX_OPEN,
            Self::Silence { .. } => CALL_TIMEOUT,
        }
    }

    /// What a person can do about it, once it has lasted for so long.
    pub(crate) fn remedy(&self, lasts: Duration) -> String {
        match self {
            Self::Transaction(open) => open.remedy(lasts),
            Self::Offsets { group, .. } => format!("its offsets are not told for {lasts:.0?}; {}", group_remedy(group)),
            Self::Silence { cause, .. } => cause.clone(),
        }
    }

    /// In a few words.
    pub(crate) fn summary(&self) -> String {
        match self {
            Self::Transaction(open) => format!("a transaction on {}", open.name),
            Self::Offsets { group, .. } => format!("the offsets of {group}, which a transaction holds"),
            Self::Silence { cause, .. } => format!("an answer: {cause}"),
        }
    }
}

impl Kafka {
    /// For what whoever needs these topics waits in each of these partitions that does not answer. Blocks.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn unanswered(&self, topics: &[Topic], partitions: &[i32]) -> Result<BTreeMap<i32, Wait>, Failure> {
        let (client, mut waits) = (Ends::open(self)?, BTreeMap::new());
        for topic in topics {
            // One that is silent in a topic is held, whatever the others tell.
            let asked: Vec<i32> = partitions.iter().copied().filter(|partition| !waits.contains_key(partition)).collect();
            let (_, unanswered) = unanswered::ends(&client.inner, &self.name(*topic), &asked)?;
            let wait = |(partition, cause)| (partition, Wait::Silence { topics: topics.to_vec(), cause });
            waits.extend(unanswered.into_iter().map(wait));
        }
        Ok(waits)
    }
}

/// Looks whether what partitions wait for is over, on connections that it keeps.
pub(crate) struct WaitLooks {
    kafka: Kafka,
    committed: Option<BaseConsumer>,
    ends: Option<Ends>,
    offsets: Option<GroupOffsets>,
}

impl WaitLooks {
    /// Connects to nothing yet.
    pub const fn new(kafka: Kafka) -> Self {
        Self { kafka, committed: None, ends: None, offsets: None }
    }

    /// For what the partition waits still; `None` for nothing. Blocks.
    ///
    /// # Errors
    /// When that can't be seen.
    pub fn look(&mut self, partition: i32, wait: &Wait) -> Result<Option<Wait>, Failure> {
        let kafka = &self.kafka;
        match wait {
            Wait::Transaction(open) => {
                let committed = open_once(&mut self.committed, || Ok(kafka.lookup_config("lookup").create()?))?;
                let all = open_once(&mut self.ends, || Ends::open(kafka))?;
                let (stable, end) = all.with_stable(committed, open.topic, open.partition)?;
                Ok((!open.is_over(stable, end)).then(|| wait.clone()))
            }
            Wait::Offsets { group, topics } => {
                let offsets = open_once(&mut self.offsets, || GroupOffsets::open(kafka, group))?;
                let partitions: Vec<_> = topics.iter().map(|topic| (*topic, partition)).collect();
                Ok((!offsets.are_told(&partitions, OFFSETS_PATIENCE)?).then(|| wait.clone()))
            }
            Wait::Silence { topics, .. } => {
                let client = &open_once(&mut self.ends, || Ends::open(kafka))?.inner;
                for topic in topics {
                    let name = kafka.name(*topic);
                    if let Some(cause) = unanswered::cause(client, &name, partition)? {
                        return Ok(Some(Wait::Silence { topics: topics.clone(), cause }));
                    }
                }
                Ok(None)
            }
        }
    }
}

fn open_once<T>(kept: &mut Option<T>, open: impl FnOnce() -> Result<T, Failure>) -> Result<&T, Failure> {
    match kept {
        Some(kept) => Ok(kept),
        none => Ok(none.insert(open()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;

    #[test]
    fn what_is_told_of_a_partition_that_waits_for_offsets_has_the_command() {
        let wait = Wait::Offsets { group: "lab", topics: vec![Topic::Blocks] };
        let told = wait.remedy(Duration::from_secs(50));
        assert!(told.contains("group lab") && told.contains("kafka-transactions.sh"), "{told}");
    }

    #[test]
    fn a_partition_without_a_leader_is_named_and_the_others_of_its_topic_are_not() {
        let (cluster, topics) = (MockCluster::new(1).unwrap(), [Topic::Events, Topic::State]);
        topics.iter().for_each(|topic| cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap());
        let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
        let all: Vec<i32> = (0..Topic::Events.partitions()).collect();
        assert!(kafka.unanswered(&topics, &all).unwrap().is_empty());
        cluster.partition_leader(Topic::State.name(), 3, None).unwrap();
        // A client that knows who led it is told by its next request.
        let waits = kafka.unanswered(&topics, &all).unwrap();
        assert_eq!(waits.keys().collect::<Vec<_>>(), [&3]);
        let told = waits[&3].remedy(Duration::ZERO);
        assert!(told.contains("payment.state/3") && told.contains("--describe --topic payment.state"), "{told}");
        let mut looks = WaitLooks::new(kafka.clone());
        assert!(looks.look(3, &waits[&3]).unwrap().is_some());
        cluster.partition_leader(Topic::State.name(), 3, Some(1)).unwrap();
        let over = (0..10).any(|_| looks.look(3, &waits[&3]).unwrap().is_none());
        assert!(over, "it has one again");
        assert!(kafka.unanswered(&topics, &[]).unwrap().is_empty());
        // As for who reads one alone.
        all.iter().for_each(|partition| cluster.partition_leader(Topic::State.name(), *partition, None).unwrap());
        for asked in [&all[..], &[6]] {
            let waits = kafka.unanswered(&topics, asked).unwrap();
            assert!(waits.keys().eq(asked) && waits[&6].remedy(Duration::ZERO).contains("payment.state/6"), "{waits:?}");
        }
    }
}
