//! The inputs that fuzzing has found for the NVM Express controller, and random ones.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod nvme;

#[test]
fn nothing_that_a_host_does_breaks_the_controller() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/commands");
    let mut inputs = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        nvme::run(&std::fs::read(file.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "the corpus is missing");
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let length = random.usize(..2048);
        let bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        nvme::run(&bytes);
    }
}
