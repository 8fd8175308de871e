//! Partitions whose end no broker tells: they have no leader, or it can't be reached. A reader of all of a topic goes on with the others
//! where it can, and else says for which it waits.

use super::offsets::{Offsets, ask_each, end_offsets, end_offsets_within};
use crate::failure::Failure;
use anyhow::anyhow;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use std::collections::BTreeMap;
use std::time::Duration;
use topics::Topic;

/// How long all of a topic are asked for together, and then each for itself. A broker that has just begun is given that much.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why partitions of a topic do not answer.
pub type Unanswered = BTreeMap<i32, String>;

/// The next offsets of those of these partitions that answer, under this client's isolation level, and why others don't.
pub(super) fn ends<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    name: &str,
    partitions: &[i32],
) -> Result<(Offsets, Unanswered), Failure> {
    if partitions.is_empty() {
        return Ok((Offsets::new(), Unanswered::new()));
    }
    match end_offsets_within(client, name, partitions.iter().copied(), PATIENCE) {
        // Nothing is told of any of them where one has no leader.
        Err(Failure::Retry(_)) => one_by_one(client, name, partitions),
        outcome => Ok((outcome?.into_iter().collect(), Unanswered::new())),
    }
}

/// The next offsets of all partitions of the topic that has this name.
///
/// # Errors
/// When one does not answer for as long as any call may take; it is named.
pub(super) fn all_ends<C: ConsumerContext>(client: &BaseConsumer<C>, name: &str, topic: Topic) -> Result<Offsets, Failure> {
    let partitions = Vec::from_iter(0..topic.partitions());
    let ends = end_offsets(client, name, partitions.iter().copied());
    Ok(ends.map_err(|failed| named(client, name, &partitions, failed))?.into_iter().collect())
}

/// Names the partitions for which a request for all of them has `failed`.
fn named<C: ConsumerContext>(client: &BaseConsumer<C>, name: &str, partitions: &[i32], failed: Failure) -> Failure {
    match one_by_one(client, name, partitions) {
        // As where no broker can be reached.
        Ok((ends, _)) if ends.is_empty() => failed,
        Ok((_, unanswered)) if unanswered.is_empty() => {
            Failure::Retry(anyhow!("the end offsets of {name} were not told, and are by now"))
        }
        Ok((_, unanswered)) => Failure::Retry(anyhow!(Vec::from_iter(unanswered.into_values()).join("; "))),
        Err(failure) => failure,
    }
}

/// [`ends`] where not all answer.
fn one_by_one<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    name: &str,
    partitions: &[i32],
) -> Result<(Offsets, Unanswered), Failure> {
    let (mut ends, mut unanswered) = (Offsets::new(), Unanswered::new());
    let ask = |partition| end_offsets_within(client, name, [partition], PATIENCE);
    for (partition, answer) in ask_each(partitions, &format!("the end of a partition of {name}"), ask)? {
        match answer {
            Ok(answer) => ends.extend(answer),
            Err(failure @ Failure::Retry(_)) => {
                let told = format!(
                    "{name}/{partition} does not answer; `kafka-topics.sh --bootstrap-server $KAFKA_BROKERS --describe --topic {name}` \
                     shows whether it has a leader: {failure}"
                );
                unanswered.insert(partition, told);
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok((ends, unanswered))
}

/// Why a partition does not answer; `None` where it does.
pub(super) fn cause<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    name: &str,
    partition: i32,
) -> Result<Option<String>, Failure> {
    Ok(one_by_one(client, name, &[partition])?.1.remove(&partition))
}
