//! A TCP tunnel to a server that a test can cut: websockets go through it.

use crate::process::free_listener;
use anyhow::{Context as _, Result};
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The listening end. Dropping it closes all connections.
pub struct Tunnel {
    /// The address it listens on.
    pub address: SocketAddr,
    to: String,
    serving: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Opens a tunnel to `to`, which is `host:port`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(to: &str) -> Result<Self> {
        let listener = free_listener()?;
        let (address, to) = (listener.local_addr()?, to.to_owned());
        let serving = tokio::spawn(serve(TcpListener::from_std(listener)?, to.clone()));
        Ok(Self { address, to, serving: Some(serving) })
    }

    /// Accepts connections from now on.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn open(&mut self) -> Result<()> {
        self.cut();
        let listener = TcpListener::bind(self.address).await.with_context(|| self.address.to_string())?;
        self.serving = Some(tokio::spawn(serve(listener, self.to.clone())));
        Ok(())
    }

    /// Closes all connections and refuses new ones.
    pub fn cut(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.cut();
    }
}

async fn serve(listener: TcpListener, to: String) {
    let mut passing = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        let to = to.clone();
        passing.spawn(async move {
            // Both ends see how it ends.
            if let Ok(mut far) = TcpStream::connect(to).await {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
        while passing.try_join_next().is_some() {}
    }
}
