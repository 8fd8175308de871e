//! What a failure says about its endpoint: nothing, a fault, or a lie.

use super::error::RpcError;

/// What a failure says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Nothing. We exceeded its rate limit.
    None,
    /// It failed. Several faults in a row open its circuit.
    Fault,
    /// Its answer failed the proof. One lie opens its circuit.
    Lie,
}

/// An error that came from an endpoint.
pub trait BlamesEndpoint {
    /// Classifies the error.
    fn blame(&self) -> Blame;
}

impl BlamesEndpoint for RpcError {
    fn blame(&self) -> Blame {
        if self.is_rate_limit() { Blame::None } else { Blame::Fault }
    }
}
