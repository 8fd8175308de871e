//! DNS under the guard: a resolver whose answers are checked for the connection that they are used for.

use super::guard::Guard;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::SocketAddr;
use std::sync::Arc;

/// Passes another resolver's answer on, if the guard allows all of its addresses.
pub struct GuardedResolver {
    guard: Guard,
    names: Arc<dyn Resolve>,
}

impl GuardedResolver {
    /// A guard in front of the resolver `names`.
    pub fn new(guard: Guard, names: Arc<dyn Resolve>) -> Self {
        Self { guard, names }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let text = name.as_str().to_owned();
        let (guard, asked) = (self.guard.clone(), self.names.resolve(name));
        Box::pin(async move {
            let found = asked.await.map(Iterator::collect).unwrap_or_else(|error| {
                tracing::warn!("the host {text} of a webhook was not resolved: {error}");
                Vec::new()
            });
            let checked = guard.check_resolved(&text, found)?;
            Ok(Box::new(checked.into_iter()) as Addrs)
        })
    }
}

/// The system's resolver.
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
