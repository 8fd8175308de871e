//! Websockets that misbehave: whatever one does, heads are announced again once it recovers, and nothing grows.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use chain::{Chain, Chains, Heads, WsTimeouts};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::{WebSocketStream, accept_async, accept_hdr_async};

/// Short enough for a fast test, long enough for a busy machine.
const TIMEOUTS: WsTimeouts = WsTimeouts {
    idle: Duration::from_millis(150),
    answer: Duration::from_millis(1500),
    max_backoff: Duration::from_millis(300),
};
const LONG: Duration = Duration::from_secs(20);

type Socket = WebSocketStream<TcpStream>;

/// A node whose connections, counted from 0, follow a script.
struct Server {
    address: std::net::SocketAddr,
    connected: Arc<Mutex<Vec<Instant>>>,
}

impl Server {
    async fn start<F, Fut>(script: F) -> Self
    where
        F: Fn(usize, TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connected: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let counted = connected.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = {
                    let mut counted = counted.lock().unwrap();
                    counted.push(Instant::now());
                    counted.len() - 1
                };
                tokio::spawn(script(number, stream));
            }
        });
        Self { address, connected }
    }

    fn connections(&self) -> Vec<Instant> {
        self.connected.lock().unwrap().clone()
    }

    fn heads(&self) -> Heads {
        Heads::with_timeouts(&chain("ws", self.address), TIMEOUTS)
    }

    async fn until_connected(&self, times: usize) {
        let until = Instant::now() + LONG;
        while self.connections().len() < times {
            assert!(Instant::now() < until, "{} connections; expected {times}", self.connections().len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn chain(scheme: &str, address: std::net::SocketAddr) -> Chain {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("ctrip-heads-{}-{next}.yaml", std::process::id()));
    let url = format!("{scheme}://user:secret@{address}/secret?key=secret");
    std::fs::write(&path, format!("- name: it\n  chain_id: 1\n  rpc_url: http://127.0.0.1:1\n  ws_urls: [\"{url}\"]\n"))
        .unwrap();
    let chains = futures::executor::block_on(Chains::load(&path).unwrap().resolve()).unwrap();
    std::fs::remove_file(path).unwrap();
    chains.into_iter().next().unwrap()
}

async fn accept(stream: TcpStream) -> Socket {
    accept_async(stream).await.unwrap()
}

/// The next request; `None` when the client has gone.
async fn request(socket: &mut Socket) -> Option<Value> {
    loop {
        match socket.next().await?.ok()? {
            Message::Text(text) => return Some(serde_json::from_str(&text).unwrap()),
            Message::Close(_) => return None,
            _ => {}
        }
    }
}

async fn say(socket: &mut Socket, text: impl Into<String>) {
    // The client may have gone.
    let _ = socket.send(Message::text(text.into())).await;
}

async fn answer(socket: &mut Socket, method: &str, result: Value) {
    let request = request(socket).await.unwrap();
    assert_eq!(request["method"], method);
    say(socket, json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }).to_string()).await;
}

/// Begins like a healthy node of chain 1.
async fn greet(stream: TcpStream) -> Socket {
    let mut socket = accept(stream).await;
    answer(&mut socket, "eth_chainId", json!("0x1")).await;
    answer(&mut socket, "eth_subscribe", json!("0xcd0c3e8af590364c09d0fa6a1210faf5")).await;
    socket
}

fn notification(header: Value) -> String {
    let params = json!({ "subscription": "0xcd0c3e8af590364c09d0fa6a1210faf5", "result": header });
    json!({ "jsonrpc": "2.0", "method": "eth_subscription", "params": params }).to_string()
}

async fn tell(socket: &mut Socket, number: u64) {
    say(socket, notification(json!({ "number": format!("{number:#x}"), "hash": format!("0x{number:064x}") }))).await;
}

/// Answers requests with this head until the client disconnects.
async fn stay(mut socket: Socket, head: u64) {
    while let Some(request) = request(&mut socket).await {
        assert_eq!(request["method"], "eth_blockNumber");
        say(&mut socket, json!({ "jsonrpc": "2.0", "id": request["id"], "result": format!("{head:#x}") }).to_string()).await;
    }
}

async fn next(heads: &mut Heads) -> Option<u64> {
    tokio::time::timeout(LONG, heads.next()).await.expect("nobody was woken")
}

