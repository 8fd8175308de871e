//! The HTTP server against clients that are slow, silent or too many.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hyper::Response;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use runtime::http::{self, ClientAddress, Limits, Request, Timeouts};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Short, so that the tests are.
const TIMEOUTS: Timeouts = Timeouts {
    first_request: Duration::from_millis(500),
    next_request: Duration::from_millis(1000),
    next_request_of_proxy: Duration::from_secs(3600),
    reply: Duration::from_millis(2000),
};
/// For what has to happen, on a machine with much else to do.
const IN_TIME: Duration = Duration::from_secs(20);
const LARGE: usize = 64 * 1024 * 1024;

/// Zeros, or a body that never ends.
struct Content {
    left: Option<usize>,
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.left.take() {
            None => Poll::Pending,
            Some(0) => Poll::Ready(None),
            Some(left) => {
                self.left = Some(0);
                Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'0'; left])))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, |left| SizeHint::with_exact(left as u64))
    }
}

type Answer = Response<Pin<Box<dyn Body<Data = Bytes, Error = Infallible> + Send>>>;

/// `/large` has a large reply, `/slow` one after a while, `/stream` one that never ends; any other tells the client's address.
async fn answer(request: Request) -> Answer {
    match request.uri().path() {
        "/large" => Response::new(Box::pin(Content { left: Some(LARGE) })),
        "/stream" => Response::new(Box::pin(Content { left: None })),
        path => {
            if path == "/slow" {
                tokio::time::sleep(TIMEOUTS.reply / 2).await;
            }
            let ClientAddress(address) = request.extensions().get().unwrap();
            let told = address.map_or_else(|| "nobody".to_owned(), |address| address.to_string());
            Response::builder().header("client", told).body(Box::pin(Content { left: Some(2) }) as _).unwrap()
        }
    }
}

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Server {
    async fn start(connections: usize, connections_per_address: usize, timeouts: Timeouts) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let trusted_proxies = vec!["127.0.9.0/24".parse().unwrap()];
        let limits = Limits { server: "test", connections, connections_per_address, trusted_proxies, timeouts };
        let served = tokio::spawn(http::serve(listener, limits, answer, stop.clone()));
        Self { address, stop, served }
    }

    /// A connection from an address of this machine.
    async fn connect(&self, from: &str) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        Client(socket.connect(self.address).await.unwrap())
    }
}

struct Client(TcpStream);

impl Client {
    async fn send(&mut self, text: &[u8]) {
        // A server that has closed the connection takes nothing.
        let _ = self.0.write_all(text).await;
    }

    async fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes()).await;
    }

    /// The head of a reply; `None` if the connection ends instead.
    async fn head(&mut self) -> Option<String> {
        let mut head = String::new();
        tokio::time::timeout(IN_TIME, async {
            while !head.ends_with("\r\n\r\n") {
                head.push(char::from(self.0.read_u8().await.ok()?));
            }
            Some(())
        })
        .await
        .expect("neither a reply nor the end")?;
        Some(head)
    }

    /// A request and its reply, whole.
    async fn asks(&mut self) -> Option<String> {
        self.get("/").await;
        let head = self.head().await?;
        self.0.read_exact(&mut [0; 2]).await.ok()?;
        Some(head)
    }

    /// Waits for the end; returns how much came before it.
    async fn ended(&mut self) -> usize {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = tokio::time::timeout(IN_TIME, self.0.read_to_end(&mut rest)).await.expect("the connection stays");
        rest.len()
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let head = [0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream];
    [&head, payload].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;

#[tokio::test]
async fn a_connection_without_a_request_ends_and_one_with_requests_stays() {
    let server = Server::start(100, 100, TIMEOUTS).await;
    let mut healthy = server.connect("127.0.0.1").await;
    let settings = frame(SETTINGS, 0, 0, &[]);
    let beginnings: [&[u8]; 5] =
        [b"", b"GET / HTTP/1.1\r\nHo", b"GET / HTTP/1.1\r\n\r\n", &PREFACE[..10], &[PREFACE, &settings].concat()];
    let mut slow = Vec::new();
    for beginning in beginnings {
        let mut client = server.connect("127.0.0.2").await;
        client.send(beginning).await;
        slow.push(client);
    }
    let (mut reader, mut writer) = server.connect("127.0.0.2").await.0.into_split();
    let drips = async {
        writer.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        while writer.write_all(b"a: b\r\n").await.is_ok() {
            tokio::time::sleep(TIMEOUTS.first_request / 10).await;
        }
    };
    let all_end = async {
        for client in &mut slow {
            client.ended().await;
        }
        let _ = tokio::time::timeout(IN_TIME, reader.read_to_end(&mut Vec::new())).await.expect("a head that drips");
    };
    let asks = async {
        loop {
            healthy.asks().await.expect("an answer to a healthy client");
            tokio::time::sleep(TIMEOUTS.first_request / 5).await;
        }
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(all_end, drips) } => {}
        () = asks => {}
    }
}

