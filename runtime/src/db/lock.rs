//! Keys of advisory locks, in one place so that no two are the same. Other keys are hashes of names.

/// Held while migrating.
pub const MIGRATIONS: i64 = 7_233_017;
/// Held by the relay that publishes; its other instances stand by.
pub const RELAY: i64 = 7_233_018;
