//! What the API does with endpoints. Every function is scoped to one merchant, and finds nothing of another's.

mod endpoint;
mod ping;
mod rotate;
mod store;
pub(crate) mod wake;

pub use endpoint::Endpoint;
pub use ping::ping;
pub use rotate::{OLD_SECRET_TTL, rotate};
pub use store::{
    EndpointChanges, MAX_ENDPOINTS_IN_AN_HOUR, MAX_ENDPOINTS_PER_MERCHANT, Refusal, create, delete, get, list, update,
};
