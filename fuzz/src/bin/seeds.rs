//! `seeds FOLDER` writes the seeds of each target into a folder of its name in `FOLDER`.

use anyhow::{Context as _, Result};
use std::path::PathBuf;

fn main() -> Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).context("expected a folder")?);
    let fuzz::Seeds { rpc, record, body } = fuzz::seeds()?;
    for (target, seeds) in [("rpc", rpc), ("record", record), ("body", body)] {
        let folder = folder.join(target);
        std::fs::create_dir_all(&folder)?;
        for (place, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{place}")), seed)?;
        }
    }
    Ok(())
}
