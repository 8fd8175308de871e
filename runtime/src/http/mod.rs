//! The HTTP server of the API and of the metrics: a stranger can reach both, and must not take them from others.
//!
//! A connection that brings no request, or whose client does not take its reply, is closed in time ([`Timeouts`]). How many there
//! are is limited, in all and for each address. At a limit the one that has waited longest for a request gives way, since a slow
//! client holds many of those and a healthy one opens another; where all are at work, the new one is refused at once.
//!
//! Left out on purpose: TLS, and upgrades such as websockets. How long a body may take is its reader's to say.

mod client_address;
mod connection;
mod connections;
mod limits;
mod open_files;
mod reply;

pub use client_address::ClientAddress;
pub use connection::Request;
pub use limits::{Limits, Timeouts};
pub use open_files::raise_open_files;

use connections::Connections;
use hyper::Response;
use hyper::body::{Body, Bytes};
use std::error::Error;
use std::io;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Between two tries to accept, where the process has no file left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves HTTP/1 and HTTP/2 until `stop`, then finishes the requests in flight. Each request has the extension [`ClientAddress`].
pub async fn serve<F, A, B>(listener: TcpListener, limits: Limits, answer: F, stop: CancellationToken)
where
    F: Fn(Request) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let connections = Connections::new(limits);
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Some(place) = connections.admit(peer.ip()) {
                    tasks.spawn(connection::serve(stream, place, answer.clone(), stop.clone()));
                }
            }
            Err(error) if is_of_one_client(&error) => {}
            Err(error) => {
                tracing::warn!("accepting a connection failed: {error}");
                connections.evict_oldest();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
