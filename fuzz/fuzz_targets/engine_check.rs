//! See `crates/engine/tests/corpus/check.rs`.
#![no_main]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../crates/engine/tests/corpus/check.rs"]
mod check;
#[allow(dead_code, reason = "other targets use more of it")]
#[path = "../../crates/engine/tests/corpus/stream.rs"]
mod stream;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::run(bytes));
