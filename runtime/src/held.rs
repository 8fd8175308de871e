//! Partitions that a stage holds while something in Kafka is not over, such as a transaction that somebody has left open, or a broker that
//! is away. The others go on; each that is held is looked at in its turn, and told if it waits for long.
//!
//! Looks are taken beside the loop of the stage: a broker that has lost sight of a transaction may be slow to answer, or not answer at all,
//! and meanwhile the others go on.

use crate::failure::Failure;
use crate::kafka::{Kafka, Wait, WaitLooks};
use crate::stage::Notice;
use anyhow::anyhow;
use base::locked;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How often it is looked whether one may go on. They take turns, since a look takes a while.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// How often those that wait are told.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// What a look finds of a partition that needs to be held no longer, or for what it waits still.
pub type Found<F> = Result<Result<F, Wait>, Failure>;

/// Takes a look at a partition that is held for this.
type Look<F> = dyn Fn(i32, &Wait) -> Found<F> + Send + Sync;

/// The partitions that a stage holds, and the look that is taken at one.
pub struct HeldPartitions<F> {
    stage: &'static str,
    /// What of a partition waits, and what goes on.
    meaning: &'static str,
    held: BTreeMap<i32, Held>,
    look: Arc<Look<F>>,
    looked: Option<Instant>,
    running: Option<(i32, JoinHandle<Found<F>>)>,
    told: Option<Instant>,
    /// The log has it that looks fail.
    is_told: bool,
}

struct Held {
    wait: Wait,
    since: Instant,
    looked: Instant,
    /// Why the last look failed.
    failed: Option<String>,
    notice: Notice,
}

impl Held {
    /// A wait of another kind begins now, however long the one before has lasted.
    fn waits_for(&mut self, wait: Wait) {
        if std::mem::discriminant(&self.wait) != std::mem::discriminant(&wait) {
            self.since = Instant::now();
            self.notice.show(None);
        }
        self.wait = wait;
    }
}

