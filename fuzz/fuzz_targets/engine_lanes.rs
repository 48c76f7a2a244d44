//! See `crates/engine/tests/corpus/lanes.rs`.
#![no_main]

#[allow(dead_code, reason = "other targets use more of it")]
#[path = "../../crates/engine/tests/corpus/destination.rs"]
mod destination;
#[allow(dead_code, reason = "other targets use more of it")]
#[path = "../../crates/engine/tests/corpus/devices.rs"]
mod devices;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../crates/engine/tests/corpus/lanes.rs"]
mod lanes;
#[allow(dead_code, reason = "other targets use more of it")]
#[path = "../../crates/engine/tests/corpus/stream.rs"]
mod stream;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lanes::run(bytes));
