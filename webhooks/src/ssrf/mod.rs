//! The SSRF guard: messages go to the public Internet, or to networks that a setting names, and nowhere else.
//!
//! A name is checked where its addresses are used: [`GuardedResolver`] resolves it for the one connection that is about to be
//! made, so DNS rebinding gains nothing. A literal address is never resolved, so [`Guard::check_url`] checks it, before each
//! request. Redirects are not followed and no proxy is used (`clients`).

mod guard;
mod networks;
mod resolver;
#[cfg(test)]
mod tests;

pub use guard::{Guard, GuardError};
pub use resolver::{GuardedResolver, SENDING, Sending, SystemResolver};
