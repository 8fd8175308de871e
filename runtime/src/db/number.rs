//! Unsigned numbers as `bigint`. Block numbers, times and sequences are far below 2^63 on every chain.

/// Saturates.
pub fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// [`bigint`] back; 0 for a negative number, which no column holds.
pub fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
