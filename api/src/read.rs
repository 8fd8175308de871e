//! Reads, each of one moment of the database: a payment's status, its sums, its transfers and its chain's head belong together.
//! A replica may answer, if there is one that keeps up: single records and a list's first page; later pages are the primary's.

use crate::create::intents::Intents;
use crate::http::pagination::PageQuery;
use crate::http::problem::Problem;
use crate::http::share::{self, HeldConnection};
use deadpool_postgres::{Client, Pool};
use futures::FutureExt as _;
use payments::store::{self, Page};
use runtime::Failure;
use runtime::db::{Replica, WRITE_TIMEOUT};
use std::collections::HashSet;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};
use topics::wire::PaymentIntent;
use uuid::Uuid;

/// For a read on the replica, which is then asked of the primary.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(2);
/// For the replica to show how far it is, in one round trip.
const REPLICA_BEGIN_TIMEOUT: Duration = Duration::from_millis(250);

/// The database at one moment, on the primary or on the replica.
pub struct Snapshot {
    held: Arc<HeldConnection>,
    from: Source,
}

enum Source {
    Replica,
    Primary,
    /// Once more, after intents were published again: those that Kafka has acknowledged by now.
    PrimaryAgain(HashSet<Uuid>),
}

/// Why a read has no answer.
#[derive(Debug)]
pub enum Unread {
    Problem(Problem),
    /// Addresses that must not be shown before their intents are published again.
    Unacknowledged(Vec<(Uuid, PaymentIntent)>),
}

impl From<Problem> for Unread {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<Failure> for Unread {
    fn from(failure: Failure) -> Self {
        Self::Problem(failure.into())
    }
}

impl Deref for Snapshot {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.held
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // It is sent when it is first polled, so before whatever the connection is asked next. Nobody needs the answer.
        drop(self.batch_execute("COMMIT").now_or_never());
    }
}

impl Snapshot {
    async fn begin(held: Arc<HeldConnection>, from: Source) -> Result<Self, tokio_postgres::Error> {
        let snapshot = Self { held, from };
        snapshot.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        Ok(snapshot)
    }

    /// A list that is empty on the replica may be of what was just created.
    ///
    /// # Errors
    /// When the primary is to be asked.
    pub fn expect<T>(&self, found: &[T]) -> Result<(), Problem> {
        if matches!(self.from, Source::Replica) && found.is_empty() { Err(Problem::internal()) } else { Ok(()) }
    }

    /// Those of these payments and static addresses whose addresses must not be shown, since Kafka has not acknowledged their
    /// intents. The replica may be of a server that is the primary no more, and what it says is unacknowledged is published by
    /// nobody.
    ///
    /// # Errors
    /// When their intents have to be published again first, or the primary is to be asked; when the database fails.
    pub async fn hidden(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, Unread> {
        let Page { items: intents, unreadable, .. } = store::unacknowledged_intents(&**self, ids).await?;
        let unreadable = unreadable.into_iter().map(|(id, _)| id);
        match &self.from {
            _ if intents.is_empty() => Ok(unreadable.collect()),
            Source::Replica => Err(Problem::unacknowledged().into()),
            Source::Primary => Err(Unread::Unacknowledged(intents)),
            Source::PrimaryAgain(acknowledged) => {
                let unacknowledged = intents.into_iter().map(|(id, _)| id).filter(|id| !acknowledged.contains(id));
                Ok(unacknowledged.chain(unreadable).collect())
            }
        }
    }

    /// [`hidden`](Self::hidden) of one payment or static address.
    ///
    /// # Errors
    /// As there, and a 503 when it is.
    pub async fn ensure_acknowledged(&self, id: Uuid) -> Result<(), Unread> {
        if self.hidden(&[id]).await?.is_empty() { Ok(()) } else { Err(Problem::unacknowledged().into()) }
    }
}

/// Where reads go. Cheap to clone.
#[derive(Clone)]
pub struct Reads {
    pub pool: Pool,
    /// If there is one.
    pub replica: Option<Replica>,
    /// Publishes again what must not be shown before.
    pub intents: Intents,
}

impl Reads {
    /// Reads on the replica, and on the primary where that is too far behind, fails, or does not have what is asked for.
    ///
    /// # Errors
    /// That of the read on the primary.
    pub async fn read<T, F: Future<Output = Result<T, Unread>>>(&self, read: impl Fn(Snapshot) -> F) -> Result<T, Problem> {
        self.read_anywhere(read, Replica::leave).await
    }

