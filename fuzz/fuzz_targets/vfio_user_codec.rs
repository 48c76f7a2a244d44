//! See `crates/vfio-user/tests/corpus/codec.rs`.
#![no_main]

#[path = "../../crates/vfio-user/tests/corpus/codec.rs"]
mod codec;
#[path = "../../crates/vfio-user/tests/corpus/input.rs"]
mod input;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| codec::run(bytes));
