//! Work for which several may wait. It is a task of its own, so it goes on when they leave.

use tokio::sync::watch;

/// A task and its outcome. Cheap to clone.
pub struct SharedTask<T>(watch::Receiver<Option<T>>);

impl<T> Clone for SharedTask<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone + Send + Sync + 'static> SharedTask<T> {
    pub fn spawn(work: impl Future<Output = T> + Send + 'static) -> Self {
        let (ended, outcome) = watch::channel(None);
        tokio::spawn(async move { ended.send_replace(Some(work.await)) });
        Self(outcome)
    }

    /// Whether it has yet to end. One that panicked has ended.
    pub fn is_under_way(&self) -> bool {
        self.0.has_changed().is_ok()
    }

    /// Whether it has ended with an outcome for which this holds.
    pub fn has_ended_with(&self, holds: impl FnOnce(&T) -> bool) -> bool {
        self.0.borrow().as_ref().is_some_and(holds)
    }

    /// Waits for its outcome; `None` if it panicked.
    pub async fn outcome(mut self) -> Option<T> {
        let outcome = self.0.wait_for(Option::is_some).await.ok()?;
        outcome.clone()
    }
}
