//! Postgres catches up with the topics: what they have gained since the offsets that the database knows is compared with its rows,
//! and what it lacks is written again. Comparing costs as much as was gained, not as much as there is.
//!
//! - Topics that are new to the database, and another installation's, are refused first.
//! - Then `payment.events`: events that the database does not know are written down as told, before anyone could make them again.
//!   Those that wait in the outbox although Kafka has them are taken out of it.
//! - Then `payment.intents`: payments, static addresses and idempotency keys that are missing are inserted, and the sequences of
//!   their accounts moved past them.
//!
//! Several processes may compare at the same time. The offsets are written in the transaction of their records, and only by the
//! one that finds them where it began.

use crate::extent::{Extent, LeftOut, waits_for};
use crate::installation::{installation, note_compared, note_other};
use crate::known::{self, Known, LastRecords};
use anyhow::anyhow;
use base::metrics;
use deadpool_postgres::{Client, GenericClient};
use merchants::{accounts, note_restored_accounts, restore_merchants};
use payments::intents::{Issued, Origin, account, installation as installation_of, issued};
use payments::store::{self, RestoredRows};
use runtime::compared::{IntentsTopic, compared_topic};
use runtime::db::lock;
use runtime::kafka::{Backlog, Offsets};
use runtime::{Failure, FoldStage, Kafka};
use std::collections::{BTreeMap, HashMap};
use tokio::runtime::Handle;
use topics::wire::{PaymentEvent, PaymentIntent};
use topics::{Message as _, Topic, frame};
use uuid::Uuid;

/// The stage that restores, as far as others see it, and the limits of its transactions.
pub const RESTORING: FoldStage =
    FoldStage { stage: "recovery", topic: Topic::Intents, max_records: 20_000, max_bytes: 64 * 1024 * 1024, on_return: None };

/// The topics that Postgres is compared with.
pub const COMPARED: [Topic; 2] = [Topic::Events, Topic::Intents];

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Findings {
    pub payments: usize,
    pub addresses: usize,
    pub keys: u64,
    pub events: u64,
    /// Another installation that writes to our topics.
    pub foreign: Option<Uuid>,
}

impl Findings {
    const fn had_lost(&self) -> bool {
        self.payments + self.addresses > 0 || self.events > 0
    }
}

/// One run of the comparison.
pub struct CatchUp<'a> {
    pub handle: &'a Handle,
    pub kafka: &'a Kafka,
    pub backlog: &'a Backlog,
    pub client: &'a mut Client,
}

