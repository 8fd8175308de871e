//! A deadline for what is asked of Postgres. A server may take a commit and never answer: an old primary that waits for its standby, or
//! one whose disk stalls. Its host answers, so no connection ends by itself.

use super::own_connection::OwnConnection;
use crate::failure::Failure;
use anyhow::anyhow;
use deadpool_postgres::Client;
use std::time::Duration;

/// For a transaction of a batch, and longer than any that is well.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Works on a connection. One whose server does not answer in time is closed, and whether the work was committed is not known.
/// So is that of work which is dropped: the next who got it would wait for what is unanswered.
///
/// # Errors
/// Those of `work`; `Retry` when it takes longer than `limit`.
pub async fn in_time<T>(
    client: Client,
    limit: Duration,
    work: impl AsyncFnOnce(&mut Client) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut client = OwnConnection::of(client);
    let outcome = answered(limit, async { Ok(work(client.db()?).await) }).await?;
    client.give_back();
    outcome
}

/// What a server answers, unless it takes too long.
///
/// # Errors
/// That of the answer; `Retry` when it takes longer than `limit`.
pub async fn answered<T>(limit: Duration, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(no_answer(limit)))
}

fn no_answer(limit: Duration) -> Failure {
    Failure::Retry(anyhow!("Postgres did not answer for {limit:?}"))
}
