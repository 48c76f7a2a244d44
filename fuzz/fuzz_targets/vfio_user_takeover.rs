//! See `crates/vfio-user/tests/corpus/takeover.rs`.
#![no_main]

#[path = "../../crates/vfio-user/tests/corpus/input.rs"]
mod input;
#[path = "../../crates/vfio-user/tests/corpus/next_client.rs"]
mod next_client;
#[allow(dead_code, reason = "the tests of the server use all of it")]
#[path = "../../crates/vfio-user/tests/vfio_user/server/support.rs"]
mod support;
#[path = "../../crates/vfio-user/tests/corpus/takeover.rs"]
mod takeover;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| takeover::run(bytes));