impl CatchUp<'_> {
    /// Compares up to the present ends of these topics. Returns whether the database had lost something, and what was left out.
    ///
    /// # Errors
    /// `Retry` when Kafka or the database fails, or a partition does not answer that has to, or a topic lacks records that were compared
    /// before; `Halt` when this database is new to the topics and they are another installation's.
    pub fn run(&mut self, topics: &[Topic], extent: Extent) -> Result<(bool, LeftOut), Failure> {
        let own = self.handle.block_on(installation(&*self.client))?;
        let compared = self.handle.block_on(compared_topic(&*self.client))?;
        let (reached, name) =
            (IntentsTopic::reached(self.kafka, self.backlog, Topic::Intents)?, self.kafka.name(Topic::Intents));
        let left = compared.as_ref().filter(|compared| reached.differs_from(compared));
        let (are_new, mut left_out) = (compared.is_none() || left.is_some(), LeftOut::new());
        // Intents say whose topics are that are new.
        let intents = if are_new || topics.contains(&Topic::Intents) {
            self.ends(Topic::Intents, extent, &mut left_out)?
        } else {
            Offsets::new()
        };
        let events = self.ends(Topic::Events, extent, &mut left_out)?;
        if are_new {
            if let Some(cause) = waits_for(&left_out) {
                return Err(Failure::Retry(anyhow!(cause)));
            }
            self.refuse_foreign(own, &intents)?;
        }
        if let Some(left) = left {
            self.forget_lost(reached.is_in_another_cluster_than(left), extent)?;
        }
        let mut findings = Findings::default();
        if topics.contains(&Topic::Events) {
            self.topic(Topic::Events, &events, async |db, records| {
                let told: Vec<(Uuid, PaymentEvent)> = records.iter().filter_map(|read| read_event(&read.value)).collect();
                findings.events += store::keep_told_events(db, &told).await?;
                Ok(())
            })?;
        }
        if topics.contains(&Topic::Intents) {
            self.topic(Topic::Intents, &intents, async |db, records| {
                let read: Vec<ReadIntent> = records.iter().filter_map(ReadIntent::of).collect();
                restore(db, &name, own, &read, &mut findings).await?;
                match findings.foreign {
                    Some(other) => note_other(db, other).await,
                    None => Ok(()),
                }
            })?;
            // One that was compared with others has to get our intents first.
            let says_more = left.is_none() && compared.as_ref().is_none_or(|compared| reached.says_more_than(compared));
            if says_more && left_out.is_empty() {
                self.handle.block_on(note_compared(&*self.client, &reached))?;
            }
        }
        report(&findings);
        Ok((findings.had_lost(), left_out))
    }

    /// Up to where a topic can be compared.
    fn ends(&self, topic: Topic, extent: Extent, left_out: &mut LeftOut) -> Result<Offsets, Failure> {
        let (ends, unanswered) = extent.ends(self.backlog, topic)?;
        left_out.extend(unanswered.into_iter().map(|(partition, cause)| ((topic, partition), cause)));
        Ok(ends)
    }

    /// Refuses topics that are new to this database and another installation's, before anything of theirs is written: intents say whose
    /// they are, events do not.
    fn refuse_foreign(&mut self, own: Uuid, ends: &Offsets) -> Result<(), Failure> {
        let Self { handle, backlog, client, .. } = self;
        // What is known of them may be of others that have their name.
        let mut next = Offsets::new();
        while ends.iter().any(|(partition, end)| next.get(partition).copied().unwrap_or(0) < *end) {
            let mut foreign: Vec<(Option<Uuid>, Uuid)> = Vec::new();
            let limits = (RESTORING.max_records, RESTORING.max_bytes);
            next = backlog.read(Topic::Intents, &next, ends, limits, |record| {
                let intent = frame::decode::<PaymentIntent>(record.payload()).ok();
                foreign.extend(intent.and_then(|intent| Some((intent.payment_id.parse().ok(), other_than(own, &intent)?))));
            })?;
            let ids: Vec<Uuid> = foreign.iter().filter_map(|(id, _)| *id).collect();
            // What the database has is its own by now.
            let lost = handle.block_on(store::lost_ids(&**client, &ids))?;
            if let Some((_, other)) = foreign.iter().find(|(id, _)| id.is_none_or(|id| lost.contains(&id))) {
                return Err(refused(own, *other));
            }
        }
        Ok(())
    }

    /// Forgets what is known of topics that take the place of others, and that they don't have: another cluster's of these names had it,
    /// or they were lost before they were compared to their end. They get all of our intents afterwards.
    fn forget_lost(&mut self, are_in_another_cluster: bool, extent: Extent) -> Result<(), Failure> {
        let Self { handle, kafka, backlog, client } = self;
        if are_in_another_cluster {
            tracing::warn!(
                "Kafka is another cluster than before (KAFKA_BROKERS): its topics are compared from their beginning"
            );
        }
        for topic in COMPARED {
            let name = kafka.name(topic);
            let kept = if are_in_another_cluster {
                Some(Known::default())
            } else {
                known::lost(backlog, topic, &handle.block_on(known::load(&**client, &name))?, extent)?
            };
            if let Some(kept) = kept {
                handle.block_on(known::rewind(client, topic, &name, &kept))?;
            }
        }
        Ok(())
    }

    /// Hands a topic's records to `apply`.
    fn topic(
        &mut self,
        topic: Topic,
        ends: &Offsets,
        mut apply: impl AsyncFnMut(&deadpool_postgres::Transaction<'_>, &[ReadRecord]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Self { handle, kafka, backlog, client } = self;
        let name = kafka.name(topic);
        loop {
            let known = handle.block_on(known::load(&**client, &name))?;
            if ends.iter().all(|(partition, end)| known.next.get(partition).is_some_and(|next| next >= end)) {
                return Ok(());
            }
            let (records, gained) = gained(backlog, topic, &known, ends)?;
            handle.block_on(async {
                let transaction = client.transaction().await?;
                lock::begin_comparison(&transaction).await?;
                if known::load(&transaction, &name).await?.next != known.next {
                    // Another process has compared them.
                    return Ok(());
                }
                apply(&transaction, &records).await?;
                known::save(&transaction, &name, &gained.next, &gained.last).await?;
                Ok::<_, Failure>(transaction.commit().await?)
            })?;
        }
    }
}

