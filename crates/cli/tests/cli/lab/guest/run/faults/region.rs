//! Faults of either side's device by v1, through a migration region.

use super::super::has_v1;
use super::{Comes, Trial, Way, destination, hold, source};

const TRIALS: &[Trial] = &[
    source("arc *->PRE_COPY: EIO once", Comes::Fails, ""),
    // The region shows a device that is not where it was asked to be as broken, at which QEMU aborts.
    source("arc *->PRE_COPY: EIO broken once", Comes::Aborts, ""),
    source("arc *->STOP_COPY: EIO broken once", Comes::Aborts, ""),
    source("read after 0 in STOP_COPY: EIO once", Comes::Fails, ""),
    destination("arc *->RESUMING: EIO", Comes::Fails),
    destination("arc *->RESUMING: EIO broken", Comes::Fails),
    destination("write after 0: EIO", Comes::Fails),
    destination("write after 4KiB: ENOSPC", Comes::Fails),
    destination("arc RESUMING->STOP: EIO once", Comes::Fails),
    destination("arc STOP->RUNNING_P2P: EIO once", Comes::Fails),
    source("arc STOP_COPY->STOP: EIO once", Comes::Completes, ""),
    source("read after 0 in STOP_COPY: short 1000 times", Comes::Completes, ""),
    destination("write after 0: short 1000 times", Comes::Completes),
    source("size: EIO", Comes::Completes, ""),
];

#[test]
#[ignore = "long"]
fn a_device_of_qemu_of_2022_fails() {
    if has_v1() {
        hold(Way::System, "accel?state=64KiB&protocol=v1", TRIALS);
    }
}
