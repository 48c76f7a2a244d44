//! A file that is mapped and made shorter: what the device finds, and what becomes of the process.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use whimbrel_device::dma::{Access, DmaFault, DmaSpace, FaultCause};
use whimbrel_device::survive_lost_memory;
use whimbrel_uapi::type1::DmaMapFlags;

const PAGE: u64 = 4096;
const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);
/// Says to this program what it shall do as a process of its own.
const ROLE: &str = "WHIMBREL_LOST_MEMORY";

fn memory(size: u64) -> File {
    let file = File::from(memfd_create(c"lost", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

/// Two mappings of four pages, of files of their own, one behind the other.
fn space() -> (DmaSpace, File) {
    let (space, file) = (DmaSpace::default(), memory(4 * PAGE));
    space.map(0, 4 * PAGE, BOTH, FileOffset::new(file.try_clone().unwrap(), 0)).unwrap();
    space.map(4 * PAGE, 4 * PAGE, BOTH, FileOffset::new(memory(4 * PAGE), 0)).unwrap();
    survive_lost_memory().unwrap();
    (space, file)
}

#[test]
fn an_access_to_what_was_cut_off_is_a_fault() {
    for access in [Access::Read, Access::Write] {
        let (space, file) = space();
        file.set_len(PAGE).unwrap();
        let iova = 2 * PAGE;
        let result = match access {
            Access::Read => space.read(iova, &mut [7; 16]),
            Access::Write => space.write(iova, &[7; 16]),
        };
        assert_eq!(result, Err(DmaFault { iova, length: 16, access, cause: FaultCause::Lost }));
        assert_eq!(space.faults(), 1);
    }
}

#[test]
fn what_is_still_there_is_reached_until_a_loss_is_found_and_no_more_after_it() {
    let (space, file) = space();
    space.write(0, b"first").unwrap();
    file.set_len(PAGE).unwrap();
    let mut found = [0; 5];
    space.read(0, &mut found).unwrap();
    assert_eq!(&found, b"first");
    space.read(PAGE, &mut found).unwrap_err();
    let again = space.read(0, &mut found).unwrap_err();
    assert_eq!(again.cause, FaultCause::Lost, "nobody else sees what a device would find there now");
}

#[test]
fn other_mappings_are_as_before_and_the_lost_one_can_be_taken_away() {
    let (space, file) = space();
    file.set_len(0).unwrap();
    space.read(3 * PAGE, &mut [0; 8]).unwrap_err();
    space.write(4 * PAGE, b"other").unwrap();
    let mut found = [0; 5];
    space.read(4 * PAGE, &mut found).unwrap();
    assert_eq!(&found, b"other");
    assert_eq!(space.unmap(0, 4 * PAGE), Ok(4 * PAGE));
    space.map(0, 4 * PAGE, BOTH, FileOffset::new(memory(4 * PAGE), 0)).unwrap();
    space.write(0, b"anew").unwrap();
}

#[test]
fn an_access_over_two_mappings_of_which_one_is_lost_is_a_fault() {
    let (space, file) = space();
    file.set_len(PAGE).unwrap();
    let fault = space.write(4 * PAGE - 8, &[1; 16]).unwrap_err();
    assert_eq!(fault.cause, FaultCause::Lost);
}

#[test]
fn a_loss_within_an_access_within_an_access_is_told_to_the_one_that_met_it() {
    let (space, file) = space();
    let inner = DmaSpace::default();
    inner.map(0, PAGE, BOTH, FileOffset::new(memory(PAGE), 0)).unwrap();
    file.set_len(PAGE).unwrap();
    let outer = space.access(2 * PAGE, 8, Access::Read, |slice| {
        inner.write(0, b"inner").unwrap();
        slice.copy_to(&mut [0_u8; 8]);
    });
    assert_eq!(outer.unwrap_err().cause, FaultCause::Lost);
    let mut found = [0; 5];
    inner.read(0, &mut found).unwrap();
    assert_eq!(&found, b"inner");
}

#[test]
fn any_other_bus_error_ends_the_process_as_before() {
    if std::env::var_os(ROLE).is_some() {
        let (_, file) = space();
        let size = 4 * PAGE as usize;
        let region: MmapRegion<()> =
            MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), size).unwrap();
        file.set_len(0).unwrap();
        region.get_slice(0, 8).unwrap().copy_to(&mut [0_u8; 8]);
        return;
    }
    let name = "any_other_bus_error_ends_the_process_as_before";
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ROLE, "1")
        .output()
        .unwrap()
        .status;
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}
