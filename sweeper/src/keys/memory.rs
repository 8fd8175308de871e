//! Nobody reads keys out of the memory of this process, but root: no debugger of the same user, and no core dump.

use rustix::io;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Has no other process of this user read this one's memory, and no dump of it written, from now on.
///
/// # Errors
/// If the system refuses.
pub fn close() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

#[cfg(test)]
mod tests {
    use crate::keys::Seeds;
    use rustix::process::{DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit};
    use std::path::Path;

    #[test]
    fn no_mnemonic_is_read_while_this_process_can_be_dumped() {
        assert!(Seeds::read(Path::new("/nowhere")).is_err());
        assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
        assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
    }
}