/// The only place is free for another as soon as the server has let a client go.
async fn is_let_go(server: &Server) {
    let gone = async { while server.connect("127.0.0.1").await.asks().await.is_none() {} };
    tokio::time::timeout(IN_TIME, gone).await.expect("the server waits for the client");
}

#[tokio::test]
async fn a_client_that_does_not_take_its_reply_is_let_go_and_a_slow_one_gets_all_of_it() {
    let server = Server::start(1, 1, TIMEOUTS).await;
    let mut deaf = server.connect("127.0.0.2").await;
    deaf.get("/large").await;
    deaf.head().await.unwrap();
    is_let_go(&server).await;
    assert!(deaf.ended().await < LARGE);

    let mut slow = server.connect("127.0.0.2").await;
    slow.get("/large").await;
    slow.head().await.unwrap();
    let (mut taken, began) = (0, std::time::Instant::now());
    let mut piece = vec![0; LARGE / 64];
    while taken < LARGE {
        taken += slow.0.read(&mut piece).await.unwrap();
        // Longer than the whole reply may stand still.
        if began.elapsed() < TIMEOUTS.reply * 2 {
            tokio::time::sleep(TIMEOUTS.reply / 10).await;
        }
    }
}

#[tokio::test]
async fn http2_has_limits_and_a_stream_that_takes_nothing_ends() {
    let server = Server::start(1, 1, TIMEOUTS).await;
    let mut client = server.connect("127.0.0.2").await;
    // A window of no bytes, then `GET /large`.
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let get = frame(HEADERS, 5, 1, b"\x82\x86\x44\x06/large\x41\x04test");
    client.send(&[PREFACE, &no_window, &get].concat()).await;
    let mut head = [0; 9];
    client.0.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], SETTINGS);
    let mut settings = vec![0; usize::from(head[2])];
    client.0.read_exact(&mut settings).await.unwrap();
    let of = |id: u8| settings.chunks(6).find(|one| one[1] == id).map(|one| u32::from_be_bytes(one[2..].try_into().unwrap()));
    let (max_concurrent_streams, max_header_list_size) = (of(3), of(6));
    assert_eq!((max_concurrent_streams, max_header_list_size), (Some(32), Some(64 * 1024)));
    is_let_go(&server).await;
    client.ended().await;
}

#[tokio::test]
async fn a_head_of_64_kib_is_read_and_a_larger_one_is_not() {
    let server = Server::start(100, 100, TIMEOUTS).await;
    for (kib, is_read) in [(60, true), (70, false)] {
        let mut client = server.connect("127.0.0.2").await;
        client.send(format!("GET / HTTP/1.1\r\nHost: test\r\na: {}\r\n\r\n", "b".repeat(kib * 1024)).as_bytes()).await;
        let head = client.head().await;
        assert_eq!(head.as_ref().is_some_and(|head| head.starts_with("HTTP/1.1 200")), is_read, "{kib} KiB: {head:?}");
    }
}

/// `GET /large` on stream 1 with a window of no bytes; returns when it is at work.
async fn asks_and_takes_nothing(client: &mut Client) {
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let get = frame(HEADERS, 5, 1, b"\x82\x86\x44\x06/large\x41\x04test");
    client.send(&[PREFACE, &no_window, &get].concat()).await;
    loop {
        let mut head = [0; 9];
        client.0.read_exact(&mut head).await.unwrap();
        let length = u16::from_be_bytes([head[1], head[2]]);
        client.0.read_exact(&mut vec![0; usize::from(length)]).await.unwrap();
        if head[3] == HEADERS {
            return;
        }
    }
}

/// Small requests without end, while the server takes them.
async fn keeps_asking(client: &mut Client) {
    for stream in (3..=u8::MAX).step_by(2) {
        let head = frame(HEADERS, 5, stream, b"\x42\x04HEAD\x86\x84\x41\x04test");
        if client.0.write_all(&head).await.is_err() {
            return;
        }
        tokio::time::sleep(TIMEOUTS.reply / 10).await;
    }
}

