//! What a client alone compiles.

use std::process::Command;

fn tree(features: &str) -> String {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none"]);
    cargo.args(["--package", "whimbrel-vfio-user", "--no-default-features", "--features", features]);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn neither_the_codec_nor_a_client_depends_on_the_driver_side() {
    assert!(!tree("").contains("whimbrel-device"));
    assert!(!tree("client").contains("whimbrel-device"));
    assert!(tree("server").contains("whimbrel-device"), "a server serves a driver");
}

#[test]
fn a_server_that_is_not_taken_over_does_not_depend_on_the_user_side() {
    assert!(!tree("server").contains("whimbrel-user"));
    assert!(tree("takeover").contains("whimbrel-user"), "the device's state moves as in a migration");
}
