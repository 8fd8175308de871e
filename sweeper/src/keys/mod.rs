//! Private keys, and who signs with them. `wallet` derives them; no other crate names one.
//!
//! - [`Signer`] is what the engine signs with: a key in this process today, a key elsewhere by another implementation.
//! - [`LocalKey`] is a key in this process. [`Seeds`] has those of deposit addresses, from `CTRIP_MNEMONIC_FILE`.
//!
//! Nothing that is printed shows a key: no `Debug`, no error. Keys are overwritten when they are dropped. Before the first one
//! is read, the memory of the process is closed to all but root (`memory`).

mod local;
mod memory;
mod private_file;
mod seeds;
mod signer;

pub use local::{LocalKey, LocalKeyError};
pub use private_file::PrivateFileError;
pub use seeds::{Seeds, SeedsError};
pub use signer::{SignError, Signer};
