//! DNS under the guard: a resolver whose answers are checked for the connection that they are used for.

use super::guard::Guard;
use base::locked;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use uuid::Uuid;

/// Look-ups of names at once. A merchant has few, so that silence on its names leaves others theirs.
const MAX_LOOK_UPS: usize = 64;
const MAX_LOOK_UPS_OF_MERCHANT: usize = 8;

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

tokio::task_local! {
    /// Whose message a task sends, and resolves a name for.
    pub static MERCHANT: Uuid;
}

/// The system's resolver, which may keep a thread for half a minute where a name's servers are silent, whoever waits for it. The
/// process has 512 such threads for all that it does.
#[derive(Clone)]
pub struct SystemResolver(Arc<LookUps>);

struct LookUps {
    all: Arc<Semaphore>,
    of_merchants: Mutex<HashMap<Uuid, Arc<Semaphore>>>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self(Arc::new(LookUps { all: Arc::new(Semaphore::new(MAX_LOOK_UPS)), of_merchants: Mutex::default() }))
    }
}

impl SystemResolver {
    /// Does a look-up on a thread, when its turn comes. The turn ends with it, however early the caller leaves.
    async fn run<T: Send + 'static>(
        &self,
        merchant: Option<Uuid>,
        look_up: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let own = merchant.map(|merchant| {
            let mut all = locked(&self.0.of_merchants);
            all.retain(|_, turns| Arc::strong_count(turns) > 1);
            Arc::clone(all.entry(merchant).or_insert_with(|| Arc::new(Semaphore::new(MAX_LOOK_UPS_OF_MERCHANT))))
        });
        let own = match own {
            Some(turns) => Some(turns.acquire_owned().await.map_err(io::Error::other)?),
            None => None,
        };
        let turn = Arc::clone(&self.0.all).acquire_owned().await.map_err(io::Error::other)?;
        let looked_up = spawn_blocking(move || {
            let _turns = (turn, own);
            look_up()
        });
        looked_up.await.map_err(io::Error::other)?
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, merchant) = (self.clone(), MERCHANT.try_with(|merchant| *merchant).ok());
        Box::pin(async move {
            let look_up = move || Ok((name.as_str(), 0).to_socket_addrs()?.collect::<Vec<SocketAddr>>());
            let addresses = resolver.run(merchant, look_up).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::Clients;
    use std::sync::mpsc;
    use std::time::Duration;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    #[derive(Default)]
    struct Noting(Mutex<Option<Uuid>>);

    impl Resolve for Noting {
        fn resolve(&self, _: Name) -> Resolving {
            *locked(&self.0) = MERCHANT.try_with(|merchant| *merchant).ok();
            Box::pin(async { Err("nothing".into()) })
        }
    }

    #[tokio::test]
    async fn a_look_up_is_known_to_be_for_a_merchants_message() {
        let (names, merchant) = (Arc::new(Noting::default()), Uuid::from_u128(7));
        let clients = Clients::new(&Guard::new(Vec::new(), true), Arc::clone(&names) as Arc<dyn Resolve>).unwrap();
        let request = clients.post("http://name.example/".parse().unwrap()).build().unwrap();
        assert!(MERCHANT.scope(merchant, clients.execute(Uuid::nil(), request)).await.is_err());
        assert_eq!(*locked(&names.0), Some(merchant));
    }

    #[tokio::test]
    async fn names_whose_servers_are_silent_keep_no_thread_from_others() {
        let resolver = SystemResolver::default();
        let (answer, silent) = mpsc::channel::<()>();
        let silent = Arc::new(Mutex::new(silent));
        let mut asked = JoinSet::new();
        for _ in 0..600 {
            let (resolver, silent) = (resolver.clone(), Arc::clone(&silent));
            let look_up = move || {
                // Ends with the sender.
                let _ = locked(&silent).recv();
                Ok(())
            };
            asked.spawn(async move {
                timeout(Duration::from_millis(50), resolver.run(Some(Uuid::from_u128(1)), look_up)).await.is_err()
            });
        }
        assert!(asked.join_all().await.into_iter().all(|left| left), "nobody waits for longer");
        for merchant in [Some(Uuid::from_u128(2)), None] {
            assert_eq!(resolver.run(merchant, || Ok(1)).await.unwrap(), 1, "others have their turn");
        }
        assert_eq!(resolver.0.all.available_permits(), MAX_LOOK_UPS - MAX_LOOK_UPS_OF_MERCHANT);
        drop(answer);
        assert_eq!(resolver.run(Some(Uuid::from_u128(1)), || Ok(1)).await.unwrap(), 1, "and so has it, after the answers");
    }
}
