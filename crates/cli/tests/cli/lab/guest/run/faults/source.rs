//! Faults of the source's device, by v2, in the order in which a migration meets them: up to the first that does not keep a
//! migration from its end, the same machine fails one migration after the other.

use super::{Comes, Trial, Way, hold, source};

/// The arcs of a device with pre-copy, and its data.
const WITH_PRE_COPY: &[Trial] = &[
    source("log start: ENOMEM once", Comes::Fails, "Failed to start DMA logging"),
    source("log report: EIO once", Comes::Fails, "Input/output error"),
    source("size: 0 once", Comes::Fails, "Failed to allocate migration data buffer"),
    source("arc RUNNING->PRE_COPY: EIO once", Comes::Fails, "Setting device in recover state RUNNING"),
    // It does not take the recovery state either.
    source(
        "arc RUNNING->PRE_COPY: EIO broken once",
        Comes::FailsAndResets,
        "Setting device in recover state RUNNING",
    ),
    source("arc RUNNING->PRE_COPY: 0 once", Comes::Fails, "Bad file descriptor"),
    source("arc RUNNING->PRE_COPY: 0 broken once", Comes::FailsAndResets, "Bad file descriptor"),
    source("read after 0 in PRE_COPY: EIO once", Comes::Fails, "Input/output error"),
    source("read after 4KiB in PRE_COPY: EIO once", Comes::Fails, "Input/output error"),
    // At the stop of its guest QEMU has no recovery state for a device, and resets it.
    source("arc PRE_COPY->PRE_COPY_P2P: EIO once", Comes::FailsAndResets, RESETTING),
    source("arc PRE_COPY->PRE_COPY_P2P: EIO broken once", Comes::FailsAndResets, RESETTING),
    source("arc PRE_COPY->PRE_COPY_P2P: 0 broken once", Comes::FailsAndResets, RESETTING),
    source("arc PRE_COPY_P2P->STOP_COPY: EIO once", Comes::FailsAndResets, RESETTING),
    source("arc PRE_COPY_P2P->STOP_COPY: EIO broken once", Comes::FailsAndResets, RESETTING),
    source("arc PRE_COPY_P2P->STOP_COPY: 0 broken once", Comes::FailsAndResets, "No such device"),
    source("read after 0 in STOP_COPY: EIO once", Comes::Fails, "Input/output error"),
    source("temporary end: 0", Comes::Completes, ""),
    // The device is left in RUNNING or PRE_COPY, from where the next request leads on.
    source("arc PRE_COPY->PRE_COPY_P2P: 0 once", Comes::Completes, ""),
    // QEMU takes the temporary end of pre-copy for the end of the state.
    source("arc PRE_COPY_P2P->STOP_COPY: 0 once", Comes::CompletesAndResets, ""),
    source("arc STOP_COPY->STOP: EIO once", Comes::Completes, ""),
    source("arc STOP_COPY->STOP: EIO broken once", Comes::Completes, ""),
    source("arc STOP_COPY->STOP: 0 once", Comes::Completes, ""),
    source("arc STOP_COPY->STOP: 0 broken once", Comes::Completes, ""),
    source("read after 4KiB in PRE_COPY: short 1000 times", Comes::Completes, ""),
    source("read after 4KiB in PRE_COPY: end once", Comes::Completes, ""),
    source("read after 0 in STOP_COPY: short 1000 times", Comes::Completes, ""),
    // The destination's device refuses a state that is cut, when it is to run.
    source("read after 0 in STOP_COPY: end", Comes::CompletesAndResets, ""),
    source("read after 0 in STOP_COPY: ENOMSG", Comes::CompletesAndResets, ""),
    source("delay * 200ms", Comes::Completes, ""),
    source("log stop: EIO once", Comes::Completes, ""),
    source("precopy: EIO", Comes::Completes, ""),
    source("precopy: initial 0 dirty 0", Comes::Completes, ""),
    source("reinit at end once", Comes::Completes, ""),
    source("reset: EIO", Comes::Completes, ""),
    source("size: EIO 1000 times", Comes::Never, ""),
    source("size: 100GiB", Comes::Never, ""),
];

/// The arcs of a device without.
const WITHOUT: &[Trial] = &[
    source("arc RUNNING_P2P->STOP: EIO once", Comes::FailsAndResets, RESETTING),
    source("arc RUNNING_P2P->STOP: EIO broken once", Comes::FailsAndResets, RESETTING),
    source("arc RUNNING_P2P->STOP: 0 broken once", Comes::FailsAndResets, "Invalid argument"),
    source("arc STOP->STOP_COPY: EIO once", Comes::Fails, "Input/output error"),
    source("arc STOP->STOP_COPY: EIO broken once", Comes::FailsAndResets, "Invalid argument"),
    source("arc STOP->STOP_COPY: 0 once", Comes::Fails, "Bad file descriptor"),
    source("arc STOP->STOP_COPY: 0 broken once", Comes::FailsAndResets, "Bad file descriptor"),
    source("read after 0 in STOP_COPY: EIO once", Comes::Fails, "Input/output error"),
    source("read after 4KiB in STOP_COPY: EIO once", Comes::Fails, "Input/output error"),
    source("arc RUNNING_P2P->STOP: 0 once", Comes::Completes, ""),
    source("arc STOP->STOP_COPY: EIO broken; reset: EIO", Comes::Aborts, ""),
];

const RESETTING: &str = "Recover state is ERROR. Resetting device";
const MODEL: &str = "accel?state=1MiB";
const WITHOUT_PRE_COPY: &str = "accel?state=1MiB&features=stop-copy,p2p";

#[test]
#[ignore = "long"]
fn the_device_of_a_source_fails() {
    hold(Way::Iommufd, MODEL, WITH_PRE_COPY);
}

#[test]
#[ignore = "long"]
fn the_device_of_a_source_without_pre_copy_fails() {
    hold(Way::Group, WITHOUT_PRE_COPY, WITHOUT);
}

#[test]
#[ignore = "long"]
fn the_device_of_a_source_of_qemu_10_fails() {
    hold(Way::Group10, MODEL, WITH_PRE_COPY);
    hold(Way::Iommufd10, WITHOUT_PRE_COPY, WITHOUT);
}
