//! Crashes of a client's servers leave neither descriptors nor threads.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;
use vm_memory::MmapRegion;
use whimbrel_device::{IoeventfdWrite, WriteWidth};
use whimbrel_models::Model;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, DmaRegion, IovaRange, Migratable, State};
use whimbrel_vfio_user::{Backend, BackendOptions, Client, ClientOptions, Reconnect, Server};

use crate::leaks::open;

const PAGE: u64 = 4096;
const LONG: Duration = Duration::from_mins(1);
/// A doorbell: a write to the engine's interrupt status.
const BELL: IoeventfdWrite = IoeventfdWrite::new(0, 0x28, WriteWidth::Four, 1);

fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Serves the device while `then` runs.
fn served(path: &Path, then: impl FnOnce()) {
    let model = "accel?state=4KiB".parse::<Model>().unwrap().open("accel").unwrap();
    let backend = Backend::with(model, BackendOptions::default().ioeventfds(vec![BELL]));
    let server = Server::bind(path, backend).unwrap();
    let stopper = server.stopper();
    let thread = std::thread::spawn(move || server.run());
    then();
    stopper.stop();
    thread.join().unwrap().unwrap();
}

/// A client with everything that is restored, whose server crashes so many times.
fn life(path: &Path, crashes: u64) {
    let options = ClientOptions::default().reconnect(Reconnect::within(LONG));
    let mut client = None;
    served(path, || {
        let mut new = Client::connect(path, &options).unwrap();
        let memory: MmapRegion<()> = MmapRegion::new(PAGE as usize).unwrap();
        let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
        new.map_dma(0, rights, DmaRegion::from(Arc::new(memory))).unwrap();
        let interrupt = EventFd::new().unwrap();
        new.set_irq_triggers(1, 0, &[Some(interrupt.as_fd())]).unwrap();
        assert_eq!(new.region_io_fds(0).unwrap().len(), 1);
        new.dma_logging_start(PAGE, &[IovaRange::new(0, PAGE).unwrap()]).unwrap();
        client = Some(new);
    });
    let mut client = client.unwrap();
    for reset in 1..=crashes {
        served(path, || {
            wait_until(|| client.resets() == reset);
            // A session, whose file outlives its server.
            client.reset().unwrap();
            let file = client.set_state(State::PreCopy).unwrap();
            assert!(file.is_some());
        });
    }
    // Also while it waits for the next one.
}

pub(crate) fn crashes_leave_neither_descriptors_nor_threads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    life(&path, 1);
    let before = open(None);
    for crashes in [0, 1, 20] {
        life(&path, crashes);
    }
    let after = open(Some(before));
    assert!(after.0 <= before.0 && after.1 <= before.1, "{before:?} descriptors and threads, then {after:?}");
}
