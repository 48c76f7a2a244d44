//! Descriptors of every kind, from a client that means no good.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, open};
use whimbrel_device::{Errno, survive_lost_memory};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_vfio_user::message::{DmaAccessModes, DmaMap, DmaUnmap, Request, SetIrqs};
use whimbrel_vfio_user::{Backend, BackendOptions};

use super::support::*;

const IOVA: u64 = 0x10_0000;
const MMAP: DmaAccessModes = DmaAccessModes::MMAP;
const FILE_IO: DmaAccessModes = DmaAccessModes::FILE_IO;
const NO_MODE: DmaAccessModes = DmaAccessModes::empty();

fn map(peer: &mut Peer, modes: DmaAccessModes, offset: u64, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    map_with(peer, BOTH, modes, offset, fd)
}

fn map_with(
    peer: &mut Peer,
    rights: DmaMapFlags,
    modes: DmaAccessModes,
    offset: u64,
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let map = DmaMap { rights, modes, offset, iova: IOVA, size: PAGE };
    peer.ask_with(&Request::DmaMap(map), fd.as_slice()).map(drop)
}

fn unmap(peer: &mut Peer) {
    peer.ask(&Request::DmaUnmap(DmaUnmap::All)).unwrap();
}

fn ring(peer: &mut Peer, iova: u64) {
    peer.write(BAR, DOORBELL, &iova.to_ne_bytes()).unwrap();
}

fn with(options: BackendOptions) -> Host {
    Host { backend: Backend::with(Board::open(), options) }
}

fn faults(host: &Host) -> u64 {
    host.backend.device().bus().dma().faults()
}

fn goes_on(peer: &mut Peer) {
    assert_eq!(peer.read(BAR, 0, 4).unwrap().len(), 4);
}

/// Descriptors that lead to no memory.
fn strange() -> Vec<(&'static str, OwnedFd)> {
    let device = |path| OwnedFd::from(File::options().read(true).write(true).open(path).unwrap());
    let of = |path, flags| open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let (socket, _) = UnixStream::pair().unwrap();
    vec![
        ("memory that is zeros without end", device("/dev/zero")),
        ("nothing", device("/dev/null")),
        ("a file on a disk", tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap().into()),
        ("this process's memory", device("/proc/self/mem")),
        ("a folder", of("/", OFlags::RDONLY)),
        ("a folder in memory", of("/dev/shm", OFlags::RDONLY)),
        ("no more than a name", of("/dev/shm", OFlags::PATH)),
        ("a pipe", rustix::pipe::pipe().unwrap().1),
        ("a socket", socket.into()),
        ("an eventfd", eventfd(0, EventfdFlags::CLOEXEC).unwrap()),
        ("an epoll", epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()),
    ]
}

#[test]
fn memory_is_taken_of_files_in_memory_alone() {
    let host = Host::new();
    let mut peer = host.client();
    for (what, fd) in strange() {
        for modes in [NO_MODE, MMAP, FILE_IO, MMAP | FILE_IO] {
            assert_eq!(map(&mut peer, modes, 0, Some(fd.as_fd())), Err(Errno::EINVAL), "{what} {modes:?}");
            goes_on(&mut peer);
        }
    }
    for file in [memory(PAGE), tempfile::tempfile_in("/dev/shm").unwrap()] {
        file.set_len(PAGE).unwrap();
        map(&mut peer, NO_MODE, 0, Some(file.as_fd())).unwrap();
        ring(&mut peer, IOVA);
        assert_eq!(mark_in(&file), MARK);
        unmap(&mut peer);
    }
}

#[test]
fn interrupts_are_told_to_eventfds_alone() {
    let mut peer = Host::new().client();
    let set = SetIrqs { flags: 0x24, index: MSI, start: 0, count: 1, data: &[] };
    let memory = memory(PAGE);
    let files = strange().into_iter().filter(|(what, _)| *what != "an eventfd");
    for (what, fd) in files.chain([("memory", memory.into())]) {
        assert_eq!(
            peer.ask_with(&Request::DeviceSetIrqs(set), &[fd.as_fd()]).err(),
            Some(Errno::EINVAL),
            "{what}"
        );
        goes_on(&mut peer);
    }
}

