//! Reads that a replica may answer, if there is one that keeps up: single records and a list's first page; later pages are the primary's.

use crate::app::{App, Connection};
use crate::http::pagination::PageQuery;
use crate::http::problem::Problem;
use crate::http::share::HeldConnection;
use payments::store;
use std::collections::HashSet;
use std::ops::Deref;
use std::time::{Duration, Instant};
use topics::wire::PaymentIntent;
use uuid::Uuid;

/// For a read on the replica, which is then asked of the primary.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection for a read, to the primary or to the replica.
pub struct Reader {
    held: HeldConnection,
    is_replica: bool,
}

impl Deref for Reader {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.held
    }
}

impl Reader {
    /// A list that is empty on the replica may be of what was just created.
    ///
    /// # Errors
    /// When the primary is to be asked.
    pub fn expect<T>(&self, found: &[T]) -> Result<(), Problem> {
        if self.is_replica && found.is_empty() { Err(Problem::internal()) } else { Ok(()) }
    }
}

impl App {
    /// Reads on the replica, and on the primary where that is too far behind, fails, or does not have what is asked for.
    ///
    /// # Errors
    /// That of the read on the primary.
    pub async fn read<T, F: Future<Output = Result<T, Problem>>>(&self, read: impl Fn(Reader) -> F) -> Result<T, Problem> {
        let began = Instant::now();
        if let Some(replica) = &self.replica
            && let Some(client) = replica.get().await
        {
            let held = HeldConnection::unshared(client, began);
            match tokio::time::timeout(REPLICA_TIMEOUT, read(Reader { held, is_replica: true })).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(_)) => {}
                Err(_) => replica.leave(),
            }
        }
        read(self.newest().await?).await
    }

    /// [`read`](Self::read) of a page. Only a first page may be the replica's: what comes after one of the primary may not be there yet.
    ///
    /// # Errors
    /// As there.
    pub async fn read_page<T, C, F: Future<Output = Result<T, Problem>>>(
        &self,
        page: &PageQuery<C>,
        read: impl Fn(Reader) -> F,
    ) -> Result<T, Problem> {
        if page.cursor.is_none() { self.read(read).await } else { read(self.newest().await?).await }
    }

    /// A connection to the primary.
    ///
    /// # Errors
    /// A 503 when none is to be had.
    pub async fn newest(&self) -> Result<Reader, Problem> {
        Ok(Reader { held: self.db().await?, is_replica: false })
    }

    /// [`Intents::still_unacknowledged`](crate::create::intents::Intents::still_unacknowledged) of what was read. The replica may be of a
    /// server that is the primary no more, and what it says is unacknowledged is published by nobody.
    ///
    /// # Errors
    /// When the database fails; a 503 when the replica has such intents.
    pub async fn still_unacknowledged(&self, db: Reader, ids: &[Uuid]) -> Result<(Reader, HashSet<Uuid>), Problem> {
        let unacknowledged = store::unacknowledged_intents(&*db, ids).await?;
        self.publish_unacknowledged(db, unacknowledged).await
    }

    /// [`still_unacknowledged`](Self::still_unacknowledged) for intents that the connection has read.
    ///
    /// # Errors
    /// As there.
    pub async fn publish_unacknowledged(
        &self,
        db: Reader,
        unacknowledged: Vec<(Uuid, PaymentIntent)>,
    ) -> Result<(Reader, HashSet<Uuid>), Problem> {
        if db.is_replica && !unacknowledged.is_empty() {
            return Err(Problem::unacknowledged());
        }
        let (held, hidden) = self.intents.publish_unacknowledged(&self.pool, db.held, unacknowledged).await?;
        Ok((Reader { held, is_replica: db.is_replica }, hidden))
    }

    /// [`still_unacknowledged`](Self::still_unacknowledged) for one payment or address.
    ///
    /// # Errors
    /// As there, and a 503 when its intent is not acknowledged.
    pub async fn ensure_acknowledged(&self, db: Reader, id: Uuid) -> Result<Reader, Problem> {
        let (db, hidden) = self.still_unacknowledged(db, &[id]).await?;
        if hidden.is_empty() { Ok(db) } else { Err(Problem::unacknowledged()) }
    }
}