impl<F: Send + 'static> HeldPartitions<F> {
    /// None yet. `meaning` is told of each; `find` is called on a thread of its own once what a partition
    /// waited for is over.
    pub fn of(
        stage: &'static str,
        meaning: &'static str,
        kafka: &Kafka,
        find: impl Fn(i32, &Wait) -> Found<F> + Send + Sync + 'static,
    ) -> Self {
        let looks = Mutex::new(WaitLooks::new(kafka.clone()));
        Self::looking(stage, meaning, move |partition, wait| match locked(&looks).look(partition, wait)? {
            Some(wait) => Ok(Err(wait)),
            None => find(partition, wait),
        })
    }

    fn looking(
        stage: &'static str,
        meaning: &'static str,
        look: impl Fn(i32, &Wait) -> Found<F> + Send + Sync + 'static,
    ) -> Self {
        let (held, look) = (BTreeMap::new(), Arc::new(look));
        Self { stage, meaning, held, look, looked: None, running: None, told: None, is_told: false }
    }

    /// Holds a partition from now on.
    pub fn hold(&mut self, partition: i32, wait: Wait) {
        let (stage, meaning) = (self.stage, self.meaning);
        tracing::warn!(stage, "partition {partition}: {meaning}; it waits for {}", wait.summary());
        let (now, notice) = (Instant::now(), Notice::of(format!("{stage}: partition {partition}")));
        self.held.insert(partition, Held { wait, since: now, looked: now, failed: None, notice });
        self.told = None;
    }

    /// Holds it no more. The others may have waited for the same, so the next is looked at soon.
    pub fn release(&mut self, partition: i32) {
        self.held.remove(&partition);
        self.looked = None;
    }

    /// Holds none any more.
    pub fn clear(&mut self) {
        self.held.clear();
        // Its find would be of before.
        self.running = None;
        self.looked = None;
    }

    pub fn holds(&self, partition: i32) -> bool {
        self.held.contains_key(&partition)
    }

    /// Those that are held, in order.
    pub fn partitions(&self) -> Vec<i32> {
        self.held.keys().copied().collect()
    }

    /// Begins the next look, or takes in one that has ended: returns the partition that needs to be held no longer, with what was
    /// found. It is held until it is [released](Self::release). Those that wait for longer than may pass by itself are told, in
    /// `/health` ([`crate::stage::waiting`]), a metric and the log.
    ///
    /// # Errors
    /// `Halt` of a look. One that fails otherwise says nothing: its partition is held still.
    pub fn take_turn(&mut self) -> Result<Option<(i32, F)>, Failure> {
        let now = Instant::now();
        self.tell(now);
        let Some((partition, ended)) = self.running.take_if(|(_, look)| look.is_finished()) else {
            if self.running.is_none()
                && let Some((partition, wait)) = self.due(now)
            {
                let look = Arc::clone(&self.look);
                let thread = Builder::new().name("look".to_owned()).spawn(move || look(partition, &wait));
                self.running = Some((partition, thread.map_err(Failure::retry)?));
            }
            return Ok(None);
        };
        match ended.join().unwrap_or_else(|_| Err(Failure::Retry(anyhow!("it panicked")))) {
            Ok(found) => {
                self.is_told = false;
                let Some(held) = self.held.get_mut(&partition) else { return Ok(None) };
                held.failed = None;
                Ok(found.map_err(|wait| held.waits_for(wait)).ok().map(|found| (partition, found)))
            }
            Err(failure) => self.keep(partition, failure).map(|()| None),
        }
    }

    /// Holds it still, since it could not be released.
    ///
    /// # Errors
    /// A `failure` that does not pass.
    pub fn keep(&mut self, partition: i32, failure: Failure) -> Result<(), Failure> {
        if !matches!(failure, Failure::Retry(_)) {
            return Err(failure);
        }
        if !std::mem::replace(&mut self.is_told, true) {
            tracing::warn!(stage = self.stage, "partition {partition} is held still, will look again: {failure}");
        }
        // Its wait may be over: then this is all that tells why it is held.
        if let Some(held) = self.held.get_mut(&partition) {
            held.failed = Some(failure.to_string());
        }
        Ok(())
    }

    /// The partition to look at now, and for what it waits; `None` while it is too early.
    fn due(&mut self, now: Instant) -> Option<(i32, Wait)> {
        if self.looked.is_some_and(|looked| now - looked < LOOK_INTERVAL) {
            return None;
        }
        self.looked = Some(now);
        let (partition, next) = self.held.iter_mut().min_by_key(|(_, held)| held.looked)?;
        next.looked = now;
        Some((*partition, next.wait.clone()))
    }

    /// Also while a look waits for an answer.
    fn tell(&mut self, now: Instant) {
        if self.held.is_empty() || self.told.is_some_and(|told| now - told < TELL_INTERVAL) {
            return;
        }
        self.told = Some(now);
        for held in self.held.values_mut() {
            let lasts = now.saturating_duration_since(held.since);
            if lasts >= held.wait.patience() {
                let failed = held.failed.as_ref().map(|failure| format!("; the last look at it failed: {failure}"));
                let (meaning, remedy) = (self.meaning, held.wait.remedy(lasts));
                held.notice.show(Some(format!("{meaning}: {remedy}{}", failed.unwrap_or_default())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use topics::Topic;

    fn wait() -> Wait {
        Wait::Offsets { group: "lab", topics: vec![Topic::Blocks] }
    }

    fn silence() -> Wait {
        Wait::Silence { topics: vec![Topic::Events], cause: "payment.events/3 does not answer".to_owned() }
    }

    fn never(_: i32, wait: &Wait) -> Found<()> {
        Ok(Err(wait.clone()))
    }

    #[test]
    fn a_partition_that_waits_for_long_is_told_with_the_command_and_goes_when_it_goes_on() {
        let told = || stage::cause_of("lab: partition 3");
        let (mut held, start) = (HeldPartitions::looking("lab", "others go on", never), Instant::now());
        held.hold(3, wait());
        held.tell(start + Duration::from_secs(20));
        assert_eq!(told(), None, "a broker may still end it");
        held.tell(start + Duration::from_secs(50));
        assert!(told().is_some_and(|told| told.contains("others go on") && told.contains("kafka-transactions.sh")));
        held.release(3);
        assert_eq!(told(), None);
    }

    #[test]
    fn a_partition_that_does_not_answer_for_long_is_told_also_while_a_look_lasts() {
        let told = || stage::cause_of("silence: partition 3");
        let (answer, answers): (Sender<Found<()>>, Receiver<Found<()>>) = channel();
        let answers = Mutex::new(answers);
        let mut held = HeldPartitions::looking("silence", "others go on", move |_, _| locked(&answers).recv().unwrap());
        held.hold(3, silence());
        assert!(matches!(held.take_turn(), Ok(None)));
        held.tell(Instant::now() + Duration::from_secs(5));
        assert_eq!(told(), None, "its broker is restarted");
        held.tell(Instant::now() + Duration::from_secs(11));
        assert!(told().is_some_and(|told| told.contains("payment.events/3")), "{:?}", told());
        let later = Wait::Silence { topics: Vec::new(), cause: "another cause".to_owned() };
        held.held.get_mut(&3).unwrap().wait = later;
        held.tell(Instant::now() + Duration::from_secs(13));
        assert!(held.running.is_some() && told().is_some_and(|told| told.contains("another cause")));
        held.clear();
        assert_eq!(told(), None);
        drop(answer);
    }

    #[test]
    fn those_that_are_held_are_looked_at_in_turn_and_not_too_often() {
        let (mut held, start) = (HeldPartitions::looking("turns", "others go on", never), Instant::now());
        held.hold(1, wait());
        held.hold(2, wait());
        let mut look = |seconds| held.due(start + Duration::from_secs(seconds)).map(|(number, _)| number);
        assert_eq!([10, 11, 14, 18].map(&mut look), [Some(1), None, Some(2), Some(1)]);
        held.release(1);
        assert_eq!((held.partitions(), held.holds(1), held.holds(2)), (vec![2], false, true));
    }

    /// Looks at a partition, each with the next answer that is sent.
    fn looks(stage: &'static str) -> (HeldPartitions<i64>, Sender<Found<i64>>) {
        let (sender, answers): (Sender<Found<i64>>, Receiver<Found<i64>>) = channel();
        let answers = Mutex::new(answers);
        let look = move |partition, _: &Wait| {
            assert_eq!(partition, 3);
            answers.lock().unwrap().recv().unwrap()
        };
        let mut held = HeldPartitions::looking(stage, "others go on", look);
        held.hold(3, wait());
        (held, sender)
    }

    /// Ends the look that is taken, or the next one.
    fn end(looks: &mut HeldPartitions<i64>) -> Result<Option<i64>, Failure> {
        looks.looked = None;
        while looks.running.is_none() {
            looks.take_turn()?;
        }
        while !looks.running.as_ref().is_some_and(|(_, look)| look.is_finished()) {
            std::thread::yield_now();
        }
        looks.take_turn().map(|freed| freed.map(|(_, found)| found))
    }

    #[test]
    fn a_broker_that_does_not_answer_a_look_delays_nobody_and_what_it_is_asked_about_is_held_still() {
        let (mut looks, answers) = looks("slow");
        for _ in 0..3 {
            assert!(matches!(looks.take_turn(), Ok(None)), "the look goes on beside it");
        }
        answers.send(Err(Failure::Retry(anyhow!("no leader")))).unwrap();
        assert!(matches!(end(&mut looks), Ok(None)), "a failure is no reason to begin anew");
        assert!(looks.holds(3) && looks.is_told);
        answers.send(Ok(Err(silence()))).unwrap();
        assert!(
            matches!(end(&mut looks), Ok(None)) && matches!(looks.held[&3].wait, Wait::Silence { .. }),
            "for what it waits now"
        );
        answers.send(Ok(Ok(7))).unwrap();
        assert!(matches!(end(&mut looks), Ok(Some(7))));
        assert!(!looks.is_told && looks.holds(3), "what is claimed for it is decided about first");
        looks.release(3);
        assert!(!looks.holds(3));
    }

    #[test]
    fn why_a_partition_is_held_still_is_told_although_that_is_over_for_which_it_waited() {
        let (mut looks, answers) = looks("failing");
        let told = |looks: &mut HeldPartitions<i64>| {
            looks.tell(Instant::now() + Duration::from_secs(3600));
            looks.told = None;
            stage::cause_of("failing: partition 3").unwrap()
        };
        answers.send(Err(Failure::Retry(anyhow!("Postgres is away")))).unwrap();
        end(&mut looks).unwrap();
        assert!(told(&mut looks).contains("failed: Postgres is away"));
        answers.send(Ok(Err(wait()))).unwrap();
        end(&mut looks).unwrap();
        assert!(!told(&mut looks).contains("failed"), "{}", told(&mut looks));
    }

    /// A transaction that has just begun would be told as one that hangs, with the command that aborts it.
    #[test]
    fn what_a_partition_waits_for_since_now_is_not_told_as_what_has_lasted_since_before() {
        let (mut looks, answers) = looks("another");
        let told = |looks: &mut HeldPartitions<i64>, seconds| {
            looks.told = None;
            looks.tell(Instant::now() + Duration::from_secs(seconds));
            stage::cause_of("another: partition 3")
        };
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        looks.held.get_mut(&3).unwrap().since = ago(60);
        assert!(told(&mut looks, 0).is_some());
        answers.send(Ok(Err(silence()))).unwrap();
        end(&mut looks).unwrap();
        assert_eq!(stage::cause_of("another: partition 3"), None);
        assert_eq!(told(&mut looks, 1), None);
        looks.held.get_mut(&3).unwrap().since = ago(11);
        answers.send(Ok(Err(silence()))).unwrap();
        end(&mut looks).unwrap();
        assert!(told(&mut looks, 0).is_some(), "it lasts");
    }

    #[test]
    fn what_a_look_finds_of_before_all_was_cleared_is_of_no_partition_that_is_held_since() {
        let (mut looks, answers) = looks("cleared");
        assert!(matches!(looks.take_turn(), Ok(None)) && looks.running.is_some());
        looks.clear();
        looks.hold(3, wait());
        answers.send(Ok(Ok(1))).unwrap();
        answers.send(Ok(Ok(2))).unwrap();
        // Which of both looks gets which answer is open; one of them is taken in.
        assert!(matches!(end(&mut looks), Ok(Some(1 | 2))) && looks.running.is_none());
        assert!(matches!(looks.take_turn(), Ok(None)));
    }

    #[test]
    fn what_does_not_pass_ends_the_stage_even_if_a_look_finds_it() {
        let (mut looks, answers) = looks("ended");
        answers.send(Err(Failure::Halt(anyhow!("the topics are another installation's")))).unwrap();
        assert!(matches!(end(&mut looks), Err(Failure::Halt(_))));
        drop(answers);
        // It panics.
        let held = matches!(end(&mut looks), Ok(None)) && looks.holds(3);
        assert!(held);
    }
}