#[test]
fn an_interrupt_does_not_wait_for_a_client_that_has_filled_its_eventfd() {
    let host = Host::new();
    let mut peer = host.client();
    let told = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let set = SetIrqs { flags: 0x24, index: MSI, start: 0, count: 1, data: &[] };
    peer.ask_with(&Request::DeviceSetIrqs(set), &[told.as_fd()]).unwrap();
    rustix::io::write(&told, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let memory = memory(PAGE);
    peer.map(IOVA, PAGE, &memory).unwrap();
    for _ in 0..3 {
        ring(&mut peer, IOVA);
    }
    let mut count = [0; 8];
    rustix::io::read(&told, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), u64::MAX, "as after the kernel's own signals");
    peer.leave().unwrap();
}

#[test]
fn interrupts_go_on_while_a_client_fills_and_drains_its_eventfd() {
    let mut peer = Host::new().client();
    let told = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let set = SetIrqs { flags: 0x24, index: MSI, start: 0, count: 1, data: &[] };
    peer.ask_with(&Request::DeviceSetIrqs(set), &[told.as_fd()]).unwrap();
    let memory = memory(PAGE);
    peer.map(IOVA, PAGE, &memory).unwrap();
    while_filled_and_drained(told.as_fd(), || {
        for _ in 0..1000 {
            ring(&mut peer, IOVA);
        }
    });
    peer.leave().unwrap();
}

#[test]
fn a_descriptor_of_memory_is_used_as_the_client_says() {
    let cases = [
        (NO_MODE, true, Ok(())),
        (MMAP, true, Ok(())),
        (FILE_IO, true, Ok(())),
        (MMAP | FILE_IO, true, Ok(())),
        (NO_MODE, false, Ok(())),
        (MMAP, false, Err(Errno::EINVAL)),
        (FILE_IO, false, Err(Errno::EINVAL)),
        (MMAP | FILE_IO, false, Err(Errno::EINVAL)),
    ];
    let host = Host::new();
    let mut peer = host.client();
    for (modes, has_file, expected) in cases {
        let file = memory(3 * PAGE);
        let fd = has_file.then(|| file.as_fd());
        let offset = if has_file { 2 * PAGE } else { 0 };
        assert_eq!(map(&mut peer, modes, offset, fd), expected, "{modes:?} {has_file}");
        if expected.is_ok() && has_file {
            ring(&mut peer, IOVA + 8);
            let mut mark = [0; 8];
            file.read_exact_at(&mut mark, 2 * PAGE + 8).unwrap();
            assert_eq!(u64::from_ne_bytes(mark), MARK, "{modes:?}");
        }
        if expected.is_ok() {
            unmap(&mut peer);
        }
    }
    for flags in [0x4, 0x8, 0x13, 0x103, 0] {
        let mut payload = [32, flags].into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<_>>();
        payload.extend([0, IOVA, PAGE].into_iter().flat_map(u64::to_ne_bytes));
        assert_eq!(peer.ask_raw(7, 2, &payload), Err(Errno::EINVAL), "flags {flags:#x}");
    }
}

#[test]
fn file_io_takes_what_lies_in_the_file_and_is_open_for_it() {
    let host = Host::new();
    let mut peer = host.client();
    let file = memory(2 * PAGE);
    for offset in [2 * PAGE, i64::MAX.cast_unsigned() & !(PAGE - 1), u64::MAX - PAGE + 1] {
        assert_eq!(map(&mut peer, FILE_IO, offset, Some(file.as_fd())), Err(Errno::EINVAL), "{offset:#x}");
    }
    let named = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    named.as_file().set_len(PAGE).unwrap();
    let read_only = File::open(named.path()).unwrap();
    assert_eq!(map(&mut peer, FILE_IO, 0, Some(read_only.as_fd())), Err(Errno::EINVAL));
    map_with(&mut peer, DmaMapFlags::READ, FILE_IO, 0, Some(read_only.as_fd())).unwrap();
    unmap(&mut peer);
    map(&mut peer, FILE_IO, PAGE, Some(file.as_fd())).unwrap();
    file.set_len(PAGE).unwrap();
    let before = faults(&host);
    assert_eq!(
        host.backend.device().bus().dma().read(IOVA, &mut [0; 8]).unwrap_err().cause,
        FAULT_OF_A_SHORT_FILE
    );
    assert_eq!(faults(&host), before + 1);
}

const FAULT_OF_A_SHORT_FILE: whimbrel_device::dma::FaultCause =
    whimbrel_device::dma::FaultCause::Remote(Errno::EIO);

