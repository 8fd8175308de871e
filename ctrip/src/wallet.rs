//! `ctrip wallet`: mnemonics on disk. The words go into a file and nowhere else: no log, no terminal, no error.

use ::wallet::{Mnemonic, NO_PASSPHRASE};
use anyhow::Context as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes a new mnemonic to `out` and prints its account xpub.
pub fn new(out: &Path) -> anyhow::Result<()> {
    let mnemonic = Mnemonic::generate()?;
    let xpub = mnemonic.account_xpub(NO_PASSPHRASE)?;
    // `create_new` checks and creates in one step, and the mode holds from the first moment.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(out).with_context(|| {
        format!("{}: expected a file that does not exist yet; a mnemonic is never overwritten", out.display())
    })?;
    writeln!(file, "{}", mnemonic.words())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("writing {}", out.display()))?;
    eprintln!("{}", out.display());
    println!("{}", xpub.as_str());
    Ok(())
}

/// Prints the account xpub of the mnemonic in `file`.
pub fn xpub(file: &Path) -> anyhow::Result<()> {
    let words = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let mnemonic = Mnemonic::parse(&words).with_context(|| file.display().to_string())?;
    println!("{}", mnemonic.account_xpub(NO_PASSPHRASE)?.as_str());
    Ok(())
}