    /// [`read`](Self::read) for many requests at once, each of which is made again alone if this takes long: whether the replica is
    /// slow is seen then.
    ///
    /// # Errors
    /// As there.
    pub async fn read_for_many<T, F: Future<Output = Result<T, Unread>>>(
        &self,
        read: impl Fn(Snapshot) -> F,
    ) -> Result<T, Problem> {
        self.read_anywhere(read, |_| {}).await
    }

    async fn read_anywhere<T, F: Future<Output = Result<T, Unread>>>(
        &self,
        read: impl Fn(Snapshot) -> F,
        on_late: fn(&Replica),
    ) -> Result<T, Problem> {
        if let Some(replica) = &self.replica
            && let Some(answer) = read_replica(replica, &read, on_late).await
        {
            return Ok(answer);
        }
        self.read_newest(read).await
    }

    /// [`read`](Self::read) of a page. Only a first page may be the replica's: what comes after one of the primary may not be there yet.
    ///
    /// # Errors
    /// As there.
    pub async fn read_page<T, C, F: Future<Output = Result<T, Unread>>>(
        &self,
        page: &PageQuery<C>,
        read: impl Fn(Snapshot) -> F,
    ) -> Result<T, Problem> {
        if page.cursor.is_none() { self.read(read).await } else { self.read_newest(read).await }
    }

    /// Reads on the primary. Where intents have to be published again, it reads once more after that, and what was acknowledged
    /// is shown.
    ///
    /// # Errors
    /// That of the read; a 503 when no connection is to be had.
    pub async fn read_newest<T, F: Future<Output = Result<T, Unread>>>(
        &self,
        read: impl Fn(Snapshot) -> F,
    ) -> Result<T, Problem> {
        let mut from = Source::Primary;
        loop {
            let db = share::connection(&self.pool).await?;
            let began = db.began;
            // Kafka may take its time, and other requests need the connection, which is given back with the snapshot.
            from = match read(Snapshot::begin(Arc::new(db), from).await?).await {
                Ok(answer) => return Ok(answer),
                Err(Unread::Problem(problem)) => return Err(problem),
                Err(Unread::Unacknowledged(intents)) => {
                    Source::PrimaryAgain(self.intents.acknowledged_now(intents, began).await)
                }
            };
        }
    }
}

/// `None` where the primary is to be asked.
async fn read_replica<T, F: Future<Output = Result<T, Unread>>>(
    replica: &Replica,
    read: impl Fn(Snapshot) -> F,
    on_late: fn(&Replica),
) -> Option<T> {
    let place = share::replica_connection()?;
    let held = Arc::new(HeldConnection::at(place, Instant::now(), replica.get().await?));
    let begin = async {
        // One round trip: the server may be far. What is asked is sent behind the beginning of the transaction.
        let begun = Snapshot::begin(Arc::clone(&held), Source::Replica);
        let (snapshot, keeps_up) = tokio::join!(biased; begun, replica.keeps_up(&held));
        snapshot.ok().filter(|_| keeps_up)
    };
    let answered = match tokio::time::timeout(REPLICA_BEGIN_TIMEOUT, begin).await {
        Ok(snapshot) => tokio::time::timeout(REPLICA_TIMEOUT, read(snapshot?)).await.map(Result::ok),
        Err(late) => Err(late),
    };
    if answered.is_err() {
        on_late(replica);
        // Until its server has done with what was asked, nobody is to wait behind that, nor has the merchant its place again.
        tokio::spawn(async move {
            if tokio::time::timeout(WRITE_TIMEOUT, held.batch_execute("")).await.is_err() {
                held.give_up();
            }
        });
    }
    answered.ok().flatten()
}
