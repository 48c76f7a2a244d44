//! See `crates/models/tests/corpus/nvme.rs`.
#![no_main]

#[path = "../../crates/models/tests/corpus/nvme.rs"]
mod nvme;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nvme::run(bytes));
