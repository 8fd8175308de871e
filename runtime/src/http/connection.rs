//! One connection, from its first byte to its end.

use super::client_address::ClientAddress;
use super::connections::Place;
use super::reply::Reply;
use hyper::Response;
use hyper::body::{Body, Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::SockRef;
use std::convert::Infallible;
use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// A request whose body is still to come.
pub type Request = hyper::Request<Incoming>;

/// Of a request's head, and of what is read and written at once.
const MAX_BUFFER_BYTES: usize = 64 * 1024;
/// HTTP/2: requests of a connection at the same time.
const MAX_STREAMS: u32 = 32;
const MAX_HEADER_LIST_BYTES: u32 = 64 * 1024;
/// HTTP/2: requests that a client gave up before they were answered, and that may wait for that. More end the connection.
const MAX_RESET_STREAMS: usize = 50;
/// HTTP/2: whether the client is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the client's host may leave what was sent to it unacknowledged, or have no room for it.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(30);
/// For telling the client that the connection ends.
const FAREWELL: Duration = Duration::from_secs(1);

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // How long a head may take is [`Place::patience`]'s, for both versions alike.
    builder.http1().max_buf_size(MAX_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_send_buf_size(MAX_BUFFER_BYTES);
    builder
}

/// Serves a connection until its client leaves, it stands still for too long, it gives way to another, or `stop`.
pub async fn serve<F, A, B>(stream: TcpStream, place: Place, answer: F, stop: CancellationToken)
where
    F: Fn(Request) -> A + Send + Sync + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    // Both are for speed and for a client that vanishes; a socket that refuses them is gone already.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT));
    let place = Arc::new(place);
    let handled = Arc::clone(&place);
    let service = service_fn(move |mut request: Request| {
        let busy = handled.begin();
        let trusted = &handled.connections().limits().trusted_proxies;
        let client = ClientAddress::new(handled.peer(), request.headers(), trusted);
        request.extensions_mut().insert(client);
        let answered = answer(request);
        async move { Ok::<_, Infallible>(answered.await.map(|body| Reply::new(body, busy))) }
    });
    let builder = builder();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut is_stopping = false;
    loop {
        let patience = match place.patience() {
            Ok(patience) => patience,
            Err(cause) => {
                place.connections().count_closed(cause);
                break;
            }
        };
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!("a connection of {} ended: {error}", place.peer());
                }
                return;
            }
            () = place.evicted() => {
                place.connections().count_closed("evicted");
                return;
            }
            () = tokio::time::sleep(patience) => {}
            () = stop.cancelled(), if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    // It is closed either way.
    let _ = tokio::time::timeout(FAREWELL, connection).await;
}
