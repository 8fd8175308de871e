//! Which of several servers is used, and which connections are closed, with servers that speak as much of Postgres' protocol as that
//! takes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use runtime::Failure;
use runtime::db::{self, Primary, in_time};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(20);

/// A server.
#[derive(Clone)]
struct Server {
    port: u16,
    is: Arc<Mutex<Is>>,
    /// A connection that was worked on has ended.
    ended: Arc<Notify>,
    /// Sessions that were given in turn.
    given: Arc<AtomicUsize>,
}

/// How it answers.
#[derive(Clone, Copy)]
struct Is {
    writable: bool,
    timeline: u32,
    /// Its process was started anew.
    restarted: bool,
    /// Before a connection is opened.
    delay: Duration,
    still: bool,
    /// It has as many connections as it may have.
    full: bool,
    /// A pooler in front of it has one session for all connections.
    pooled: bool,
    /// Or it gives each statement the next session.
    in_turn: bool,
}

impl Server {
    async fn start(writable: bool, timeline: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let is = Is {
            writable,
            timeline,
            restarted: false,
            delay: Duration::ZERO,
            still: false,
            full: false,
            pooled: false,
            in_turn: false,
        };
        let port = listener.local_addr().unwrap().port();
        let server = Self { port, is: Arc::new(Mutex::new(is)), ended: Arc::default(), given: Arc::default() };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let server = serving.clone();
                tokio::spawn(async move { drop(server.serve(socket).await) });
            }
        });
        server
    }

    fn set(&self, change: impl FnOnce(&mut Is)) {
        change(&mut self.is.lock().unwrap());
    }

    fn is(&self) -> Is {
        *self.is.lock().unwrap()
    }

    async fn serve(&self, mut socket: TcpStream) -> std::io::Result<()> {
        let length = socket.read_u32().await?;
        self.read(&mut socket, length).await?;
        // No other first message is as short as the question whether the server speaks TLS.
        if length == 8 {
            // A server that is full says so after the answer.
            if !self.is().full {
                self.answers().await;
            }
            socket.write_u8(b'N').await?;
            let length = socket.read_u32().await?;
            self.read(&mut socket, length).await?;
        }
        tokio::time::sleep(self.is().delay).await;
        if self.is().full {
            return socket.write_all(&error("53300")).await;
        }
        self.answers().await;
        socket.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await?;
        let mut worked = false;
        while let Ok(kind) = socket.read_u8().await {
            let length = socket.read_u32().await?;
            let query = self.read(&mut socket, length).await?;
            if kind != b'Q' {
                break;
            }
            worked |= query.contains("work");
            if self.is().still {
                continue;
            }
            let Is { writable, timeline, restarted, pooled, in_turn, .. } = self.is();
            let value = if query.contains("transaction_read_only") {
                if writable { "off" } else { "on" }.to_owned()
            } else if query.contains("pg_walfile_name") {
                format!("{timeline:08X}")
            } else if query.contains("pg_backend_pid") && in_turn {
                self.given.fetch_add(1, Ordering::Relaxed).to_string()
            } else if query.contains("pg_backend_pid") && !pooled {
                // The port of the client is its own.
                socket.peer_addr()?.port().to_string()
            } else if query.contains("pg_postmaster_start_time") && restarted {
                "later".to_owned()
            } else {
                self.port.to_string()
            };
            socket.write_all(&if query.starts_with("DO") { error("25006") } else { row(&value) }).await?;
        }
        if worked {
            self.ended.notify_one();
        }
        Ok(())
    }

    async fn read(&self, socket: &mut TcpStream, length: u32) -> std::io::Result<String> {
        let mut text = vec![0; usize::try_from(length).unwrap() - 4];
        socket.read_exact(&mut text).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    async fn answers(&self) {
        while self.is().still {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

/// The answer to a query: one value.
fn row(value: &str) -> Vec<u8> {
    let description = [b"\0\x01v\0".as_slice(), &[0; 6], &25u32.to_be_bytes(), &[0xff; 6], &[0; 2]].concat();
    let length = u32::try_from(value.len()).unwrap().to_be_bytes();
    let data = [b"\0\x01".as_slice(), &length, value.as_bytes()].concat();
    [message(b'T', &description), message(b'D', &data), message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat()
}

fn error(code: &str) -> Vec<u8> {
    let error = format!("SERROR\0C{code}\0Mrefused\0\0");
    [message(b'E', error.as_bytes()), message(b'Z', b"I")].concat()
}

fn url(servers: &[&Server]) -> String {
    let hosts: Vec<String> = servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
    format!("postgres://u@{}/d", hosts.join(","))
}

/// Where a connection leads to.
async fn reached(primary: &Primary) -> u16 {
    let (client, _) = tokio::time::timeout(LONG, primary.open()).await.unwrap().unwrap();
    port(&client).await.unwrap()
}

async fn port(client: &tokio_postgres::Client) -> Result<u16, tokio_postgres::Error> {
    let answer = client.simple_query("SELECT work").await?;
    let value = |message: &tokio_postgres::SimpleQueryMessage| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    Ok(answer.iter().find_map(value).unwrap().parse().unwrap())
}

#[tokio::test]
async fn what_waits_for_a_server_that_stands_still_fails_once_another_is_the_primary() {
    let (old, new) = (Server::start(true, 1).await, Server::start(false, 1).await);
    let pool = db::pool(&url(&[&old, &new]), 1).unwrap();
    let client = pool.get().await.unwrap();
    assert_eq!(port(&client).await.unwrap(), old.port);
    old.set(|is| is.still = true);
    let waiting = port(&client);
    new.set(|is| (is.writable, is.timeline) = (true, 2));
    tokio::time::timeout(LONG, waiting).await.expect("it waits still").unwrap_err();
    drop(client);
    assert_eq!(port(&pool.get().await.unwrap()).await.unwrap(), new.port);
}

#[tokio::test]
async fn what_waits_for_a_server_that_stands_still_fails_when_nobody_answers_and_a_full_one_is_waited_for() {
    let (still, full) = (Server::start(true, 1).await, Server::start(true, 1).await);
    let open = async |server| {
        let primary = Primary::of(&url(&[server])).unwrap();
        tokio::time::timeout(LONG, primary.open()).await.unwrap().unwrap()
    };
    let ((client, _still), (patient, _full)) = (open(&still).await, open(&full).await);
    still.set(|is| is.still = true);
    full.set(|is| (is.still, is.full) = (true, true));
    let ended = tokio::select! {
        ended = tokio::time::timeout(LONG * 3, port(&client)) => ended,
        ended = port(&patient) => panic!("a server that is full is there: {ended:?}"),
    };
    ended.expect("it waits still").unwrap_err();
}

#[tokio::test]
async fn of_two_that_take_writes_the_one_that_was_promoted_last_is_used() {
    let (old, new) = (Server::start(true, 1).await, Server::start(true, 2).await);
    // No process knows of another one.
    let primary = Primary::of(&url(&[&old, &new])).unwrap();
    assert_eq!(reached(&primary).await, new.port);
    let problem = primary.problem().unwrap();
    assert!(problem.contains(&old.port.to_string()) && problem.contains("timeline 2"), "{problem}");
    // Nor does a slow answer lead back.
    new.set(|is| is.delay = Duration::from_millis(1_500));
    assert_eq!(reached(&Primary::of(&url(&[&old, &new])).unwrap()).await, new.port);
}

#[tokio::test]
async fn a_primary_that_answers_late_is_waited_for_while_the_others_are_asked() {
    let (slow, standby) = (Server::start(true, 1).await, Server::start(false, 1).await);
    let primary = Primary::of(&url(&[&slow, &standby])).unwrap();
    slow.set(|is| is.delay = Duration::from_millis(1_500));
    assert_eq!(reached(&primary).await, slow.port);
}

#[tokio::test]
async fn a_connection_whose_server_does_not_answer_in_time_is_closed_on_this_side_too() {
    let server = Server::start(true, 1).await;
    let pool = db::pool(&url(&[&server]), 1).unwrap();
    let client = pool.get().await.unwrap();
    server.set(|is| is.still = true);
    let (asked, limit) = (Instant::now(), Duration::from_millis(100));
    let work = async |client: &mut deadpool_postgres::Client| Ok::<_, Failure>(port(client).await?);
    in_time(client, limit, work).await.unwrap_err();
    tokio::time::timeout(LONG, server.ended.notified()).await.expect("it is open still");
    // Before the look that finds that nobody answers.
    assert!(asked.elapsed() < Duration::from_secs(5));
}

/// So a process that opens connections looks by that alone.
#[tokio::test]
async fn a_connection_that_is_opened_is_a_look_where_there_is_one_host() {
    let server = Server::start(true, 1).await;
    let primary = Primary::of(&url(&[&server])).unwrap();
    let (of_before, _) = primary.open().await.unwrap();
    server.set(|is| is.restarted = true);
    let (asked, (_of_now, _)) = (Instant::now(), primary.open().await.unwrap());
    // No other look finds anything before nobody has answered for long.
    server.set(|is| is.still = true);
    tokio::time::timeout(LONG, port(&of_before)).await.expect("it waits still").unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(5));
}

/// Locks, settings and prepared statements belong to a session.
#[tokio::test]
async fn a_pooler_that_gives_two_connections_one_session_is_noticed() {
    let server = Server::start(true, 1).await;
    let primary = Primary::of(&url(&[&server])).unwrap();
    assert!(!primary.shares_sessions().await.unwrap());
    server.set(|is| is.pooled = true);
    assert!(primary.shares_sessions().await.unwrap());
    server.set(|is| (is.pooled, is.in_turn) = (false, true));
    assert!(primary.shares_sessions().await.unwrap(), "no two statements have the same");
}
