//! A connection that is closed on drop and not returned to its pool, where it would keep a lock, and stay with a database that
//! another one has taken the place of.

use crate::failure::Failure;
use anyhow::anyhow;
use deadpool_postgres::{Client, Object, Pool};
use std::time::{Duration, Instant};

/// A connection that no one else gets.
pub struct OwnConnection(Option<Client>);

impl OwnConnection {
    /// Takes one out of the pool.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn open(pool: &Pool) -> Result<Self, Failure> {
        Ok(Self(Some(pool.get().await?)))
    }

    /// One that was taken.
    pub(super) const fn of(client: Client) -> Self {
        Self(Some(client))
    }

    /// Returns it to its pool after all: nothing that was asked of it is unanswered.
    pub(super) fn give_back(mut self) {
        drop(self.0.take());
    }

    /// # Errors
    /// None while it is not dropped.
    pub fn db(&mut self) -> Result<&mut Client, Failure> {
        self.0.as_mut().ok_or_else(|| Failure::Retry(anyhow!("the connection is closed")))
    }

    /// Lets the server end it, and so release its locks, once it has rested for so long: the kernel of a process that is frozen still
    /// answers keepalives.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn end_if_idle(&mut self, limit: Duration) -> Result<(), Failure> {
        let sql = format!("SET idle_session_timeout = {}", limit.as_millis());
        Ok(self.db()?.batch_execute(&sql).await?)
    }

    /// When it was opened.
    pub fn created(&self) -> Option<Instant> {
        self.0.as_ref().map(|client| Object::metrics(client).created)
    }
}

impl Drop for OwnConnection {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}
