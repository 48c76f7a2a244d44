//! Connections that are over leave neither descriptors nor threads.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion};
use whimbrel_device::{IoeventfdWrite, WriteWidth};
use whimbrel_models::Model;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{DmaMap, DmaRegion, Migratable};
use whimbrel_vfio_user::BackendOptions;
use whimbrel_vfio_user::{Backend, Client, ClientOptions, DmaMapping, IoAccess, RegionRead};

const PAGE: u64 = 4096;
/// A doorbell: a write to the scratch register of a 16550.
const SCRATCH: IoeventfdWrite = IoeventfdWrite::new(0, 7, WriteWidth::One, 1);

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// Descriptors and threads of this process. A thread that was joined may still be listed for a moment.
pub(crate) fn open(most: Option<(usize, usize)>) -> (usize, usize) {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let found = (count("/proc/self/fd"), count("/proc/self/task"));
        let is_enough = most.is_none_or(|(fds, threads)| found.0 <= fds && found.1 <= threads);
        if is_enough || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ways in which client and server are connected.
fn ways() -> Vec<ClientOptions> {
    let all = Client::capabilities();
    let twin = all.clone();
    let no_twin = all.clone().twin_socket(None);
    let no_descriptors = all.max_msg_fds(0);
    [twin, no_twin, no_descriptors]
        .map(|capabilities| ClientOptions::default().capabilities(capabilities))
        .to_vec()
}

/// A region of one page at each of two addresses, one with a file and one without.
fn map(client: &mut Client) {
    let file = File::from(memfd_create("leaks", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(PAGE).unwrap();
    let shared: MmapRegion<()> = MmapRegion::from_file(FileOffset::new(file, 0), PAGE as usize).unwrap();
    let private: MmapRegion<()> = MmapRegion::new(PAGE as usize).unwrap();
    let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
    client.map_dma(0, rights, DmaRegion::from(Arc::new(shared))).unwrap();
    client.map_dma(PAGE, rights, DmaRegion::from(Arc::new(private))).unwrap();
}

/// What goes without a message for each, or with a descriptor that the client keeps.
fn use_all(client: &Client, takes_descriptors: bool) {
    let doorbells = client.region_io_fds(0).unwrap();
    assert_eq!(doorbells.len(), usize::from(takes_descriptors));
    for doorbell in &doorbells {
        let IoAccess::Ioeventfd { eventfd, .. } = &doorbell.access else { panic!("{doorbell:?}") };
        rustix::io::write(eventfd, &1_u64.to_ne_bytes()).unwrap();
    }
    client.post_write(0, SCRATCH.offset, &[2]).unwrap();
    let mut data = [0; 1];
    client.read_regions(&mut [RegionRead::new(0, SCRATCH.offset, &mut data)]).unwrap();
    // The second lies over what is mapped, so the first is not mapped either.
    let refused = [8 * PAGE, PAGE].map(|iova| {
        let private: MmapRegion<()> = MmapRegion::new(PAGE as usize).unwrap();
        DmaMapping::new(iova, DmaMapFlags::READ, DmaRegion::from(Arc::new(private)))
    });
    assert!(client.map_dma_all(refused.to_vec()).is_err());
}

fn connect(options: &ClientOptions, backend: &Backend, round: usize) {
    let (server, stream) = UnixStream::pair().unwrap();
    let serving = std::thread::spawn({
        let backend = backend.clone();
        move || backend.serve(server)
    });
    let mut client = Client::new("device", stream, options).unwrap();
    map(&mut client);
    use_all(&client, options.capabilities.max_msg_fds > 0);
    let device = backend.device().clone();
    let worker = std::thread::spawn(move || {
        let mut data = vec![0; 2 * PAGE as usize];
        // Until the client has left.
        while device.bus().dma().read(0, &mut data).is_ok() {}
    });
    match round % 3 {
        // It leaves by itself, with what it has mapped or without, while the device works.
        0 => {}
        1 => assert_eq!(client.unmap_dma(0, 2 * PAGE).unwrap(), 2 * PAGE),
        _ => client.reset().unwrap(),
    }
    drop(client);
    // The client may have left in the middle of an answer.
    let _ = serving.join().unwrap();
    worker.join().unwrap();
    assert!(backend.device().bus().dma().is_empty());
}

pub(crate) fn connections_that_are_over_leave_neither_descriptors_nor_threads() {
    let model = "serial".parse::<Model>().unwrap().open("serial 0").unwrap();
    let backend = Backend::with(model, BackendOptions::default().ioeventfds(vec![SCRATCH]));
    let round = |number: usize| ways().iter().for_each(|options| connect(options, &backend, number));
    // What is opened once and for all.
    round(0);
    let before = open(None);
    (0..60).for_each(round);
    let after = open(Some(before));
    assert!(after.0 <= before.0 && after.1 <= before.1, "{before:?} descriptors and threads, then {after:?}");
}
