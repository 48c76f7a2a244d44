//! What a user side without drivers in its process compiles.

use std::process::Command;

#[test]
fn a_user_side_without_local_does_not_depend_on_the_driver_side() {
    let tree = |features: &[&str]| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none"]);
        let cargo = cargo.args(["--package", "whimbrel-user"]).args(features);
        let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!tree(&["--no-default-features"]).contains("whimbrel-device"));
    assert!(tree(&[]).contains("whimbrel-device"), "a driver in this process needs it");
}
