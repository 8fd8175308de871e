//! A flood of dust to one payment: the confirmer's memory, and how much later another merchant's payments in the same blocks are
//! confirmed.

use crate::figure::Figure;
use anyhow::Result;
use e2e::Flood;
use std::time::Duration;

pub async fn run() -> Result<Vec<Figure>> {
    let second = Duration::from_secs(1);
    let floods = [
        ("dust_block_peak_mb", "dust_block_delay", Flood { blocks: 1, transfers: 20_000, block_time: second }),
        ("dust_blocks_peak_mb", "dust_blocks_delay", Flood { blocks: 50, transfers: 1_000, block_time: second }),
    ];
    let mut figures = Vec::new();
    for (memory, delay, flood) in floods {
        eprintln!("dust: {} transfers to one payment in each of {} blocks, one a second", flood.transfers, flood.blocks);
        let (dry, wet) = (flood.without_dust().run().await?, flood.run().await?);
        eprintln!("  {} events; confirmed after {:?}, without dust {:?}", wet.events, wet.confirmed_after, dry.confirmed_after);
        figures.push(Figure::new(memory, wet.peak_memory_mb, "MB", "below 300"));
        let ratio = wet.confirmed_after.as_secs_f64() / dry.confirmed_after.as_secs_f64();
        figures.push(Figure::new(delay, ratio, "ratio", "at most 2"));
    }
    Ok(figures)
}
