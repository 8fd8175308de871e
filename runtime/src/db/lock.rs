//! Keys of advisory locks, in one place so that no two are the same. Other keys are hashes of names.

/// Held while migrating.
pub const MIGRATIONS: i64 = 7_233_017;
/// Held by the relay that publishes; its other instances stand by.
pub const RELAY: i64 = 7_233_018;
/// Held while what Kafka has is compared with Postgres and written to it.
pub const CATCH_UP: i64 = 7_233_019;
/// Held by the process that compares on a schedule; the others look at the database alone.
pub const CATCH_UP_LEADER: i64 = 7_233_020;
/// Held while an account is registered.
pub const ACCOUNTS: i64 = 7_233_021;