#[test]
fn memory_that_cannot_be_written_is_refused_to_be_written() {
    let mut peer = Host::new().client();
    let sealed = File::from(memfd_create("sealed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
    sealed.set_len(PAGE).unwrap();
    fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
    assert_eq!(map(&mut peer, NO_MODE, 0, Some(sealed.as_fd())), Err(Errno::EINVAL));
    map_with(&mut peer, DmaMapFlags::READ, NO_MODE, 0, Some(sealed.as_fd())).unwrap();
}

#[test]
fn huge_pages_are_mapped_whole_and_their_lack_is_a_fault() {
    survive_lost_memory().unwrap();
    let Ok(file) = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB) else { return };
    let file = File::from(file);
    let huge = std::os::unix::fs::MetadataExt::blksize(&file.metadata().unwrap());
    file.set_len(huge).unwrap();
    let host = Host::new();
    let mut peer = host.client();
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("/memfd:huge").count();
    let before = mapped();
    for _ in 0..1000 {
        assert_eq!(map(&mut peer, NO_MODE, 0, Some(file.as_fd())), Err(Errno::EINVAL));
    }
    assert_eq!(mapped(), before);
    let whole = DmaMap { rights: BOTH, modes: NO_MODE, offset: 0, iova: 0, size: huge };
    peer.ask_with(&Request::DmaMap(whole), &[file.as_fd()]).unwrap();
    // A fault, or the mark where there are huge pages.
    ring(&mut peer, 8);
    unmap(&mut peer);
    goes_on(&mut peer);
    assert_eq!(mapped(), before);
}

#[test]
fn a_client_may_map_as_much_as_the_server_allows() {
    let host = with(BackendOptions::default().max_client_memory(2 * PAGE));
    let mut peer = host.client();
    let file = memory(8 * PAGE);
    assert_eq!(peer.map(0, 3 * PAGE, &file), Err(Errno::ENOSPC));
    peer.map(0, PAGE, &file).unwrap();
    peer.map(PAGE, PAGE, &file).unwrap();
    for modes in [NO_MODE, FILE_IO] {
        assert_eq!(map(&mut peer, modes, 0, Some(file.as_fd())), Err(Errno::ENOSPC), "{modes:?}");
    }
    peer.ask(&Request::DmaUnmap(DmaUnmap::Range { iova: 0, size: PAGE, bitmap: None })).unwrap();
    map(&mut peer, FILE_IO, 0, Some(file.as_fd())).unwrap();
    // What the client is asked for takes no memory here.
    let remote = DmaMap { rights: BOTH, modes: NO_MODE, offset: 0, iova: 0x1_0000_0000, size: 1 << 30 };
    peer.ask(&Request::DmaMap(remote)).unwrap();
    unmap(&mut peer);
    peer.map(0, 2 * PAGE, &file).unwrap();
    peer.leave().unwrap();
    host.client().map(0, 2 * PAGE, &file).unwrap();
}

#[test]
fn a_server_that_takes_foreign_memory_reads_and_writes_any_file() {
    let host = with(BackendOptions::default().foreign_memory(true));
    let mut peer = host.client();
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    map(&mut peer, FILE_IO, PAGE, Some(file.as_fd())).unwrap();
    ring(&mut peer, IOVA + 16);
    let mut mark = [0; 8];
    file.read_exact_at(&mut mark, PAGE + 16).unwrap();
    assert_eq!(u64::from_ne_bytes(mark), MARK);
    unmap(&mut peer);
    // Memory of another process, which nothing can map.
    let target = Box::new([0_u8; 2 * PAGE as usize]);
    let address = (target.as_ptr() as u64).next_multiple_of(PAGE);
    let process = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
    map(&mut peer, MMAP | FILE_IO, address, Some(process.as_fd())).unwrap();
    ring(&mut peer, IOVA);
    let at = (address - target.as_ptr() as u64) as usize;
    let found = std::hint::black_box(&target)[at..].first_chunk().copied().unwrap();
    assert_eq!(u64::from_ne_bytes(found), MARK);
    unmap(&mut peer);
    let told = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    assert_eq!(map(&mut peer, FILE_IO, 0, Some(told.as_fd())), Err(Errno::EINVAL));
    for (what, fd) in strange() {
        assert_eq!(map(&mut peer, MMAP, 0, Some(fd.as_fd())), Err(Errno::EINVAL), "{what} is not mapped");
    }
}
