//! See `crates/vfio-user/tests/corpus/client.rs`.
#![no_main]

#[path = "../../crates/vfio-user/tests/corpus/client.rs"]
mod client;
#[path = "../../crates/vfio-user/tests/corpus/input.rs"]
mod input;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| client::run(bytes));
