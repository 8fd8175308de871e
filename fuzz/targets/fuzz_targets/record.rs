//! A record as a topic holds it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::record(data));
