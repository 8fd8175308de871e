//! Authentication, scopes and rate limits of the API.
//!
//! Every path below `/api/v1` goes through [`authenticate()`] as a whole, so that no handler can forget it. It requires a key,
//! counts the request against the key's rate limit, and requires the scope `write` for every method but GET and HEAD.
//! Keys, and how long one is cached, are [`merchants::KeyCache`]'s.

mod authenticate;
mod caller;
mod rate_limit;

pub use authenticate::{authenticate, insufficient_scope, unauthorized};
pub use caller::Caller;
pub use rate_limit::rate_limited;
