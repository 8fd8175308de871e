//! The node of ingest's bench: prepared responses, from a process of its own so that its CPU time can be told apart.

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;
use axum::serve::{Listener as _, ListenerExt as _};
use e2e::prepared::Prepared;
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// `bench serve BLOCKS`: serves a chain of this many blocks until it is killed. Prints its URL when it listens.
pub async fn serve(blocks: u64) -> Result<()> {
    let chain = Arc::new(Prepared::new(blocks));
    // A response's end must not wait for the acknowledgement of its beginning.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            eprintln!("TCP_NODELAY: {error}");
        }
    });
    println!("http://{}", listener.local_addr()?);
    let router = Router::new().route("/", post(answer)).with_state(chain);
    axum::serve(listener, router).await.context("serving the prepared chain")
}

async fn answer(State(chain): State<Arc<Prepared>>, body: Bytes) -> ([(axum::http::HeaderName, &'static str); 1], Vec<u8>) {
    ([(CONTENT_TYPE, "application/json")], chain.answer(&body))
}

/// A running `bench serve`. Dropping it kills the process.
pub struct Server {
    _child: Child,
    /// Process id.
    pub id: u32,
    /// URL of its JSON-RPC.
    pub url: String,
}

impl Server {
    /// Starts this program again, as a node whose head is the last of this many blocks.
    pub async fn start(blocks: u64) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", &blocks.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("bench serve")?;
        let output = child.stdout.take().context("its output")?;
        let url = BufReader::new(output).lines().next_line().await?.unwrap_or_default();
        ensure!(url.starts_with("http://"), "bench serve printed {url:?}; expected its URL");
        Ok(Self { id: child.id().context("bench serve has ended")?, _child: child, url })
    }
}
