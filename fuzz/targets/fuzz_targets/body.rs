//! A request body as a client sends it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::body(data));
