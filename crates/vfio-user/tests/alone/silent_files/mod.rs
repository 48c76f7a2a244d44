//! Descriptors that lead to a file system that never answers.

pub(crate) mod file_system;

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use whimbrel_device::Errno;
use whimbrel_device::dma::DmaSpace;
use whimbrel_vfio_user::message::{DmaAccessModes, DmaMap, DmaUnmap, Request, SetIrqs, Version};
use whimbrel_vfio_user::{Backend, BackendOptions, MAX_FDS, Server};

use self::file_system::SilentFiles;
use crate::support::{BAR, BOTH, Board, DOORBELL, Host, MARK, MSI, PAGE, Peer, mark_in, memory};

const IOVA: u64 = 0x10_0000;
const MMAP: DmaAccessModes = DmaAccessModes::MMAP;
const FILE_IO: DmaAccessModes = DmaAccessModes::FILE_IO;
const NO_MODE: DmaAccessModes = DmaAccessModes::empty();

fn map(peer: &mut Peer, modes: DmaAccessModes, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let map = DmaMap { rights: BOTH, modes, offset: 0, iova: IOVA, size: PAGE };
    peer.ask_with(&Request::DmaMap(map), &[fd]).map(drop)
}

fn ring(peer: &mut Peer, iova: u64) {
    peer.write(BAR, DOORBELL, &iova.to_ne_bytes()).unwrap();
}

fn goes_on(peer: &mut Peer) {
    assert_eq!(peer.read(BAR, 0, 4).unwrap().len(), 4);
}

pub(crate) fn files_that_never_answer_are_refused_and_hold_up_nobody() {
    let Some(files) = SilentFiles::mount() else { return };
    let silent = files.file();
    let folder = tempfile::tempdir().unwrap();
    let host = Host::new();
    let server = Server::bind(folder.path().join("socket"), host.backend.clone()).unwrap();
    let server = server.allow_takeover();
    let path = server.path().to_owned();
    let serving = std::thread::spawn(move || server.run());
    let hello = Request::Version(Version::proposal(Backend::capabilities()));
    let connect = || {
        loop {
            let mut peer = Peer::new(UnixStream::connect(&path).unwrap(), None);
            match peer.ask(&hello) {
                Ok(_) => return peer,
                // The last client is about to be gone.
                Err(errno) => assert_eq!(errno, Errno::EBUSY),
            }
        }
    };
    let set = SetIrqs { flags: 0x24, index: MSI, start: 0, count: 1, data: &[] };
    let mut peer = connect();
    for modes in [NO_MODE, MMAP, FILE_IO] {
        assert_eq!(map(&mut peer, modes, silent.as_fd()), Err(Errno::EINVAL));
    }
    for request in [Request::DeviceSetIrqs(set), Request::DeviceReset] {
        assert_eq!(peer.ask_with(&request, &[silent.as_fd()]).err(), Some(Errno::EINVAL));
    }
    goes_on(&mut peer);
    let many = vec![silent.as_fd(); MAX_FDS];
    assert_eq!(peer.ask_with(&Request::DeviceReset, &many).err(), Some(Errno::EINVAL));
    let memory = memory(PAGE);
    assert_eq!(peer.map(IOVA, PAGE, &memory), Err(Errno::EMFILE), "it may give no more");
    goes_on(&mut peer);
    drop(peer);
    let mut next = connect();
    next.map(IOVA, PAGE, &memory).unwrap();
    ring(&mut next, IOVA);
    assert_eq!(mark_in(&memory), MARK);
    // Nor does a takeover wait, from the client that gives them too.
    assert_eq!(next.ask_with(&Request::DeviceReset, &many).err(), Some(Errno::EINVAL));
    let new = Server::take_over(&path, Backend::new(Board::open())).unwrap();
    assert!(serving.join().unwrap().unwrap().taken_over);
    let stopper = new.stopper();
    let serving = std::thread::spawn(move || new.run());
    ring(&mut next, IOVA);
    goes_on(&mut next);
    stopper.stop();
    serving.join().unwrap().unwrap();
}

pub(crate) fn foreign_memory_that_never_answers_is_a_fault_and_holds_up_nobody() {
    let Some(files) = SilentFiles::mount() else { return };
    let silent = files.file();
    let backend = Backend::with(Board::open(), BackendOptions::default().foreign_memory(true));
    let host = Host { backend };
    let faults = || host.backend.device().bus().dma().faults();
    let mut peer = host.client();
    assert_eq!(map(&mut peer, MMAP, silent.as_fd()), Err(Errno::EINVAL));
    map(&mut peer, FILE_IO, silent.as_fd()).unwrap();
    let started = Instant::now();
    ring(&mut peer, IOVA);
    assert!(started.elapsed() < 10 * DmaSpace::REMOTE_TIMEOUT, "{:?}", started.elapsed());
    assert_eq!(faults(), 1);
    for count in 2..50 {
        ring(&mut peer, IOVA);
        assert_eq!(faults(), count, "what is known to be silent is not waited for");
    }
    peer.ask(&Request::DmaUnmap(DmaUnmap::All)).unwrap();
    let memory = memory(PAGE);
    peer.map(IOVA, PAGE, &memory).unwrap();
    ring(&mut peer, IOVA);
    assert_eq!(mark_in(&memory), MARK);
    peer.leave().unwrap();
    goes_on(&mut host.client());
}
