//! Reads the recordings in this folder. Its `README.md` describes them and their sources.

use anyhow::{Context as _, Result};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

/// Reads the lines of `NAME.jsonl.gz`.
///
/// # Errors
/// If the file is missing or not JSON.
pub fn lines(name: &str) -> Result<Vec<Value>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("{name}.jsonl.gz"));
    let place = || path.display().to_string();
    let reader = BufReader::new(flate2::read::MultiGzDecoder::new(File::open(&path).with_context(place)?));
    reader.lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect::<Result<_>>().with_context(place)
}

/// Reads a JSON file.
///
/// # Errors
/// If the file is missing or not JSON.
pub fn json(file: &str) -> Result<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let place = || path.display().to_string();
    serde_json::from_reader(BufReader::new(File::open(&path).with_context(place)?)).with_context(place)
}
