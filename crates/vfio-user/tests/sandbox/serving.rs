//! A confined process serves a device, over the socket that is its standard input.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use libtest_mimic::Trial;
use whimbrel_device::{Bus, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Region, State};
use whimbrel_uapi::device::IrqSetFlags;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::message::{DeviceFeature, LoggingStart, Reply, Request, SetIrqs};
use whimbrel_vfio_user::{Backend, Sandbox};

use super::support::{BAR, Host, MAPPED, MARK, MSI, PAGE, Peer, Signal, mark_in, memory};
use super::{start, test};

const IOVA: u64 = 0x10_0000;

/// What is served.
const BOARD: &str = "board";
const FRAGILE: &str = "fragile";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("a confined server's device reaches memory and interrupts, and is signalled", reaches),
        test("a confined server's device gives its state, its log and its regions' files", gives),
        test("a confined server says on stderr that a driver has panicked, and where", panics),
    ]
}

pub(crate) fn inside(device: &str) {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    Sandbox::new().confine().unwrap();
    let backend = match device {
        BOARD => Host::new().backend,
        FRAGILE => Backend::new(DeviceFile::new(FRAGILE, Bus::new(), Box::new(Fragile))),
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
        Info { flags: DeviceInfoFlags::RESET, num_regions: 9, num_irqs: 5, capabilities: vec![] }
    }

    fn region(&self, _index: u32) -> Result<Region, Errno> {
        Ok(Region::absent(0))
    }

    fn reset(&mut self) -> Result<(), Errno> {
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

fn reaches() {
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

fn gives() {
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
    let request = DeviceFeature { argsz, feature: feature.index(), flags, data };
    peer.ask(&Request::DeviceFeature(request)).unwrap().fds
}

fn panics() {
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
