//! Payments in Postgres: rows to [`Payment`](crate::Payment)s and back, and events into the outbox. Each file holds the statements
//! of one table, but for six: `touched` finds the payments that a batch can change, `lost` the blocks that a chain which begins
//! anew loses, `lists` the pages of lists, `covered` and `swept` what sweeps settle, and `outbox` writes an event into the history
//! too.
//!
//! Functions take the caller's connection or transaction and never commit. Rows are locked in the order of their ids, so that two
//! writers never deadlock. A list of values is one array parameter, so a batch of any size is one statement.

mod amount;
mod applied;
mod covered;
mod deposit_addresses;
mod heads;
mod intents;
mod issued;
mod lists;
mod lost;
mod orphans;
mod outbox;
mod outbox_told;
mod page;
mod parts;
mod payments;
mod restore;
mod swept;
mod told;
mod touched;
mod transfers;

pub use applied::{AppliedRecords, applied_records, remember_records};
pub use covered::{
    CoveredDeposits, CoveredPayment, Reach, covered_deposits, covered_payments, forget_settled_at, forget_settled_from,
    static_addresses,
};
pub use deposit_addresses::{deposit_addresses, find_address, insert_addresses, list_addresses, lock_customer_address};
pub use heads::{
    ChainDepth, ChainHead, ON_RETURN, OpenBlock, Reading, Witnessed, chain_depths, head_numbers, head_timestamps, lock_head,
    save_head, witnessed,
};
pub use intents::{Unacknowledged, delete_intents, lock_overdue_intents, unacknowledged_intents};
pub use issued::{issued_addresses, issued_payments, origins};
pub use lists::{PaymentFilter, Place, is_common_external_id, list_deposits, list_payments};
pub use lost::{LostBlocks, lost_blocks, paid_blocks};
pub use orphans::{
    OrphanTransfer, WaitingOrphans, count_orphans, give_token_up, orphans_by_token, orphans_in, owned_orphans, remove_orphans,
    save_orphans, take_orphans,
};
pub use outbox::{Claim, OutboxFront, OutboxRow, events_partition, record_events, record_requested_events};
pub use outbox_told::{claims, release_claims};
pub use page::Page;
pub use parts::{PartRow, counted_from, delete_parts, save_parts, touched_parts};
pub use payments::{
    OpenPayments, belongs_to_merchant, insert_deposits, insert_payments, insert_requested_payments, load_created,
    load_payments, load_small_payments, lock_payments, lock_touched_payments, open_payments, payment_created_at, save_payments,
};
pub use restore::{RestoredRows, lost_ids, restore_issued};
pub use swept::{chains_to_settle, put_confirmed, put_later, put_to_settle, save_swept, take_to_settle};
pub use told::{forget_told_events, is_behind_told_events, keep_told_events, told_events};
pub use touched::{BatchScope, touched_payments};
pub use transfers::{
    KnownTransfer, TransferOwner, TransferRow, known_transfers, left_blocks, list_transfers, remove_transfers, save_transfers,
    unexpected_transfers,
};