#[tokio::test]
async fn a_stream_that_takes_nothing_ends_its_connection_beside_small_requests_but_not_a_proxys() {
    let server = Server::start(1, 1, TIMEOUTS).await;
    let mut client = server.connect("127.0.0.2").await;
    asks_and_takes_nothing(&mut client).await;
    tokio::select! {
        () = keeps_asking(&mut client) => {}
        () = is_let_go(&server) => {}
    }
    client.ended().await;

    let mut proxy = server.connect("127.0.9.1").await;
    asks_and_takes_nothing(&mut proxy).await;
    let asks = tokio::time::timeout(TIMEOUTS.reply * 2, keeps_asking(&mut proxy));
    assert!(asks.await.is_err(), "one of its clients has ended it");
}

#[tokio::test]
async fn at_the_limit_the_one_that_waited_longest_gives_way_and_one_at_work_does_not() {
    let server = Server::start(3, 3, Timeouts::default()).await;
    let mut busy = server.connect("127.0.0.1").await;
    busy.get("/stream").await;
    busy.head().await.unwrap();
    let (mut oldest, mut newer) = (server.connect("127.0.0.2").await, server.connect("127.0.0.3").await);
    assert!(oldest.asks().await.is_some() && newer.asks().await.is_some());
    let mut new = server.connect("127.0.0.4").await;
    assert!(new.asks().await.is_some());
    assert_eq!(oldest.ended().await, 0);
    assert!(newer.asks().await.is_some());
    // A flood is at its own cost: `newer` has waited longer than the last of these.
    for _ in 0..3 {
        let mut silent = server.connect("127.0.0.4").await;
        assert_eq!(new.ended().await, 0);
        std::mem::swap(&mut silent, &mut new);
    }
    assert!(newer.asks().await.is_some());
    newer.get("/stream").await;
    newer.head().await.unwrap();
    new.get("/stream").await;
    new.head().await.unwrap();
    assert!(server.connect("127.0.0.5").await.asks().await.is_none(), "all are at work");
    drop(busy);
    is_let_go(&server).await;
}

#[tokio::test]
async fn an_address_has_its_share_and_a_trusted_proxy_is_not_shut_out() {
    let server = Server::start(100, 2, Timeouts::default()).await;
    let mut open = Vec::new();
    for from in ["127.0.0.2", "127.0.0.2", "127.0.9.1", "127.0.9.1", "127.0.9.1", "127.0.9.1"] {
        let mut client = server.connect(from).await;
        client.get("/stream").await;
        assert!(client.head().await.is_some(), "{from}");
        open.push(client);
    }
    assert!(server.connect("127.0.0.2").await.asks().await.is_none());
    let (mut first, mut second) = (server.connect("127.0.0.3").await, server.connect("127.0.0.3").await);
    assert!(first.asks().await.is_some() && second.asks().await.is_some());
    assert!(server.connect("127.0.0.3").await.asks().await.is_some(), "one of its own gives way");
    assert_eq!(first.ended().await, 0);

    let told = async |from: &str| {
        let mut client = server.connect(from).await;
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 1.1.1.1, 198.51.100.1\r\n\r\n").await;
        client.head().await.unwrap().lines().find_map(|line| line.strip_prefix("client: ").map(str::to_owned))
    };
    assert_eq!(told("127.0.9.1").await.as_deref(), Some("198.51.100.1"));
    assert_eq!(told("127.0.0.7").await.as_deref(), Some("127.0.0.7"));
}

#[tokio::test]
async fn a_request_in_flight_is_answered_at_the_stop_and_then_the_server_ends() {
    let server = Server::start(10, 10, Timeouts::default()).await;
    let (mut asking, mut waiting) = (server.connect("127.0.0.1").await, server.connect("127.0.0.1").await);
    assert!(asking.asks().await.is_some() && waiting.asks().await.is_some());
    asking.get("/slow").await;
    // Asked before the stop, as the server sees it: it has answered another request since.
    assert!(waiting.asks().await.is_some());
    server.stop.cancel();
    assert!(asking.head().await.is_some());
    assert_eq!(waiting.ended().await, 0);
    tokio::time::timeout(IN_TIME, server.served).await.expect("the server goes on").unwrap();
}