#[tokio::test]
async fn a_head_wakes_with_or_without_the_fields_that_nodes_leave_null() {
    let (tell, headers) = tokio::sync::mpsc::channel::<Value>(1);
    let headers = Mutex::new(Some(headers));
    let server = Server::start(move |_, stream| {
        let mut headers = headers.lock().unwrap().take().unwrap();
        async move {
            let mut socket = greet(stream).await;
            while let Some(header) = headers.recv().await {
                say(&mut socket, notification(header)).await;
            }
        }
    })
    .await;
    let mut heads = server.heads();
    let cases = [
        (json!({ "number": "0x7", "hash": null, "withdrawalsRoot": null, "parentHash": null }), Some(7)),
        (json!({ "number": null, "hash": null, "totalDifficulty": null }), None),
        (json!({}), None),
        // A reorg: lower than before, and a head all the same.
        (json!({ "number": "0x5", "uncles": [], "difficulty": "0x0", "unheardOf": { "a": [1, 2.5] } }), Some(5)),
    ];
    for (header, number) in cases {
        tell.send(header.clone()).await.unwrap();
        assert_eq!(next(&mut heads).await, number, "{header}");
    }
    assert_eq!(server.connections().len(), 1);
}

#[tokio::test]
async fn ten_thousand_heads_that_nobody_waits_for_are_one_wake_up() {
    let (all, done) = tokio::sync::mpsc::channel(1);
    let server = Server::start(move |_, stream| {
        let all = all.clone();
        async move {
            let mut socket = greet(stream).await;
            for number in 1..=10_000 {
                tell(&mut socket, number).await;
            }
            // The pong follows in order, so everything before it was received.
            socket.send(Message::Ping("x".into())).await.unwrap();
            while !matches!(socket.next().await.unwrap().unwrap(), Message::Pong(_)) {}
            all.send(()).await.unwrap();
            stay(socket, 10_000).await;
        }
    })
    .await;
    let (mut heads, mut done) = (server.heads(), done);
    done.recv().await.unwrap();
    assert_eq!(next(&mut heads).await, Some(10_000));
    let more = tokio::time::timeout(TIMEOUTS.idle * 2, heads.next()).await;
    assert!(more.is_err(), "woken again by {more:?}");
}

/// What a node does instead of announcing heads.
#[derive(Clone, Copy, Debug)]
enum Fault {
    DropsTheConnection,
    SpeaksNoWebsocket,
    SaysNothing,
    RefusesWithHttp,
    ChainIdIsNull,
    ChainIdIsAnError,
    RefusesWithoutSayingWhat,
    NeverAnswersTheFirst,
    RefusesToSubscribe,
    NeverSubscribes,
    Closes,
    Vanishes,
    Garbage,
    Truncated,
    Binary,
    TooLarge,
    TooDeep,
    Stalls,
    NumberIsNone,
}

const FAULTS: [Fault; 19] = [
    Fault::DropsTheConnection,
    Fault::SpeaksNoWebsocket,
    Fault::SaysNothing,
    Fault::RefusesWithHttp,
    Fault::ChainIdIsNull,
    Fault::ChainIdIsAnError,
    Fault::RefusesWithoutSayingWhat,
    Fault::NeverAnswersTheFirst,
    Fault::RefusesToSubscribe,
    Fault::NeverSubscribes,
    Fault::Closes,
    Fault::Vanishes,
    Fault::Garbage,
    Fault::Truncated,
    Fault::Binary,
    Fault::TooLarge,
    Fault::TooDeep,
    Fault::Stalls,
    Fault::NumberIsNone,
];

impl Fault {
    async fn make(self, mut stream: TcpStream) {
        let error_object = |id: &Value| {
            json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32005, "message": "too many connections" } }).to_string()
        };
        match self {
            Self::DropsTheConnection => drop(stream),
            Self::SpeaksNoWebsocket => stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await.unwrap(),
            Self::SaysNothing => forever(stream).await,
            Self::RefusesWithHttp => refuse(stream).await,
            Self::ChainIdIsNull => answer(&mut accept(stream).await, "eth_chainId", Value::Null).await,
            Self::ChainIdIsAnError | Self::RefusesWithoutSayingWhat => {
                let mut socket = accept(stream).await;
                let mut id = request(&mut socket).await.unwrap()["id"].take();
                if matches!(self, Self::RefusesWithoutSayingWhat) {
                    id = Value::Null;
                }
                say(&mut socket, error_object(&id)).await;
                while request(&mut socket).await.is_some() {}
            }
            Self::NeverAnswersTheFirst => {
                let mut socket = accept(stream).await;
                while request(&mut socket).await.is_some() {}
            }
            Self::RefusesToSubscribe | Self::NeverSubscribes => {
                let mut socket = accept(stream).await;
                answer(&mut socket, "eth_chainId", json!("0x1")).await;
                let asked = request(&mut socket).await.unwrap();
                if matches!(self, Self::RefusesToSubscribe) {
                    say(&mut socket, error_object(&asked["id"])).await;
                }
                while request(&mut socket).await.is_some() {}
            }
            Self::Closes => greet(stream).await.close(None).await.unwrap(),
            Self::Vanishes => drop(greet(stream).await),
            Self::Garbage => say_and_stay(stream, Message::text("<html>Just a moment…</html>")).await,
            Self::Truncated => {
                let whole = notification(json!({ "number": "0x1" }));
                say_and_stay(stream, Message::text(whole[..whole.len() / 2].to_owned())).await;
            }
            Self::Binary => say_and_stay(stream, Message::binary(vec![0xff; 1000])).await,
            Self::TooLarge => {
                let header = json!({ "number": "0x1", "extraData": "0".repeat(2 * 1024 * 1024) });
                say_and_stay(stream, Message::text(notification(header))).await;
            }
            Self::TooDeep => say_and_stay(stream, Message::text("[".repeat(100_000))).await,
            Self::Stalls => forever(greet(stream).await).await,
            Self::NumberIsNone => say_and_stay(stream, Message::text(notification(json!({ "number": "many" })))).await,
        }
    }
}

