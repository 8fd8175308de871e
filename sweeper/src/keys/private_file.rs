//! Files that nobody else can read.

use rustix::fs::OFlags;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use zeroize::Zeroizing;

/// Some mnemonics of 24 words, or a keystore.
const MAX_BYTES: usize = 16 * 1024;
/// All that group and others may have.
const OTHERS: u32 = 0o077;

/// Why a file is not read. No variant repeats what is in it.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    #[error("{file}: not readable")]
    Io {
        file: String,
        #[source]
        source: io::Error,
    },
    /// Not shown: an error ends in a log.
    #[error("it holds words, which are not shown here; expected the path of a file that holds them")]
    Words,
    /// A folder, a pipe or a device.
    #[error("{0}: not a regular file")]
    NotRegular(String),
    #[error("{file} belongs to user {owner}; expected {user}, who runs this process")]
    Owner { file: String, owner: u32, user: u32 },
    #[error("{file} has mode {mode:04o}, so others can read or change it; expected 0600 or 0400: chmod 600 {file}")]
    Mode { file: String, mode: u32 },
    #[error("{0}: more than {MAX_BYTES} bytes, so it holds something else")]
    TooLarge(String),
    #[error("{0}: not UTF-8")]
    NotText(String),
}

/// Reads a file that belongs to this process's user and that nobody else can read or change.
///
/// A link is followed, as secrets are mounted: what it leads to is opened once, and checked when it is open.
pub fn read(path: &Path) -> Result<Zeroizing<String>, PrivateFileError> {
    // A mnemonic has twelve at least.
    if path.to_string_lossy().split_whitespace().count() >= 12 {
        return Err(PrivateFileError::Words);
    }
    let file = || path.display().to_string();
    let failed = |source| PrivateFileError::Io { file: file(), source };
    // A pipe without a writer would block the opening.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let metadata = opened.metadata().map_err(failed)?;
    let (mode, user) = (metadata.mode() & 0o7777, rustix::process::geteuid().as_raw());
    if !metadata.is_file() {
        return Err(PrivateFileError::NotRegular(file()));
    }
    if metadata.uid() != user {
        return Err(PrivateFileError::Owner { file: file(), owner: metadata.uid(), user });
    }
    if mode & OTHERS != 0 {
        return Err(PrivateFileError::Mode { file: file(), mode });
    }
    // Reserved at once: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    opened.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_BYTES {
        return Err(PrivateFileError::TooLarge(file()));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| PrivateFileError::NotText(file()))?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    /// Whoever has put the words into the variable has them in the log else.
    #[test]
    fn words_in_the_place_of_a_path_are_not_shown() {
        let words = "abandon ".repeat(11) + "about";
        let refused = base::error_chain(&read(Path::new(&words)).unwrap_err());
        assert!(refused.contains("expected the path of a file") && !refused.contains("abandon"), "{refused}");
    }

    #[test]
    fn a_file_that_anybody_else_can_read_or_change_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mnemonic");
        fs::write(&path, "secret words").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644, 0o610, 0o777] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let refused = read(&path).unwrap_err();
            assert!(matches!(refused, PrivateFileError::Mode { mode: found, .. } if found == mode), "{mode:o}: {refused}");
            assert!(refused.to_string().contains("chmod 600") && !refused.to_string().contains("words"), "{refused}");
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(*read(&path).unwrap(), "secret words");
        }
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        assert_eq!(*read(&link).unwrap(), "secret words");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(read(&link).is_err(), "what the link leads to counts");
    }

    #[test]
    fn what_is_no_regular_file_or_too_large_is_refused_and_a_pipe_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(read(folder.path()), Err(PrivateFileError::NotRegular(_))));
        assert!(matches!(read(Path::new("/dev/null")), Err(PrivateFileError::NotRegular(_))));
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status().unwrap();
        assert!(made.success());
        assert!(matches!(read(&pipe), Err(PrivateFileError::NotRegular(_))));
        let large = folder.path().join("large");
        fs::write(&large, "x".repeat(MAX_BYTES + 1)).unwrap();
        fs::set_permissions(&large, Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(read(&large), Err(PrivateFileError::TooLarge(_))));
        assert!(matches!(read(&folder.path().join("none")), Err(PrivateFileError::Io { .. })));
    }
}
