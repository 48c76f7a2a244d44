//! A file that is mapped and made shorter: what the device finds, and what becomes of the process.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use rustix::fs::{MemfdFlags, memfd_create};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use vm_memory::{MmapRegion, VolatileMemory};
use whimbrel_device::dma::{Access, DmaFault, DmaSpace, FaultCause};
use whimbrel_device::{Errno, survive_lost_memory};
use whimbrel_memory::FileOffset;
use whimbrel_uapi::type1::DmaMapFlags;

const PAGE: u64 = 4096;
const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);
/// Says to this program what it shall do as a process of its own.
const ROLE: &str = "WHIMBREL_LOST_MEMORY";

fn memory(size: u64) -> File {
    let file = File::from(memfd_create(c"lost", MemfdFlags::CLOEXEC).unwrap());
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
        assert_eq!(result, Err(DmaFault::new(iova, 16, access, FaultCause::Lost)));
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
fn huge_pages_that_there_are_none_of_are_a_fault_and_leave_nothing_mapped() {
    let file = match memfd_create(c"huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB) {
        Ok(file) => File::from(file),
        // A kernel without huge pages.
        Err(_) => return,
    };
    let huge = file.metadata().unwrap().blksize();
    file.set_len(2 * huge).unwrap();
    survive_lost_memory().unwrap();
    let space = DmaSpace::default();
    let part = |offset| FileOffset::new(file.try_clone().unwrap(), offset);
    for (offset, size) in [(0, PAGE), (PAGE, huge), (0, huge + PAGE), (huge, huge - PAGE)] {
        assert_eq!(
            space.map(0, size, BOTH, part(offset)),
            Err(Errno::EINVAL),
            "{size:#x} bytes at {offset:#x}"
        );
    }
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:huge").count();
    assert_eq!(mapped(), 0);
    space.map(0, 2 * huge, BOTH, part(0)).unwrap();
    let written = space.write(huge, &[1; 16]);
    if ["nr_hugepages", "nr_overcommit_hugepages"].map(setting) == [0, 0] {
        assert_eq!(written.unwrap_err().cause, FaultCause::Lost);
    }
    assert_eq!(space.unmap(0, 2 * huge), Ok(2 * huge));
    assert_eq!(mapped(), 0);
}

#[test]
fn a_handler_that_cannot_be_installed_is_told_at_every_call() {
    let name = "a_handler_that_cannot_be_installed_is_told_at_every_call";
    if std::env::var_os(ROLE).is_none() {
        let status = run_alone(name);
        assert!(status.success(), "{status}");
        return;
    }
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let rules = [(libc::SYS_rt_sigaction, Vec::new())].into();
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, refused, std::env::consts::ARCH.try_into().unwrap());
    seccompiler::apply_filter(&BpfProgram::try_from(filter.unwrap()).unwrap()).unwrap();
    for _ in 0..2 {
        assert_eq!(survive_lost_memory().unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}

#[test]
fn any_other_bus_error_ends_the_process_as_before() {
    if std::env::var_os(ROLE).is_some() {
        let (_, file) = space();
        let size = 4 * PAGE as usize;
        let region: MmapRegion<()> =
            MmapRegion::from_file(vm_memory::FileOffset::new(file.try_clone().unwrap(), 0), size).unwrap();
        file.set_len(0).unwrap();
        region.get_slice(0, 8).unwrap().copy_to(&mut [0_u8; 8]);
        return;
    }
    let status = run_alone("any_other_bus_error_ends_the_process_as_before");
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

/// A number that the kernel shows of its memory.
fn setting(name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/sys/vm/{name}")).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// Runs a test of this file in a process of its own.
fn run_alone(name: &str) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("lost_memory::{name}"), "--nocapture"])
        .env(ROLE, "1")
        .output()
        .unwrap()
        .status
}
