//! Fetching proven blocks and heads from a chain's nodes.
//!
//! - `from_pool`: [`fetch_block`], with failover and confirmation by a second endpoint.
//! - `from_endpoint`: a block with its receipts from one endpoint. `receipts`: what to do without `eth_getBlockReceipts`, or where
//!   it fails. `traces`: which tracer an endpoint has, and what to do where it fails.
//! - `cross_check`: what no root covers, a second endpoint must confirm. `content`: what of a block that is.
//! - `head`: the newest head, and what single endpoints show: a block, their tags.

mod block_id;
mod content;
mod cross_check;
mod error;
mod fetched;
mod from_endpoint;
mod from_pool;
mod head;
mod options;
mod receipts;
mod traces;

pub use block_id::BlockId;
pub use content::find_content_witnesses;
pub use error::FetchError;
pub use fetched::{FetchedBlock, PlacedLog};
pub use from_pool::fetch_block;
pub use head::{
    Standing, Tags, Witnesses, fetch_below_hole, fetch_head, fetch_head_from, fetch_newest, fetch_standings, fetch_tags,
    find_witnesses, look_at,
};
pub use options::FetchOptions;
