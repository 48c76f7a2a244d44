//! Faults of the destination's device, by v2, in the order in which a migration meets them.

use super::{Comes, Trial, Way, destination, hold};

const TRIALS: &[Trial] = &[
    destination("arc RUNNING->RUNNING_P2P: EIO once", Comes::Fails),
    destination("arc RUNNING_P2P->STOP: EIO once", Comes::Fails),
    destination("arc STOP->RESUMING: EIO", Comes::Fails),
    destination("arc STOP->RESUMING: EIO broken", Comes::Fails),
    destination("arc STOP->RESUMING: 0", Comes::Fails),
    destination("arc STOP->RESUMING: 0 broken", Comes::Fails),
    destination("write after 0: EIO", Comes::Fails),
    destination("write after 4KiB: ENOSPC", Comes::Fails),
    destination("write after 0: short 1000 times", Comes::Completes),
    destination("delay * 200ms", Comes::Completes),
    // The source has been told by then that all is loaded.
    destination("arc RESUMING->STOP: EIO once", Comes::CompletesAndResets),
    destination("arc RESUMING->STOP: EIO broken once", Comes::CompletesAndResets),
    // The device is left in RESUMING, from where the next request leads on.
    destination("arc RESUMING->STOP: 0 once", Comes::Completes),
    destination("arc RESUMING->STOP: 0 broken once", Comes::CompletesAndResets),
    destination("arc STOP->RUNNING_P2P: EIO once", Comes::CompletesAndResets),
    destination("arc STOP->RUNNING_P2P: EIO broken once", Comes::CompletesAndResets),
    destination("arc RUNNING_P2P->RUNNING: EIO once", Comes::CompletesAndResets),
    destination("arc RUNNING_P2P->RUNNING: EIO broken once", Comes::CompletesAndResets),
    destination("reset: EIO", Comes::Completes),
];

const MODEL: &str = "accel?state=1MiB";

#[test]
#[ignore = "long"]
fn the_device_of_a_destination_fails() {
    hold(Way::Iommufd, MODEL, TRIALS);
}

#[test]
#[ignore = "long"]
fn the_device_of_a_destination_of_qemu_10_fails() {
    hold(Way::Group10, MODEL, TRIALS);
}
