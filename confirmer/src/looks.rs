//! Looks at partitions that are held, beside the loop that holds them: a broker that has lost sight of a transaction may be slow to
//! answer, or not answer at all, and meanwhile the others go on.

use anyhow::anyhow;
use runtime::{Failure, HeldPartitions};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// What a look finds of a partition that is held no more; `None` while it is held.
type Found = Result<Option<i64>, Failure>;

/// Takes a look at a partition that is held for this cause.
type Look<C> = dyn Fn(i32, &C) -> Found + Send + Sync;

/// The partitions that are held, and the look that is taken at one.
pub struct Looks<C> {
    held: HeldPartitions<C>,
    tell: fn(&C, Duration) -> String,
    look: Arc<Look<C>>,
    running: Option<(i32, JoinHandle<Found>)>,
    /// The log has it that looks fail.
    is_told: bool,
}

impl<C: Clone + Send + 'static> Looks<C> {
    /// `tell` says what a person can do once one is held for long.
    pub fn of(
        held: HeldPartitions<C>,
        tell: fn(&C, Duration) -> String,
        look: impl Fn(i32, &C) -> Found + Send + Sync + 'static,
    ) -> Self {
        Self { held, tell, look: Arc::new(look), running: None, is_told: false }
    }

    /// Begins the next look, or takes in one that has ended: returns the partition that needs to be held no longer, with what was
    /// found. It is held until it is [released](Self::release).
    ///
    /// # Errors
    /// `Halt` of a look. One that fails otherwise says nothing: its partition is held still.
    pub fn take_turn(&mut self) -> Result<Option<(i32, i64)>, Failure> {
        let Some((partition, ended)) = self.running.take_if(|(_, look)| look.is_finished()) else {
            if self.running.is_none()
                && let Some((partition, cause)) = self.held.due(self.tell)
            {
                let look = Arc::clone(&self.look);
                let thread = Builder::new().name("look".to_owned()).spawn(move || look(partition, &cause));
                self.running = Some((partition, thread.map_err(Failure::retry)?));
            }
            return Ok(None);
        };
        match ended.join().unwrap_or_else(|_| Err(Failure::Retry(anyhow!("it panicked")))) {
            Ok(found) => {
                self.is_told = false;
                Ok(found.map(|found| (partition, found)))
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
            tracing::warn!("partition {partition} is held still, will look again: {failure}");
        }
        Ok(())
    }

    /// Holds it no more.
    pub fn release(&mut self, partition: i32) {
        self.held.release(partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Looks at a partition, each with the next answer that is sent.
    fn looks() -> (Looks<&'static str>, Sender<Found>) {
        let mut held = HeldPartitions::of("looks");
        held.hold(3, "a transaction");
        let (sender, answers): (Sender<Found>, Receiver<Found>) = channel();
        let answers = Mutex::new(answers);
        let look = move |partition, cause: &&str| {
            assert_eq!((partition, *cause), (3, "a transaction"));
            answers.lock().unwrap().recv().unwrap()
        };
        (Looks::of(held, |cause, _| (*cause).to_owned(), look), sender)
    }

    /// Ends the look that is taken, or the next one.
    fn end(looks: &mut Looks<&'static str>) -> Found {
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
        let (mut looks, answers) = looks();
        for _ in 0..3 {
            assert!(matches!(looks.take_turn(), Ok(None)), "the look goes on beside it");
        }
        answers.send(Err(Failure::Retry(anyhow!("no leader")))).unwrap();
        assert!(matches!(end(&mut looks), Ok(None)), "a failure is no reason to begin anew");
        assert!(looks.held.holds(3) && looks.is_told);
        answers.send(Ok(None)).unwrap();
        assert!(matches!(end(&mut looks), Ok(None)) && looks.held.holds(3));
        answers.send(Ok(Some(7))).unwrap();
        assert!(matches!(end(&mut looks), Ok(Some(7))));
        assert!(!looks.is_told && looks.held.holds(3), "what is claimed for it is decided about first");
        looks.release(3);
        assert!(!looks.held.holds(3));
    }

    #[test]
    fn what_does_not_pass_ends_the_relay_even_if_a_look_finds_it() {
        let (mut looks, answers) = looks();
        answers.send(Err(Failure::Halt(anyhow!("the topics are another installation's")))).unwrap();
        assert!(matches!(end(&mut looks), Err(Failure::Halt(_))));
        drop(answers);
        // It panics.
        let held = matches!(end(&mut looks), Ok(None)) && looks.held.holds(3);
        assert!(held);
    }
}
