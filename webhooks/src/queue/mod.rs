//! The delivery queue in Postgres: what is due is claimed, what was attempted is settled.
//!
//! A claim is a lease. It moves `next_attempt` beyond the end of the attempt, so a delivery whose sender was killed is due
//! again by itself, and a sender that restarts under the same `CTRIP_INSTANCE` releases its own claims at once
//! ([`release_claims`]).
//!
//! Lock order: a transaction that needs an endpoint and its deliveries locks the endpoint first, and several of either by id,
//! so that none deadlock.
//!
//! Statements are planned before anybody knows how large the table will be. So what each looks for in it is a subquery in the
//! order of the one index that serves it: the planner would turn a join around, and read all that waits for an endpoint.

mod claim;
mod disabled;
mod endpoint_health;
mod front;
mod lease;
mod payment_order;
mod put_behind;
mod settle;

pub use claim::{ClaimLimits, MerchantLoad, claim_due};
pub use disabled::{MAX_FAILED_PER_STATEMENT, fail_pending};
pub use front::{pending, pending_since};
pub use lease::release_claims;
pub use put_behind::put_behind;
pub use settle::{MAX_KEPT_ATTEMPTS, Settled, settle};
