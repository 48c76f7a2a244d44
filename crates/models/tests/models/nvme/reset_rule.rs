//! A reset in pre-copy that keeps the session, by the device's own rule. Clients of a server ask for it otherwise.

use whimbrel_device::{ResetRule, State};

use super::host::{Bench, load, read_all};

#[test]
fn a_reset_in_pre_copy_can_keep_the_session() {
    let bench = Bench::new();
    let host = bench.host();
    let device = { host }.device();
    device.set_reset_rule(ResetRule::KeepsPrecopy).unwrap();
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let mut stream = read_all(&data);
    device.reset().unwrap();
    assert_eq!(device.mig_state(), Ok(State::PreCopy));
    device.set_mig_state(State::StopCopy).unwrap();
    stream.extend(read_all(&data));
    let destination = bench.device();
    load(&destination, &stream);
    destination.set_mig_state(State::Running).unwrap();
    let mut registers = [0; 12];
    destination.read_region(0, 0x14, &mut registers).unwrap();
    assert_eq!(registers, [0; 12], "not enabled, not ready");
}
