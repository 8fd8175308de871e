//! A host behind a router, in network namespaces, that a test can let vanish: packets are dropped and nobody says so.

use crate::process::run;
use anyhow::Result;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

/// This host, a router and a server's host, linked in that order. Dropping it removes the last two.
pub struct Network {
    router: String,
    server: String,
    /// This host's end. A link's name is at most 15 bytes long.
    near: String,
    /// Of networks that are meant for benchmarks (RFC 2544): nothing else routes them.
    prefix: String,
}

impl Network {
    /// Makes it, or returns `None` where this process may not.
    ///
    /// # Errors
    /// When a link can't be made.
    pub fn start() -> Result<Option<Self>> {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let (process, next) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = format!("ct{process}-{next}");
        let prefix = format!("198.{}.{}", 18 + next % 2, process % 256);
        let network = Self { router: format!("{name}-router"), server: format!("{name}-server"), near: name, prefix };
        if ip(&format!("netns add {}", network.router)).is_err() {
            return Ok(None);
        }
        network.link()?;
        Ok(Some(network))
    }

    fn link(&self) -> Result<()> {
        let Self { router, server, near, prefix } = self;
        ip(&format!("netns add {server}"))?;
        ip(&format!("link add {near} type veth peer name near netns {router}"))?;
        ip(&format!("-n {router} link add far type veth peer name near netns {server}"))?;
        ip(&format!("addr add {prefix}.1/30 dev {near}"))?;
        ip(&format!("-n {router} addr add {prefix}.2/30 dev near"))?;
        ip(&format!("-n {router} addr add {prefix}.5/30 dev far"))?;
        ip(&format!("-n {server} addr add {prefix}.6/30 dev near"))?;
        ip(&format!("link set {near} up"))?;
        for (host, link) in [(router, "near"), (router, "far"), (server, "near"), (server, "lo")] {
            ip(&format!("-n {host} link set {link} up"))?;
        }
        ip(&format!("route add {prefix}.4/30 via {prefix}.2"))?;
        ip(&format!("-n {server} route add default via {prefix}.5"))?;
        self.forward(true)
    }

    /// The server's address.
    pub(crate) fn address(&self) -> String {
        format!("{}.6", self.prefix)
    }

    /// The command, as one that runs on the server's host.
    pub(crate) fn on_the_server(&self, command: &Command) -> Command {
        let mut there = Command::new("ip");
        there.args(["netns", "exec", &self.server]).arg(command.get_program()).args(command.get_args()).current_dir("/");
        there
    }

    /// Lets the router drop every packet from now on.
    ///
    /// # Errors
    /// When its setting can't be written.
    pub(crate) fn cut(&self) -> Result<()> {
        self.forward(false)
    }

    fn forward(&self, forwards: bool) -> Result<()> {
        let set = format!("echo {} > /proc/sys/net/ipv4/ip_forward", u8::from(forwards));
        run(Command::new("ip").args(["netns", "exec", &self.router, "sh", "-c", &set]))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.router] {
            let _ = ip(&format!("netns del {namespace}"));
        }
    }
}

fn ip(arguments: &str) -> Result<()> {
    run(Command::new("ip").args(arguments.split(' ')))
}
