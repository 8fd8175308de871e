//! A file lock per role and instance: a second start by mistake on the same machine is refused before it fences the first.
//!
//! It lies in the system's temporary folder. Across machines and containers it sees nothing; there the newcomer takes over, and
//! the older process says so and waits (`runtime::stage`).

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::path::Path;

/// A lock that is held until it is dropped, or the process ends.
pub struct InstanceLock {
    _file: Option<File>,
}

impl InstanceLock {
    /// Takes the lock of a role. `of` is what no two processes of it may share.
    ///
    /// # Errors
    /// When another process holds it.
    pub fn take(role: &str, of: &[&str]) -> anyhow::Result<Self> {
        let digest = Sha256::digest(of.join("\n"));
        Self::take_file(&std::env::temp_dir().join(format!("ctrip-{role}-{}.lock", hex::encode(&digest[..8]))), role)
    }

    fn take_file(path: &Path, role: &str) -> anyhow::Result<Self> {
        let failed = || format!("the lock of {role}, {}", path.display());
        let mut file = match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path) {
            Ok(file) => file,
            // Another user's, or a folder that is read-only. The lock is a help and no guarantee.
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                tracing::warn!("{}, can't be opened, so a second start would not be noticed: {error}", failed());
                return Ok(Self { _file: None });
            }
            Err(error) => return Err(error).with_context(failed),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).with_context(failed)?;
                bail!(
                    "{role} runs already as this instance, as process {}: another instance needs a CTRIP_INSTANCE of its own (a \
                     second ingest has no use; the first follows every chain)",
                    holder.trim()
                );
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
        }
        file.set_len(0).and_then(|()| file.rewind()).with_context(failed)?;
        writeln!(file, "{}", std::process::id()).with_context(failed)?;
        Ok(Self { _file: Some(file) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused_with_the_first_ones_id_until_it_ends() {
        let path = std::env::temp_dir().join(format!("ctrip-test-{}.lock", std::process::id()));
        let first = InstanceLock::take_file(&path, "detector").unwrap();
        let refused = InstanceLock::take_file(&path, "detector").err().unwrap().to_string();
        assert!(refused.contains(&std::process::id().to_string()) && refused.contains("CTRIP_INSTANCE"), "{refused}");
        drop(first);
        InstanceLock::take_file(&path, "detector").unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
