//! Mnemonics on disk. The words go into a file and nowhere else: no log, no terminal, no error.

use anyhow::Context as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use wallet::Mnemonic;

/// BIP-39's "25th word": none.
const PASSPHRASE: &str = "";

/// Writes a new mnemonic to `out`, prints its account xpub.
pub fn new(out: &Path) -> anyhow::Result<()> {
    let mnemonic = Mnemonic::generate()?;
    let xpub = mnemonic.account_xpub(PASSPHRASE)?;
    // `create_new` refuses a file that exists, in one step with making it; the mode holds from its first moment.
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(out).with_context(|| {
            format!("{}: expected the name of a file to make; a mnemonic is never written over", out.display())
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
    println!("{}", mnemonic.account_xpub(PASSPHRASE)?.as_str());
    Ok(())
}
