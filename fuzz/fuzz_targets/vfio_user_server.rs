//! See `crates/vfio-user/tests/corpus/server.rs`.
#![no_main]

#[path = "../../crates/vfio-user/tests/corpus/input.rs"]
mod input;
#[path = "../../crates/vfio-user/tests/corpus/next_client.rs"]
mod next_client;
#[path = "../../crates/vfio-user/tests/corpus/server.rs"]
mod server;
#[allow(dead_code, reason = "the tests of the server use all of it")]
#[path = "../../crates/vfio-user/tests/vfio_user/server/support.rs"]
mod support;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| server::run(bytes));
