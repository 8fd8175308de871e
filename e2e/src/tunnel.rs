//! A TCP connection's way to a server, which can be cut: what a websocket goes through.

use anyhow::{Context as _, Result};
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The near end. It ends when dropped, with all that goes through.
pub struct Tunnel {
    /// Where it listens.
    pub address: SocketAddr,
    to: String,
    serving: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// A way to `to`, `host:port`.
    ///
    /// # Errors
    /// When no port is to be had.
    pub async fn start(to: &str) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], crate::free_port()?));
        let mut tunnel = Self { address, to: to.to_owned(), serving: None };
        tunnel.open().await?;
        Ok(tunnel)
    }

    /// Connections are taken from now on.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn open(&mut self) -> Result<()> {
        self.cut();
        let listener = TcpListener::bind(self.address).await.with_context(|| self.address.to_string())?;
        self.serving = Some(tokio::spawn(serve(listener, self.to.clone())));
        Ok(())
    }

    /// Connections break off and are refused from now on.
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
            // How it ends is seen at both ends.
            if let Ok(mut far) = TcpStream::connect(to).await {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
        while passing.try_join_next().is_some() {}
    }
}
