//! See `crates/engine/tests/corpus/archive.rs`.
#![no_main]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../crates/engine/tests/corpus/archive.rs"]
mod archive;
#[allow(dead_code, reason = "other targets use more of it")]
#[path = "../../crates/engine/tests/corpus/destination.rs"]
mod destination;
#[allow(dead_code, reason = "other targets use more of it")]
#[path = "../../crates/engine/tests/corpus/devices.rs"]
mod devices;
#[allow(dead_code, reason = "other targets use more of it")]
#[path = "../../crates/engine/tests/corpus/stream.rs"]
mod stream;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| archive::run(bytes));
