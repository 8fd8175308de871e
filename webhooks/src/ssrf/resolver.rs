//! DNS under the guard: a resolver whose answers are checked for the connection that they are used for.

use super::guard::Guard;
use crate::lane::Lane;
use base::locked;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use uuid::Uuid;

/// Look-ups of names at once, for healthy endpoints, and for all others: silence on the names of many merchants makes their endpoints
/// fail, and leaves healthy ones theirs. A merchant has few of either.
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

/// Whose message a task sends, and in which lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sending {
    pub merchant: Uuid,
    pub lane: Lane,
}

tokio::task_local! {
    /// For whom a task resolves a name.
    pub static SENDING: Sending;
}

/// The system's resolver, which may keep a thread for half a minute where a name's servers are silent, whoever waits for it. The
/// process has 512 such threads for all that it does.
#[derive(Clone, Default)]
pub struct SystemResolver(Arc<LookUps>);

#[derive(Default)]
struct LookUps {
    healthy: Turns,
    others: Turns,
}

struct Turns {
    all: Arc<Semaphore>,
    of_merchants: Mutex<HashMap<Uuid, Arc<Semaphore>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MAX_LOOK_UPS)), of_merchants: Mutex::default() }
    }
}

impl SystemResolver {
    /// Does a look-up on a thread, when its turn comes. The turn ends with it, however early the caller leaves.
    async fn run<T: Send + 'static>(
        &self,
        sending: Option<Sending>,
        look_up: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let turns = match sending.map(|sending| sending.lane) {
            None | Some(Lane::Healthy) => &self.0.healthy,
            Some(Lane::Slow | Lane::Failing) => &self.0.others,
        };
        let own = sending.map(|Sending { merchant, .. }| {
            let mut all = locked(&turns.of_merchants);
            all.retain(|_, turns| Arc::strong_count(turns) > 1);
            Arc::clone(all.entry(merchant).or_insert_with(|| Arc::new(Semaphore::new(MAX_LOOK_UPS_OF_MERCHANT))))
        });
        let own = match own {
            Some(turns) => Some(turns.acquire_owned().await.map_err(io::Error::other)?),
            None => None,
        };
        let turn = Arc::clone(&turns.all).acquire_owned().await.map_err(io::Error::other)?;
        let looked_up = spawn_blocking(move || {
            let _turns = (turn, own);
            look_up()
        });
        looked_up.await.map_err(io::Error::other)?
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, sending) = (self.clone(), SENDING.try_with(|sending| *sending).ok());
        Box::pin(async move {
            let look_up = move || Ok((name.as_str(), 0).to_socket_addrs()?.collect::<Vec<SocketAddr>>());
            let addresses = resolver.run(sending, look_up).await?;
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
    struct Noting(Mutex<Option<Sending>>);

    impl Resolve for Noting {
        fn resolve(&self, _: Name) -> Resolving {
            *locked(&self.0) = SENDING.try_with(|sending| *sending).ok();
            Box::pin(async { Err("nothing".into()) })
        }
    }

    #[tokio::test]
    async fn a_look_up_is_known_to_be_for_a_merchants_message() {
        let (names, sending) = (Arc::new(Noting::default()), of(7, Lane::Slow));
        let clients = Clients::new(&Guard::new(Vec::new(), true), Arc::clone(&names) as Arc<dyn Resolve>).unwrap();
        let request = clients.post("http://name.example/".parse().unwrap()).build().unwrap();
        assert!(SENDING.scope(sending, clients.execute(Uuid::nil(), request)).await.is_err());
        assert_eq!(*locked(&names.0), Some(sending));
    }

    fn of(merchant: u128, lane: Lane) -> Sending {
        Sending { merchant: Uuid::from_u128(merchant), lane }
    }

    /// Look-ups that get no answer before the returned sender is dropped; whoever asks leaves.
    async fn silence(resolver: &SystemResolver, asked: impl Iterator<Item = Sending>) -> mpsc::Sender<()> {
        let (answer, silent) = mpsc::channel::<()>();
        let silent = Arc::new(Mutex::new(silent));
        let mut asking = JoinSet::new();
        for sending in asked {
            let (resolver, silent) = (resolver.clone(), Arc::clone(&silent));
            let look_up = move || {
                // Ends with the sender.
                let _ = locked(&silent).recv();
                Ok(())
            };
            asking
                .spawn(async move { timeout(Duration::from_millis(50), resolver.run(Some(sending), look_up)).await.is_err() });
        }
        assert!(asking.join_all().await.into_iter().all(|left| left), "nobody waits for longer");
        answer
    }

    #[tokio::test]
    async fn names_whose_servers_are_silent_keep_no_thread_from_others() {
        let (resolver, silent) = (SystemResolver::default(), of(1, Lane::Healthy));
        let answer = silence(&resolver, std::iter::repeat_n(silent, 600)).await;
        for sending in [Some(of(2, Lane::Healthy)), None] {
            assert_eq!(resolver.run(sending, || Ok(1)).await.unwrap(), 1, "others have their turn");
        }
        assert_eq!(resolver.0.healthy.all.available_permits(), MAX_LOOK_UPS - MAX_LOOK_UPS_OF_MERCHANT);
        drop(answer);
        assert_eq!(resolver.run(Some(silent), || Ok(1)).await.unwrap(), 1, "and so has it, after the answers");
    }

    #[tokio::test]
    async fn silence_on_the_names_of_many_failing_merchants_leaves_healthy_endpoints_theirs() {
        let resolver = SystemResolver::default();
        let silent = (0..16).flat_map(|merchant| std::iter::repeat_n(of(merchant, Lane::Failing), MAX_LOOK_UPS_OF_MERCHANT));
        let _answer = silence(&resolver, silent).await;
        assert_eq!(resolver.0.others.all.available_permits(), 0, "the failing ones have all of theirs");
        for merchant in [1, 99] {
            let healthy = timeout(Duration::from_secs(10), resolver.run(Some(of(merchant, Lane::Healthy)), || Ok(1))).await;
            assert_eq!(healthy.expect("it waits for the failing ones").unwrap(), 1);
        }
    }

    #[tokio::test]
    async fn a_merchant_that_looks_nothing_up_any_more_is_forgotten() {
        let resolver = SystemResolver::default();
        for merchant in 1..=3 {
            resolver.run(Some(of(merchant, Lane::Healthy)), || Ok(())).await.unwrap();
        }
        assert_eq!(locked(&resolver.0.healthy.of_merchants).len(), 1, "that of the last one");
    }
}