async fn forever<T>(_kept: T) {
    std::future::pending::<()>().await;
}

async fn say_and_stay(stream: TcpStream, message: Message) {
    let mut socket = greet(stream).await;
    // The client may disconnect before the end.
    let _ = socket.send(message).await;
    while request(&mut socket).await.is_some() {}
}

#[expect(clippy::result_large_err, reason = "as tungstenite has it")]
async fn refuse(stream: TcpStream) {
    let refused = accept_hdr_async(stream, |_: &Request, _: Response| {
        let mut error_object = ErrorResponse::new(Some("secret ".repeat(10_000)));
        *error_object.status_mut() = tokio_tungstenite::tungstenite::http::StatusCode::FORBIDDEN;
        Err(error_object)
    });
    assert!(refused.await.is_err());
}

#[tokio::test]
async fn after_any_fault_it_reconnects_and_announces_heads() {
    let mut all = tokio::task::JoinSet::new();
    for fault in FAULTS {
        all.spawn(async move {
            let server = Server::start(move |connection, stream| async move {
                if connection == 0 {
                    return fault.make(stream).await;
                }
                let mut socket = greet(stream).await;
                tell(&mut socket, 7).await;
                stay(socket, 7).await;
            })
            .await;
            let mut heads = server.heads();
            let told = tokio::time::timeout(LONG, heads.next()).await;
            assert_eq!(told.ok(), Some(Some(7)), "{fault:?}");
            assert!(server.connections().len() >= 2, "{fault:?} was not made");
        });
    }
    while let Some(ended) = all.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn a_stalled_subscription_is_replaced_and_its_heads_are_announced_meanwhile() {
    let server = Server::start(|connection, stream| async move {
        let mut socket = greet(stream).await;
        if connection > 0 {
            tell(&mut socket, 100).await;
        }
        let mut head = 10;
        while let Some(request) = request(&mut socket).await {
            head += 1;
            say(&mut socket, json!({ "jsonrpc": "2.0", "id": request["id"], "result": format!("{head:#x}") }).to_string())
                .await;
        }
    })
    .await;
    let mut heads = server.heads();
    // The first answer can't show whether that head is new.
    assert_eq!(next(&mut heads).await, Some(12));
    assert_eq!(next(&mut heads).await, Some(100), "it never left the dead subscription");
}

#[tokio::test]
async fn a_quiet_chain_is_no_reason_to_connect_again() {
    let (questions, counted) = tokio::sync::oneshot::channel();
    let questions = Arc::new(Mutex::new(Some(questions)));
    let server = Server::start(move |_, stream| {
        let questions = questions.clone();
        async move {
            let mut socket = greet(stream).await;
            for _ in 0..5 {
                answer(&mut socket, "eth_blockNumber", json!("0x9")).await;
            }
            questions.lock().unwrap().take().unwrap().send(()).unwrap();
            stay(socket, 9).await;
        }
    })
    .await;
    let mut heads = server.heads();
    tokio::select! {
        asked = counted => asked.unwrap(),
        told = heads.next() => panic!("woken by {told:?} without a head"),
    }
    assert_eq!(server.connections().len(), 1);
}

#[tokio::test]
async fn heads_of_another_chain_wake_nobody() {
    let server = Server::start(|_, stream| async move {
        let mut socket = accept(stream).await;
        answer(&mut socket, "eth_chainId", json!("0x5")).await;
        for number in 0..100 {
            tell(&mut socket, number).await;
        }
        while request(&mut socket).await.is_some() {}
    })
    .await;
    let mut heads = server.heads();
    tokio::select! {
        () = server.until_connected(3) => {}
        told = heads.next() => panic!("woken by {told:?} of another chain"),
    }
}

#[tokio::test]
async fn reconnects_back_off_and_warn_once_without_the_urls_key() {
    let log = Log::default();
    let written = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || written.clone())
        .finish();
    // The whole test runs on this thread. While there is one subscriber, tracing asks that of whichever thread comes first to a
    // line of code whether anyone wants it; other tests' threads have none.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = Server::start(|connection, stream| async move {
        if connection % 2 == 0 {
            return refuse(stream).await;
        }
        let mut socket = accept(stream).await;
        let asked = request(&mut socket).await.unwrap();
        let error = json!({ "code": -32005, "message": "no more connections\n".repeat(10_000) });
        say(&mut socket, json!({ "jsonrpc": "2.0", "id": asked["id"], "error": error }).to_string()).await;
        while request(&mut socket).await.is_some() {}
    })
    .await;
    let heads = server.heads();
    server.until_connected(10).await;
    drop(heads);
    let times = server.connections();
    // 100 ms, 200 ms, then the longest back-off, each with jitter on top.
    for (pair, least) in times.windows(2).zip([100, 200].into_iter().chain(std::iter::repeat(300))) {
        let gap = pair[1] - pair[0];
        assert!(gap >= Duration::from_millis(least), "reconnected after {gap:?}; expected {least} ms");
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let mine = |level: &str| log.lines().filter(|line| line.contains(level) && line.contains("websocket failed")).count();
    assert_eq!(mine("WARN"), 1, "{log}");
    assert!(mine("DEBUG") >= 8, "{log}");
    assert!(log.lines().all(|line| !line.contains("websocket failed") || line.len() < 500), "{log}");
    let told: Vec<&str> = log.lines().filter(|line| line.contains("chain::heads")).collect();
    assert!(!told.concat().contains("secret"), "{told:?}");
    assert!(told.concat().contains("403") && told.concat().contains("no more connections"), "{told:?}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_user_and_a_password_in_the_url_are_sent_as_over_http() {
    let (authorized, seen) = tokio::sync::mpsc::channel(1);
    let server = Server::start(move |_, stream| {
        let authorized = authorized.clone();
        async move {
            #[expect(clippy::result_large_err, reason = "as tungstenite has it")]
            let look = |request: &Request, response: Response| {
                let header = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
                authorized.try_send((header, request.uri().to_string())).unwrap();
                Ok(response)
            };
            forever(accept_hdr_async(stream, look).await).await;
        }
    })
    .await;
    let (_heads, mut seen) = (server.heads(), seen);
    let (header, uri) = seen.recv().await.unwrap();
    assert_eq!((header.as_deref(), uri.as_str()), (Some("Basic dXNlcjpzZWNyZXQ="), "/secret?key=secret"));
}

#[tokio::test]
async fn tls_to_a_server_without_tls_fails_and_is_retried() {
    let first_bytes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&first_bytes);
    let server = Server::start(move |_, mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            let byte = stream.read_u8().await;
            seen.lock().unwrap().push(byte.unwrap_or_default());
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    })
    .await;
    // In a build without TLS its task would have panicked on the first attempt.
    let _heads = Heads::with_timeouts(&chain("wss", server.address), TIMEOUTS);
    server.until_connected(4).await;
    // The first byte of a TLS handshake: no URL, and no key in it, goes out in clear text.
    let bytes = first_bytes.lock().unwrap();
    assert!(bytes.len() >= 3 && bytes.iter().all(|byte| *byte == 22), "{bytes:?}");
}

#[tokio::test]
async fn dropping_the_last_clone_closes_the_sockets() {
    let (ended, end) = tokio::sync::mpsc::channel(1);
    let server = Server::start(move |_, stream| {
        let ended = ended.clone();
        async move {
            let mut socket = greet(stream).await;
            tell(&mut socket, 1).await;
            stay(socket, 1).await;
            ended.send(()).await.unwrap();
        }
    })
    .await;
    let (mut heads, mut end) = (server.heads(), end);
    next(&mut heads).await;
    drop(heads.clone());
    tokio::select! {
        _ = end.recv() => panic!("closed with a clone while another is in use"),
        () = tokio::time::sleep(TIMEOUTS.idle) => {}
    }
    drop(heads);
    tokio::time::timeout(LONG, end.recv()).await.expect("the socket stays open").unwrap();
    assert_eq!(server.connections().len(), 1);
}
