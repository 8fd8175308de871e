//! An answer as a node sends it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::rpc(data));
