//! A confined process serves a device, over the socket that is its standard input.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{
    Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Region, State, survive_lost_memory,
};
use whimbrel_sandbox::Sandbox;
use whimbrel_uapi::device::IrqSetFlags;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::message::{
    DeviceFeature, DmaAccessModes, DmaMap, LoggingStart, Reply, Request, SetIrqs,
};
use whimbrel_vfio_user::{Backend, BackendOptions};

use super::start;
use crate::support::{
    BAR, BOTH, Board, DOORBELL, Host, MAPPED, MARK, MSI, PAGE, Peer, Signal, mark_in, memory,
    while_filled_and_drained,
};

const IOVA: u64 = 0x10_0000;

/// What is served.
const BOARD: &str = "board";
const FRAGILE: &str = "fragile";
const FOREIGN: &str = "foreign";

pub(crate) fn inside(device: &str) {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    Sandbox::new().confine().unwrap();
    survive_lost_memory().unwrap();
    let backend = match device {
        BOARD => Host::new().backend,
        FOREIGN => Backend::with(Board::open(), BackendOptions::default().foreign_memory(true)),
        FRAGILE => Backend::new(DeviceFile::new(FRAGILE, |_| Fragile)),
        other => panic!("{other}"),
    };
    // As a server does it: on a thread that is started later.
    let thread = std::thread::spawn(move || backend.serve(UnixStream::from(stdin)));
    match thread.join() {
        Ok(served) => served.unwrap(),
        // It has said so.
        Err(_panicked) => {}
    }
}

/// A device whose reset panics.
struct Fragile;

impl Driver for Fragile {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::RESET).num_regions(9).num_irqs(5)
    }

    fn region(&self, _index: u32) -> Result<Region, Errno> {
        Ok(Region::absent(0))
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        panic!("the card is on fire");
    }
}

/// A process that serves, and its client.
fn serve(device: &str) -> (Child, Peer) {
    let (there, here) = UnixStream::pair().unwrap();
    let mut command = start(&format!("serve {device}"));
    command.env("RUST_BACKTRACE", "1").stdin(OwnedFd::from(there)).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // The process alone has its end from here on.
    drop(command);
    let mut peer = Peer::new(here, None);
    peer.agree(Backend::capabilities());
    (child, peer)
}

#[track_caller]
fn leave(child: Child, peer: Peer) {
    peer.leave().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn a_confined_servers_device_reaches_memory_and_interrupts_and_is_signalled() {
    let (child, mut peer) = serve(BOARD);
    let memory: File = memory(PAGE);
    peer.map(IOVA, PAGE, &memory).unwrap();
    let msi = Signal::new();
    let flags = (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits();
    let set = SetIrqs { flags, index: MSI, start: 0, count: 1, data: &[] };
    // Only an eventfd is one.
    assert_eq!(peer.ask_with(&Request::DeviceSetIrqs(set), &[memory.as_fd()]).err(), Some(Errno::EINVAL));
    peer.ask_with(&Request::DeviceSetIrqs(set), &[msi.as_fd()]).unwrap();
    let doorbells = peer.ask(&Request::DeviceGetRegionIoFds { argsz: 4096, index: BAR }).unwrap();
    rustix::io::write(&doorbells.fds[0], &1_u64.to_ne_bytes()).unwrap();
    msi.wait();
    assert_eq!(mark_in(&memory), MARK);
    leave(child, peer);
}

pub(crate) fn a_confined_server_outlives_memory_that_is_lost_full_eventfds_and_foreign_files() {
    let (child, mut peer) = serve(FOREIGN);
    let ring = |peer: &mut Peer, iova: u64| peer.write(BAR, DOORBELL, &iova.to_ne_bytes()).unwrap();
    let told = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let flags = (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits();
    let set = SetIrqs { flags, index: MSI, start: 0, count: 1, data: &[] };
    peer.ask_with(&Request::DeviceSetIrqs(set), &[told.as_fd()]).unwrap();
    rustix::io::write(&told, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let short = memory(2 * PAGE);
    peer.map(IOVA, 2 * PAGE, &short).unwrap();
    for _ in 0..3 {
        ring(&mut peer, IOVA);
    }
    assert_eq!(mark_in(&short), MARK);
    while_filled_and_drained(told.as_fd(), || {
        for _ in 0..1000 {
            ring(&mut peer, IOVA);
        }
    });
    short.set_len(0).unwrap();
    ring(&mut peer, IOVA + PAGE);
    if let Ok(huge) = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB) {
        let huge = File::from(huge);
        let size = std::os::unix::fs::MetadataExt::blksize(&huge.metadata().unwrap());
        huge.set_len(size).unwrap();
        assert_eq!(peer.map(0x4000_0000, PAGE, &huge), Err(Errno::EINVAL));
        peer.map(0x4000_0000, size, &huge).unwrap();
        ring(&mut peer, 0x4000_0000);
    }
    let foreign = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let modes = DmaAccessModes::FILE_IO;
    let map = DmaMap { rights: BOTH, modes, offset: 0, iova: 0, size: PAGE };
    peer.ask_with(&Request::DmaMap(map), &[foreign.as_fd()]).unwrap();
    ring(&mut peer, 0);
    assert_eq!(mark_in(&foreign), MARK);
    assert_eq!(peer.ask_with(&Request::DeviceReset, &[foreign.as_fd()]).err(), Some(Errno::EINVAL));
    leave(child, peer);
}

pub(crate) fn a_confined_servers_device_gives_its_state_its_log_and_its_regions_files() {
    let (child, mut peer) = serve(BOARD);
    let data = LoggingStart::new(PAGE, &[(IOVA, PAGE)], &mut [[0; 16]]).to_bytes();
    ask_feature(&mut peer, Feature::DmaLoggingStart, &data);
    let stop_copy = [State::StopCopy.number().to_ne_bytes(), [0; 4]].concat();
    let mut fds = ask_feature(&mut peer, Feature::MigDeviceState, &stop_copy);
    // Half of the state over the socket of the commands, half over its own.
    let mut channel = Peer::new(UnixStream::from(fds.remove(0)), None);
    for half in [&mut peer, &mut channel] {
        let answer = half.ask(&Request::MigDataRead { size: PAGE as u32 / 2 }).unwrap();
        let Reply::MigDataRead { data } = answer.reply() else { panic!() };
        assert_eq!(data.len() as u64, PAGE / 2);
    }
    let region = peer.ask(&Request::DeviceGetRegionInfo { argsz: 4096, index: MAPPED }).unwrap();
    assert_eq!(region.fds.len(), 1);
    leave(child, peer);
}

fn ask_feature(peer: &mut Peer, feature: Feature, data: &[u8]) -> Vec<OwnedFd> {
    let (argsz, flags) = (8 + data.len() as u32, FeatureFlags::SET);
    let request = DeviceFeature { argsz, feature: feature.number(), flags, data };
    peer.ask(&Request::DeviceFeature(request)).unwrap().fds
}

pub(crate) fn a_confined_server_says_on_stderr_that_a_driver_has_panicked_and_where() {
    let (child, mut peer) = serve(FRAGILE);
    let mut out = whimbrel_vfio_user::message::MessageBuffer::new();
    out.request(1, false, &Request::DeviceReset);
    peer.sender.send(out.as_bytes(), &[]).unwrap();
    assert!(peer.is_over());
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {told}", output.status);
    assert!(told.contains("the card is on fire") && told.contains("serving.rs"), "{told}");
}
