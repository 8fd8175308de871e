//! The transaction engine: each outgoing transaction is mined once, whatever dies.
//!
//! ```text
//! queued → signed → broadcast → mined → final     reverted: failed     not wanted any more: dropped
//!    ▲                  │  ▲       │
//!    └──── replaced ◄───┘  └───────┘ its block left the chain
//! ```
//!
//! - `step` has the rules and is pure, as are `outgoing`, `fees`, `answers`, `lane` and `content`. `tests/model.rs` tries them.
//! - `store` has the statements, `rows` what their rows mean, `fold` applies inputs in a transaction.
//! - `work` does what is to be done, `node` asks and sends.
//!
//! What always holds:
//!
//! 1. **A nonce is given out in the transaction of Postgres that stores the signed bytes**, under the lock of its lane, and
//!    once for ever (`outgoing_nonces`). It follows the highest of the lane; what the chain counts is asked when a lane begins,
//!    and never kept.
//! 2. **All attempts that can be mined have one nonce**, so the chain takes one of them. Another nonce is taken only when a
//!    stranger's transaction has used the first one in a final block.
//! 3. **Nothing is sent before Kafka has acknowledged its record**, so a database that goes back knows what may be on its way.
//! 4. **Blocks alone say what became of one**: `chain.blocks`, removed ones included. An answer that was lost is no failure.
//! 5. **The lowest nonce of a lane that waits is in flight**: it is sent again, raised when it is stuck up to a cap, and what
//!    is missing below is filled. What is not wanted any more is replaced by a transaction that does nothing, and never left
//!    out.
//! 6. **What is to be done follows from rows**, so a kill between any two steps loses nothing.
//!
//! It knows no payments: what to send, and from where, others say (`Kind`).

pub mod answers;
pub mod content;
pub mod fees;
pub mod fold;
pub mod lane;
pub mod node;
pub mod outgoing;
pub mod rows;
pub mod step;
pub mod store;
pub mod work;
