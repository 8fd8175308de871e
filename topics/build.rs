//! Compiles `proto/` with protox, so that nobody needs a `protoc` on their machine.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut files: Vec<_> = std::fs::read_dir("proto")?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.sort();
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(&files, ["proto"])?;
    prost_build::Config::new()
        // Slices of the Kafka message instead of a copy a field.
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
