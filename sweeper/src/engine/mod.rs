//! The transaction engine: each outgoing transaction is mined once, whatever dies.
//!
//! ```text
//! queued → signed → broadcast → mined → final     reverted: failed     not wanted any more: dropped
//!    ▲                  │  ▲       │
//!    └──── replaced ◄───┤  └───────┘ its block left the chain
//!                       └► lost ─► mined, by a receipt
//! ```
//!
//! - `step` has the rules and is pure, as are `outgoing`, `fees`, `answers`, `lane`, `agreement` and `content`.
//!   `tests/model/` tries them.
//! - `store` and `history` have the statements, `rows` what their rows mean, `fold` applies inputs in a transaction. `restored`
//!   puts back what a database that went back has lost.
//! - `work` does what is to be done, `node` asks and sends.
//!
//! What always holds:
//!
//! 1. **A nonce is given out in the transaction of Postgres that stores the signed bytes**, under the lock of its lane, and
//!    once for ever (`outgoing_nonces`). It follows the highest of the lane, and the highest that a stranger's is believed to have.
//!    What the chain counts is asked at a block that was read, of as many providers as it has witnesses, and never kept beside;
//!    it holds if no block was removed while nodes were asked.
//! 2. **All attempts that can be mined have one nonce**, so the chain takes one of them. Another nonce is taken only when a
//!    stranger's transaction has used the first one in a final block, if whoever reads blocks believes that it is one: of
//!    `chain.blocks` none is believed, and the lane is counted anew. What nodes say gives up none.
//! 3. **Nothing is sent before Kafka has acknowledged its record.**
//! 4. **Blocks alone say what became of one**: `chain.blocks`, removed ones included. An answer that was lost is no failure.
//!    What blocks were read without, a receipt says that as many providers agree on as the chain has witnesses. One of a block
//!    that left the chain meanwhile changes nothing.
//! 5. **The lowest nonce of a lane that waits is in flight**: it is sent again, raised when it is stuck up to a cap, and what
//!    is missing below is filled, unless so much is missing that the count may be wrong. It is stuck if a node has taken it and a
//!    block was read since: an outage makes nothing dearer. What is not wanted any more is replaced by a transaction that does
//!    nothing, and never left out; what pays is not sent from then on.
//! 6. **What is to be done follows from rows**, so a kill between any two steps loses nothing.
//! 7. **Where blocks say what can't be, one is frozen** (`outgoing.frozen`), and where blocks are missing, it is `lost` until a
//!    receipt is found: nothing that pays is signed then, and a person is told. Where a record contradicts a row, its lane is.
//!
//! It knows no payments: what to send, and from where, others say (`Kind`), and what may be signed at all (`work::Rule`); and what of
//! that is not to be signed any more (`outgoing.withheld`), until they drop it.
//!
//! Whoever runs it reads the records back before anything else: else what a database that went back has lost would be signed
//! anew with another nonce.
//!
//! **What is missing**:
//!
//! - Words of nodes that mean a refusal for ever ("intrinsic gas too low", "exceeds block gas limit") are `Unknown`: such a
//!   transaction is only sent again, and holds up its lane until a person drops it. So does what all nodes but one refuse, since
//!   one has taken it or is silent. What a stranger's contract reverts with may read like a node's words.
//! - **A count that was too high can't be mended.** With one witness one wrong answer is enough: its nonces are given out for
//!   ever, and the lane waits below them. The same where strangers used more nonces than are filled (`lane::MAX_GAPS`), ours
//!   followed, and a reorg dropped theirs. A command has to give up nonces above what enough providers count in a final block,
//!   of which none has a receipt.
//! - A lane is counted by `eth_getTransactionCount` at a block's hash (EIP-1898). Where enough nodes know that in no form, or
//!   have no state of the newest block that was read, a new sender waits (`NotCounted`).
//! - One node's `eth_feeHistory` decides what is offered, up to `max_fee`.
//! - What was signed under a higher `max_fee` than is set now can be neither raised nor cancelled: it is sent again as it is.
//! - An idempotency key is everybody's: who uses one that somebody else has used gets that one's transaction (`Before`, or
//!   `Conflict`). Whoever takes requests puts the merchant into it.
//! - A mnemonic's file with mode 0440, as Kubernetes mounts a secret with an `fsGroup`, is refused, since its group can read it.
//! - A filler's or cancel's gas is fixed (`content`), and too little where a chain counts data for L1 as gas.
//! - Copies that derivation makes of a key on the stack are not overwritten.
//! - Nothing resolves a `lost` or frozen one, nor gives up the nonce of a record that was set aside: what its lane signs later
//!   waits behind it.
//! - `sweep.events` is read whole at each start, and each signature in it recovered.

pub mod agreement;
pub mod answers;
pub mod content;
pub mod fees;
pub mod fold;
pub mod history;
pub mod lane;
pub mod node;
pub mod outgoing;
pub mod restored;
pub mod rows;
pub mod step;
pub mod store;
pub mod work;
