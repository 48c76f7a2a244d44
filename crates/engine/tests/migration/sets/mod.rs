//! Migrations of several devices: they stop and start in the order that the header asks for, and all move or none does.

mod all_or_none;
mod barriers;
mod hangs;
mod identity;
mod parallel;
mod whole;

use whimbrel_user::State;

use crate::support::{At, Rig, Shape};

/// Three devices with memory.
fn three() -> Rig {
    Rig::set(3, &Shape::default()).with_memory(&[(0, 0x4000)])
}

/// What the source asks of each device, how often it passes first, and how errors name it.
const AT_SOURCE: [(At, u32, &str); 10] = {
    use State::{PreCopy, PreCopyP2p, Running, StopCopy};
    [
        (At::LogStart, 0, "DMA_LOGGING_START"),
        (At::Arc(Running, PreCopy), 0, "MIG_DEVICE_STATE to PRE_COPY"),
        (At::Precopy, 0, "VFIO_MIG_GET_PRECOPY_INFO"),
        (At::Precopy, 2, "VFIO_MIG_GET_PRECOPY_INFO"),
        (At::Read(PreCopy), 0, "read of data_fd"),
        (At::Read(PreCopy), 1, "read of data_fd"),
        (At::Arc(PreCopy, PreCopyP2p), 0, "MIG_DEVICE_STATE to PRE_COPY_P2P"),
        (At::Arc(PreCopyP2p, StopCopy), 0, "MIG_DEVICE_STATE to STOP_COPY"),
        (At::LogReport, 1, "DMA_LOGGING_REPORT"),
        (At::Read(StopCopy), 0, "read of data_fd"),
    ]
};

/// What the destination asks of each device before it is handed over, and how errors name it.
const BEFORE_HANDOVER: [(At, &str); 5] = {
    use State::{Resuming, Running, RunningP2p, Stop};
    [
        (At::Arc(Running, RunningP2p), "to RESUMING: "),
        (At::Arc(RunningP2p, Stop), "to RESUMING: "),
        (At::Arc(Stop, Resuming), "to RESUMING: "),
        (At::Write, "write to data_fd: "),
        (At::Arc(Resuming, Stop), "to STOP: "),
    ]
};

/// What the destination asks of each device once they are its own.
const AFTER_HANDOVER: [(At, &str); 2] = [
    (At::Arc(State::Stop, State::RunningP2p), "to RUNNING_P2P: "),
    (At::Arc(State::RunningP2p, State::Running), "to RUNNING: "),
];
