//! Locks of values that are consistent at any time: a panic of whoever held one leaves nothing half done, so it is used on.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes the lock, whether or not somebody panicked while holding it.
pub fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
