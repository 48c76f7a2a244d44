//! See `crates/vfio-user/tests/corpus/client.rs`.
#![no_main]

#[path = "../../crates/vfio-user/tests/corpus/client.rs"]
mod client;
#[path = "../../crates/vfio-user/tests/corpus/input.rs"]
mod input;
#[allow(dead_code, reason = "it counts for this target, and asks nothing")]
#[path = "../../crates/vfio-user/tests/corpus/next_client.rs"]
mod next_client;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| client::run(bytes));
