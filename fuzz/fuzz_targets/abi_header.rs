//! See `crates/abi/tests/corpus/header.rs`.
#![no_main]

#[path = "../../crates/abi/tests/corpus/header.rs"]
mod header;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| header::run(bytes));
