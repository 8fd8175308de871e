//! `ctrip resume`: lets a halted chain go on.

use anyhow::bail;
use runtime::Settings;

/// Prints why a chain halted and how many blocks resuming would take back. Resumes if `take_back` is that number.
pub async fn run(settings: Settings, chain: &str, take_back: u64) -> anyhow::Result<()> {
    let (found, resumed) = ingest::resume(&settings, chain, take_back).await?;
    println!("{chain} halted: {}", found.halted);
    println!("last block published: {}", found.tip);
    println!("last block that the nodes have too: {}", found.common);
    println!("blocks to take back: {}", found.take_back);
    if !resumed {
        bail!(
            "not resumed: it would take back the payments in those blocks; if that is right, run it again with --take-back {}",
            found.take_back
        );
    }
    println!("resumed: a running ingest continues within seconds");
    Ok(())
}
