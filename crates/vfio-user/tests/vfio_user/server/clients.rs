//! Clients that come, leave and return, at a path.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;
use whimbrel_device::Errno;
use whimbrel_models::Model;
use whimbrel_uapi::device::IrqSetFlags;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::message::{DeviceFeature, Kind, Request, SetIrqs, Version};
use whimbrel_vfio_user::{Backend, Capabilities, Served, Server, Stopper};

use super::support::*;

struct Running {
    folder: TempDir,
    stopper: Stopper,
    thread: JoinHandle<std::io::Result<Served>>,
    backend: Backend,
}

impl Running {
    fn new() -> Running {
        let folder = TempDir::new().unwrap();
        let backend = Backend::new(Board::open());
        let server = Server::bind(folder.path().join("socket"), backend.clone()).unwrap();
        let stopper = server.stopper();
        let thread = std::thread::spawn(move || server.run());
        Running { folder, stopper, thread, backend }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn client(&self) -> Peer {
        let mut peer = Peer::new(UnixStream::connect(self.path()).unwrap(), None);
        peer.agree(Backend::capabilities());
        peer
    }

    fn stop(self) -> u64 {
        self.stopper.stop();
        self.thread.join().unwrap().unwrap().clients
    }
}

fn busy(path: &Path) -> Option<Errno> {
    let mut peer = Peer::new(UnixStream::connect(path).unwrap(), None);
    let answer = peer.ask(&Request::Version(Version::proposal(Capabilities::default())));
    answer.err()
}

#[test]
fn only_its_owner_can_connect_to_the_socket_and_it_goes_away_with_the_server() {
    let running = Running::new();
    let path = running.path();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(running.stop(), 0);
    assert!(!path.exists());
}

#[test]
fn the_devices_state_outlives_its_clients_and_what_they_set_up_does_not() {
    let running = Running::new();
    let memory = memory(PAGE);
    let msi = Signal::new();
    let trigger = (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits();
    for round in 0..20_u8 {
        let mut peer = running.client();
        assert_eq!(peer.read(BAR, 0, 1).unwrap(), [round]);
        peer.write(BAR, 0, &[round + 1]).unwrap();
        // It would be EEXIST if the one before were still there.
        peer.map(0, PAGE, &memory).unwrap();
        peer.write(BAR, DOORBELL, &[0; 8]).unwrap();
        assert_eq!(msi.take(), 0, "the eventfd was another client's");
        let set = SetIrqs { flags: trigger, index: MSI, start: 0, count: 1, data: &[] };
        peer.ask_with(&Request::DeviceSetIrqs(set), &[msi.as_fd()]).unwrap();
        peer.write(BAR, DOORBELL, &[0; 8]).unwrap();
        assert_eq!(msi.take(), 1);
        // No waiting for the server to notice: who returns at once is served.
        drop(peer);
    }
    let backend = running.backend.clone();
    assert_eq!(running.stop(), 20);
    assert!(backend.device().bus().dma().is_empty());
}

#[test]
fn strangers_that_say_nothing_keep_no_client_out_and_are_turned_away() {
    let running = Running::new();
    // More than wait at a time, with those that wait to be accepted.
    let silent: Vec<UnixStream> = (0..24).map(|_| UnixStream::connect(running.path()).unwrap()).collect();
    let mut client = running.client();
    assert_eq!(client.write(BAR, 0, b"x"), Ok(1));
    for stream in silent {
        let mut stranger = Peer::new(stream, None);
        let told = stranger.receiver.receive().unwrap().map(|told| told.header.kind);
        assert_eq!(told, Some(Kind::Error(Errno::ETIMEDOUT.raw_os_error().cast_unsigned())));
        assert!(stranger.is_over());
    }
    drop(client);
    running.client();
    assert_eq!(running.stop(), 2);
}

#[test]
fn a_second_client_is_told_at_once_that_the_device_is_busy() {
    let running = Running::new();
    let mut first = running.client();
    for _ in 0..3 {
        assert_eq!(busy(&running.path()), Some(Errno::EBUSY));
    }
    assert_eq!(first.write(BAR, 0, b"x"), Ok(1), "the first goes on");
    drop(first);
    running.client();
    assert_eq!(running.stop(), 2);
}

#[test]
fn a_client_that_says_no_more_and_takes_no_answers_keeps_nobody_out() {
    let running = Running::new();
    let client = running.client();
    let stream = UnixStream::from(client.receiver.as_fd().try_clone_to_owned().unwrap());
    // The server's thread waits to send an answer once both directions are full.
    let mut request = Vec::new();
    for half in [7_u16, 9] {
        request.extend(half.to_ne_bytes());
    }
    for word in [32_u32, 0, 0, 0, 0, BAR, PAGE as u32] {
        request.extend(word.to_ne_bytes());
    }
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    while (&stream).write_all(&request).is_ok() {}
    stream.shutdown(Shutdown::Write).unwrap();

    let next = UnixStream::connect(running.path()).unwrap();
    next.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut next = Peer::new(next, None);
    next.agree(Backend::capabilities());
    assert_eq!(next.read(BAR, 0, 1).unwrap(), [0]);
    assert_eq!(running.stop(), 2);
    drop((client, stream));
}

#[test]
fn a_client_that_is_hung_up_on_sees_it_and_may_return() {
    let running = Running::new();
    for _ in 0..10 {
        let mut peer = running.client();
        // No message has this size.
        peer.sender.send(&[0; 16], &[]).unwrap();
        assert!(peer.receiver.receive().unwrap().is_some(), "it is told why");
        assert!(peer.is_over());
    }
    assert_eq!(running.stop(), 10);
}

#[test]
fn a_server_that_is_stopped_hangs_up() {
    let running = Running::new();
    let mut peer = running.client();
    assert_eq!(running.stop(), 1);
    assert!(peer.is_over());
}

#[test]
fn a_socket_of_a_dead_server_is_replaced_and_nothing_else_is() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let bind = || Server::bind(&path, Backend::new(Board::open()));
    let server = bind().unwrap();
    assert_eq!(bind().unwrap_err().kind(), std::io::ErrorKind::AddrInUse, "it is served");
    drop(server);
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(bind().unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn no_descriptor_is_left_of_a_client() {
    let host = Host::new();
    let file = memory(PAGE);
    let (read, write) = rustix::pipe::pipe().unwrap();
    let mut peer = host.client();
    peer.map(0, PAGE, &file).unwrap();
    peer.map(PAGE, PAGE, &file).unwrap();
    assert_eq!(descriptors_of(&file), 2, "one for all mappings of a file");
    let trigger = (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits();
    let set = SetIrqs { flags: trigger, index: MSI, start: 0, count: 1, data: &[] };
    // Refused, with a descriptor that tells when it is closed.
    peer.ask_with(&Request::DeviceSetIrqs(set), &[write.as_fd()]).unwrap_err();
    drop(write);
    assert_eq!(rustix::io::read(&read, &mut [0_u8]).unwrap(), 0);
    peer.leave().unwrap();
    assert_eq!(descriptors_of(&file), 1, "this one alone");
}

/// How many descriptors of this process are of a file.
fn descriptors_of(file: &std::fs::File) -> usize {
    let inode = file.metadata().unwrap().ino();
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter(|entry| std::fs::metadata(entry.path()).is_ok_and(|found| found.ino() == inode)).count()
}

#[test]
fn a_device_that_a_client_let_sleep_is_awake_for_the_next_one() {
    let device = "accel?state=4KiB".parse::<Model>().unwrap().open("accel").unwrap().into_device();
    let backend = Backend::new(device);
    for _ in 0..2 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = backend.clone();
        let thread = std::thread::spawn(move || serving.serve(theirs));
        let mut peer = Peer::new(ours, Some(thread));
        peer.agree(Backend::capabilities());
        let (feature, flags) = (Feature::LowPowerEntry.number(), FeatureFlags::SET);
        let sleep = Request::DeviceFeature(DeviceFeature { argsz: 8, feature, flags, data: &[] });
        peer.ask(&sleep).unwrap();
        let again = peer.ask(&sleep);
        assert_eq!(again.err(), Some(Errno::EINVAL), "it is let sleep already");
        peer.leave().unwrap();
    }
}