/// The next records of a topic after those that are known, and up to where it is known with them.
///
/// # Errors
/// `Retry` when Kafka fails, or does not have what is known of a partition: nobody would see that any more once what came after is known.
fn gained(backlog: &Backlog, topic: Topic, known: &Known, ends: &Offsets) -> Result<(Vec<ReadRecord>, Known), Failure> {
    let (mut records, mut last) = (Vec::new(), LastRecords::new());
    let next = backlog.read(topic, &known.next, ends, (RESTORING.max_records, RESTORING.max_bytes), |record| {
        records.push(ReadRecord { place: (record.partition(), record.offset()), value: record.payload().to_vec() });
        last.insert(record.partition(), record.mark());
    })?;
    // Looked at after the others were read: a partition may lose its end meanwhile.
    let has_more = |partition: &i32| next.get(partition) != known.next.get(partition);
    let before: LastRecords = known.last.iter().filter(|(p, _)| has_more(p)).map(|(p, mark)| (*p, mark.clone())).collect();
    match backlog.changed(topic, &before, ends)?.first() {
        Some(partition) => Err(Failure::Retry(anyhow!("{topic}/{partition} lacks records that Kafka had acknowledged"))),
        None => Ok((records, Known { next, last })),
    }
}

/// A record that was read.
struct ReadRecord {
    /// Partition and offset.
    place: (i32, i64),
    value: Vec<u8>,
}

fn read_event(value: &[u8]) -> Option<(Uuid, PaymentEvent)> {
    let event: PaymentEvent = frame::decode(value).inspect_err(|e| tracing::warn!("a record of payment.events: {e}")).ok()?;
    let id =
        event.payment_id.parse().inspect_err(|e| tracing::warn!("an event of payment {:?}: {e}", event.payment_id)).ok()?;
    Some((id, event))
}

struct ReadIntent {
    place: (i32, i64),
    intent: PaymentIntent,
}

impl ReadIntent {
    /// One that can't be read is the detector's to set aside.
    fn of(ReadRecord { place, value }: &ReadRecord) -> Option<Self> {
        let intent = frame::decode(value).inspect_err(|e| tracing::warn!("a record of payment.intents: {e}")).ok()?;
        Some(Self { place: *place, intent })
    }

    fn id(&self) -> Option<Uuid> {
        self.intent.payment_id.parse().ok()
    }

    /// Its name where it is set aside: anything may be in the place of an id.
    fn item(&self) -> String {
        let (partition, offset) = self.place;
        self.id().map_or_else(|| format!("{partition}/{offset}"), |id| id.to_string())
    }
}

async fn restore(
    db: &impl GenericClient,
    topic: &str,
    own: Uuid,
    intents: &[ReadIntent],
    findings: &mut Findings,
) -> Result<(), Failure> {
    // A compacted topic may have several of an address; the last one counts.
    let by_id: HashMap<Uuid, &ReadIntent> = intents.iter().filter_map(|read| Some((read.id()?, read))).collect();
    let ids: Vec<Uuid> = by_id.keys().copied().collect();
    let lost = store::lost_ids(db, &ids).await?;
    let mut restorable: Vec<(Issued, Origin)> = Vec::new();
    let mut highest: BTreeMap<String, u32> = BTreeMap::new();
    let without_id = intents.iter().filter(|read| read.id().is_none());
    for read in lost.iter().filter_map(|id| by_id.get(id).copied()).chain(without_id) {
        let intent = &read.intent;
        let other = other_than(own, intent);
        findings.foreign = other.or(findings.foreign);
        // Its address is given out, whoever did it, and whether or not the rest can be read.
        if let Ok((account, index)) = account(intent)
            && (other.is_none() || known_account(db, account).await?)
        {
            highest.entry(account.to_owned()).and_modify(|known| *known = index.max(*known)).or_insert(index);
        }
        match issued(intent) {
            _ if other.is_some() => {}
            Ok(issued) => restorable.push(issued),
            Err(error) => set_aside(db, topic, &read.item(), &intent.key(), &error.to_string()).await?,
        }
    }
    accounts::move_sequences(db, &highest).await?;
    if restorable.is_empty() {
        return Ok(());
    }
    restore_merchants(db, &restorable.iter().map(|(issued, _)| issued.merchant()).collect::<Vec<_>>()).await?;
    let accounts: Vec<_> = restorable.iter().map(|(issued, _)| (issued.merchant(), issued.account().0, issued.id())).collect();
    note_restored_accounts(db, &accounts).await?;
    let RestoredRows { payments, addresses, keys, refused } = store::restore_issued(db, &restorable).await?;
    for (issued, cause) in refused {
        let address = match &issued {
            Issued::Payment(payment) => payment.address,
            Issued::Address(address) => address.address,
        };
        set_aside(db, topic, &issued.id().to_string(), &format!("{address:#x}"), &cause).await?;
    }
    findings.payments += payments;
    findings.addresses += addresses;
    findings.keys += keys;
    Ok(())
}

