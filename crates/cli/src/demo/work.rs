//! The program that gives the device work and checks every result: the guest's driver, in a machine without a CPU.
//!
//! Everything it knows lies in guest memory, so that it moves with the memory and goes on at the destination where it
//! was at the source. The jobs and their right results follow from their numbers alone: job by job it fills a block,
//! copies it, has the copy summed, and changes a piece of the device's own state.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crc_fast::CrcAlgorithm;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use whimbrel_engine::Ram;
use whimbrel_models::accel::{
    CONTROL_ENABLE, Completion, Descriptor, INTERRUPT_COMPLETION, OPERATION_CHECKSUM, OPERATION_COPY,
    OPERATION_FILL, OPERATION_SCRAMBLE, REGISTER_COMPLETED, REGISTER_COMPLETION_BASE, REGISTER_CONTROL,
    REGISTER_INTERRUPT_ENABLE, REGISTER_INTERRUPT_STATUS, REGISTER_QUEUE_BASE, REGISTER_QUEUE_SIZE,
    REGISTER_STATE_BYTES, REGISTER_TAIL, STATUS_DONE,
};
use whimbrel_uapi::pci::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX};
use whimbrel_user::{Device, Local};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::machine::{Machine, Memory};
use super::messages::{Books, Finished};
use crate::failure::Failure;

const VARIABLES: GuestAddress = GuestAddress(0x1000);
const SUBMISSION_RING: u64 = 0x10000;
const COMPLETION_RING: u64 = 0x20000;
const RING_ENTRIES: u64 = 256;
/// Where the blocks begin.
const BLOCKS: u64 = 1 << 20;
/// Places for blocks. Twice as many as can be under way, so that a block is checked before it is written again.
const PLACES: u64 = 256;
const MOST_BLOCK_BYTES: u64 = 64 << 10;
/// Bytes of the device's own state that one job changes.
const SCRAMBLE_BYTES: u64 = 4096;
/// Jobs that belong together: fill, copy, checksum, scramble.
const JOBS: u64 = 4;

/// How often the program looks for itself, without an interrupt.
const TICK: PollTimeout = match PollTimeout::try_from_millis(2) {
    Some(timeout) => timeout,
    None => PollTimeout::ZERO,
};

/// What the program knows, as it lies in guest memory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Variables {
    submitted: u64,
    completed: u64,
    misplaced: u64,
    wrong: u64,
}