/// Names one that stays lost, and `/health` counts it; the others are restored.
async fn set_aside(db: &impl GenericClient, topic: &str, id: &str, address: &str, cause: &str) -> Result<(), Failure> {
    let cause = format!(
        "the payment or static address {id} at {address} is lost and can't be restored: {cause}. Money to it is another's, or an orphan; `ctrip intents forget {id}` \
         drops this note"
    );
    tracing::error!("{cause}");
    let partition = Topic::Intents.partition_of(address);
    RESTORING.set_aside(db, (topic, partition), id, 0, &cause).await
}

/// The installation that wrote the intent, if it is another one.
fn other_than(own: Uuid, intent: &PaymentIntent) -> Option<Uuid> {
    Some(installation_of(intent)).filter(|other| !other.is_nil() && *other != own)
}

async fn known_account(db: &impl GenericClient, fingerprint: &str) -> Result<bool, Failure> {
    Ok(db.query_opt("SELECT FROM xpubs WHERE fingerprint = $1", &[&fingerprint]).await?.is_some())
}

fn refused(own: Uuid, other: Uuid) -> Failure {
    Failure::Halt(anyhow!(
        "payment.intents has the addresses of installation {other}, and the database is that of {own}, which is new here: two \
         installations on one xpub would give the same address to two customers. Give this one its own Kafka (KAFKA_BROKERS) or a \
         TOPIC_PREFIX, and a CTRIP_XPUB of its own. If its database takes the place of the one that was lost: `ctrip intents adopt {other}`"
    ))
}

fn report(findings: &Findings) {
    let Findings { payments, addresses, keys, events, foreign } = findings;
    if let Some(other) = foreign {
        tracing::error!(
            "installation {other} writes its intents to our payment.intents: with the same xpub it gives out the same addresses. Stop \
             it, or give it a TOPIC_PREFIX and a CTRIP_XPUB of its own"
        );
    }
    let rows = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    for (what, count) in [("payments", rows(*payments)), ("addresses", rows(*addresses)), ("keys", *keys), ("events", *events)]
    {
        if count > 0 {
            metrics::RESTORED.counter(&[("what", what)]).increment(count);
        }
    }
    if findings.had_lost() {
        tracing::warn!(
            "Postgres had lost what the topics have, as after a restore: {payments} payments, {addresses} static addresses, {keys} \
             idempotency keys and {events} events are there again. Merchants' settings, API keys and webhooks are in no topic, and so as \
             old as the backup: a key that was revoked since works again. Compare with `ctrip merchants list` and `ctrip keys list`"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;
    use runtime::kafka::{Mark, TransactionalProducer};

    /// As after an unclean election: once later records are known, nobody would publish the lost ones again.
    #[test]
    fn what_a_partition_lost_while_it_did_not_answer_is_noticed_before_what_it_has_gained_is_known() {
        let (cluster, topic) = (MockCluster::new(1).unwrap(), Topic::Intents);
        cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap();
        let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
        let producer = TransactionalProducer::open(&kafka, "lab").unwrap();
        let transaction = producer.begin().unwrap();
        for (partition, count) in [(3, 6), (5, 2)] {
            let key = (0..).map(|key: i32| key.to_string()).find(|key| topic.partition_of(key) == partition).unwrap();
            (0..count).for_each(|value| transaction.send(topic, &key, &[value]).unwrap());
        }
        transaction.commit().unwrap();
        let backlog = Backlog::open(&kafka).unwrap();
        let gained = |known: &Known, ends: &Offsets| gained(&backlog, topic, known, ends).map(|(records, _)| records.len());
        let (records, before) = super::gained(&backlog, topic, &Known::default(), &Offsets::from([(3, 4), (5, 2)])).unwrap();
        assert_eq!((records.len(), before.next.get(&3), before.last[&3].offset), (6, Some(&4), 3));

        cluster.partition_leader(topic.name(), 3, None).unwrap();
        assert_eq!(known::lost(&backlog, topic, &before, Extent::Answered).unwrap(), None, "it tells nothing");
        cluster.partition_leader(topic.name(), 3, Some(1)).unwrap();
        let ends = (0..10).find_map(|_| backlog.ends(topic).ok()).unwrap();
        assert_eq!(gained(&before, &ends).unwrap(), 2, "it is as it was");

        let mut other = before.clone();
        other.last.insert(3, Mark { offset: 3, bytes: vec![0; 12] });
        let refused = gained(&other, &ends).unwrap_err().to_string();
        assert!(refused.contains("payment.intents/3") && refused.contains("lacks records"), "{refused}");
        let kept = known::lost(&backlog, topic, &other, Extent::Answered).unwrap().unwrap();
        assert_eq!((kept.next[&3], kept.next[&5], kept.last.keys().collect::<Vec<_>>()), (0, 2, vec![&5]));
        assert_eq!(gained(&kept, &ends).unwrap(), 6);
    }
}
