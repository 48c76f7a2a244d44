//! What the next server is told, and what the owner may do before it is there.

use std::path::Path;
use std::time::{Duration, Instant};

use whimbrel_user::{
    Device, DirtyReport, DmaMap, DmaMapFlags, DmaRegion, Errno, Error, IovaRange, Migratable,
};
use whimbrel_vfio_user::{
    Backend, Client, ClientOptions, ConnectionStatus, DmaMapping, IoAccess, Reconnect, RegionIoFd,
};

use super::super::board::{PAGE, RUNG, TARGET, bare_board, memory};
use super::super::support::open;
use super::{LONG, Serving, connect, wait_until, wait_until_reset};

const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

fn board(path: &Path) -> Serving {
    Serving::start(path, Backend::new(bare_board(true).0))
}

fn eventfd_of(part: &RegionIoFd) -> &std::os::fd::OwnedFd {
    let IoAccess::Ioeventfd { eventfd, .. } = &part.access else { panic!("{part:?}") };
    eventfd
}

fn ring(part: &RegionIoFd) {
    rustix::io::write(eventfd_of(part), &1_u64.to_ne_bytes()).unwrap();
}

fn rung(client: &mut Client) -> u64 {
    let mut rung = [0; 8];
    client.read_region(0, RUNG, &mut rung).unwrap();
    u64::from_ne_bytes(rung)
}

#[track_caller]
fn wait_until_rung(client: &mut Client, times: u64) {
    let deadline = Instant::now() + LONG;
    while rung(client) != times {
        assert!(Instant::now() < deadline, "the doorbell was rung {} times", rung(client));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Has the device write a byte by DMA, and returns whether it could.
fn writes(client: &mut Client, iova: u64) -> bool {
    client.write_region(0, TARGET, &iova.to_ne_bytes()).is_ok()
}

fn byte(region: &DmaRegion, at: u64) -> u8 {
    let mut byte = [0];
    region.bytes(at, 1).unwrap().copy_to(&mut byte);
    byte[0]
}

#[test]
fn doorbells_that_the_owner_has_ring_at_every_next_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let mut server = board(&path);
    let mut client = connect(&path, LONG);
    let parts = client.region_io_fds(0).unwrap();
    ring(&parts[0]);
    wait_until_rung(&mut client, 1);
    for times in 1..=3 {
        server.end();
        wait_until(&client, |client| client.connection_status() != ConnectionStatus::Connected);
        // For the device that is gone.
        ring(&parts[0]);
        server = board(&path);
        wait_until_reset(&client, times);
        assert_eq!(rung(&mut client), 0, "a signal from before the reset was passed on");
        ring(&parts[0]);
        wait_until_rung(&mut client, 1);
        ring(&parts[0]);
        wait_until_rung(&mut client, 2);
    }
    // Without the detour, which ends with it.
    let direct = client.region_io_fds(0).unwrap();
    ring(&direct[0]);
    wait_until_rung(&mut client, 3);
    ring(&parts[0]);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(rung(&mut client), 3);
}

#[test]
fn a_server_that_lacks_a_doorbell_has_another_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let more = whimbrel_device::IoeventfdWrite::new(0, 0x100, whimbrel_device::WriteWidth::One, 7);
    let options = whimbrel_vfio_user::BackendOptions::default().ioeventfds(vec![more]);
    let server = Serving::start(&path, Backend::with(bare_board(true).0, options));
    let client = connect(&path, LONG);
    assert_eq!(client.region_io_fds(0).unwrap().len(), 2);
    server.end();
    let _server = board(&path);
    wait_until(&client, |client| matches!(client.connection_status(), ConnectionStatus::Closed { .. }));
    let error = client.wait_reconnected().unwrap_err().to_string();
    assert!(error.contains("without the doorbell at 0x100 of region 0"), "{error}");
}

#[test]
fn memory_is_mapped_again_as_it_is_mapped_by_then() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    // By its file, and by messages.
    for by_messages in [false, true] {
        let capabilities = Client::capabilities();
        let capabilities = if by_messages { capabilities.max_msg_fds(0) } else { capabilities };
        let server = board(&path);
        let options = ClientOptions::default().capabilities(capabilities).reconnect(Reconnect::within(LONG));
        let mut client = Client::connect(&path, &options).unwrap();
        let regions: Vec<DmaRegion> = (0..5).map(|_| memory(PAGE)).collect();
        for (at, region) in (1..).zip(&regions[..3]) {
            client.map_dma(at * PAGE, BOTH, region.clone()).unwrap();
        }
        assert!(writes(&mut client, PAGE));
        server.end();
        wait_until(&client, |client| client.connection_status() != ConnectionStatus::Connected);
        // One of the first three goes, and two come, one of them at its place.
        assert_eq!(client.unmap_dma(2 * PAGE, PAGE).unwrap(), PAGE);
        assert_eq!(client.unmap_dma(2 * PAGE, PAGE).unwrap(), 0);
        let cut = client.unmap_dma(PAGE, PAGE / 2).unwrap_err();
        assert_eq!(cut.errno(), Some(Errno::EINVAL), "{cut}");
        client.map_dma(2 * PAGE, DmaMapFlags::READ, regions[3].clone()).unwrap();
        let twice = client.map_dma(2 * PAGE, BOTH, regions[4].clone()).unwrap_err();
        assert_eq!(twice.errno(), Some(Errno::EEXIST), "{twice}");
        let twice = vec![
            DmaMapping::new(9 * PAGE, BOTH, regions[4].clone()),
            DmaMapping::new(3 * PAGE, BOTH, regions[4].clone()),
        ];
        assert_eq!(client.map_dma_all(twice).unwrap_err().errno(), Some(Errno::EEXIST));
        client.map_dma_all(vec![DmaMapping::new(4 * PAGE, BOTH, regions[4].clone())]).unwrap();
        let _server = board(&path);
        wait_until_reset(&client, 1);
        for (page, is_writable) in [(1, true), (2, false), (3, true), (4, true), (5, false), (9, false)] {
            assert_eq!(
                writes(&mut client, page * PAGE + 7),
                is_writable,
                "page {page}, by messages {by_messages}"
            );
        }
        assert_eq!(byte(&regions[4], 7), b'x');
        assert_eq!(client.unmap_all_dma().unwrap(), 4 * PAGE);
    }
}

#[test]
fn everything_else_that_is_requested_without_a_server_fails_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = board(&path);
    let mut client = connect(&path, LONG);
    server.end();
    wait_until(&client, |client| client.connection_status() != ConnectionStatus::Connected);
    let begun = Instant::now();
    let refused = |error: Error| {
        assert_eq!(error.errno(), Some(Errno::ENOTCONN), "{error}");
        let text = error.to_string();
        assert!(text.contains("the server is gone; waiting up to "), "{text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
    };
    refused(client.info().unwrap_err());
    refused(client.read_region(0, 0, &mut [0; 4]).unwrap_err());
    refused(client.post_write(0, 0, &[0; 4]).unwrap_err());
    refused(client.reset().unwrap_err());
    refused(client.set_irq_triggers(0, 0, &[None]).unwrap_err());
    refused(client.region_io_fds(0).unwrap_err());
    refused(client.dma_logging_start(PAGE, &[]).unwrap_err());
    assert!(begun.elapsed() < LONG / 2);
    assert_eq!(client.resets(), 0);
}

fn reported(client: &mut Client, first_page: u64, pages: u64) -> u64 {
    let mut words = [0; 1];
    let mut report = DirtyReport::new(first_page * PAGE, pages * PAGE, PAGE, &mut words).unwrap();
    client.dma_logging_report(&mut report).unwrap();
    words[0]
}

#[test]
fn the_first_report_of_a_log_names_all_pages_dirty_and_the_next_only_those_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = board(&path);
    let mut client = connect(&path, LONG);
    client.map_dma(0, BOTH, memory(32 * PAGE)).unwrap();
    client.dma_logging_start(PAGE, &[IovaRange::new(0, 32 * PAGE).unwrap()]).unwrap();
    assert!(writes(&mut client, 3 * PAGE));
    assert_eq!(reported(&mut client, 0, 32), 1 << 3);
    server.end();
    wait_until(&client, |client| client.connection_status() != ConnectionStatus::Connected);
    let server = board(&path);
    wait_until_reset(&client, 1);
    assert!(writes(&mut client, 5 * PAGE));
    assert_eq!(reported(&mut client, 4, 4), 0b1111);
    assert_eq!(reported(&mut client, 0, 32), 0xffff_ff0f);
    assert!(writes(&mut client, 6 * PAGE));
    assert_eq!(reported(&mut client, 0, 32), 1 << 6);
    // A log that is stopped without a server does not run at the next.
    server.end();
    wait_until(&client, |client| client.connection_status() != ConnectionStatus::Connected);
    let mut words = [0; 1];
    client.unmap_dma_dirty(&mut DirtyReport::new(0, 32 * PAGE, PAGE, &mut words).unwrap()).unwrap();
    assert_eq!(words[0], 0xffff_ffff, "the log is lost");
    client.dma_logging_stop().unwrap();
    let _server = board(&path);
    wait_until_reset(&client, 2);
    assert!(!writes(&mut client, 0), "nothing is mapped");
    let mut report = DirtyReport::new(0, 32 * PAGE, PAGE, &mut words).unwrap();
    let error = client.dma_logging_report(&mut report).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL), "no log: {error}");
}

#[test]
fn a_device_that_may_not_have_been_reset_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let serve = || Serving::start(&path, Backend::new(bare_board(false).0));
    let server = serve();
    let mut client = connect(&path, LONG);
    server.end();
    let _server = serve();
    wait_until(&client, |client| matches!(client.connection_status(), ConnectionStatus::Closed { .. }));
    let error = client.read_region(0, 0, &mut [0; 4]).unwrap_err().to_string();
    assert!(error.contains("the same process still serves the device"), "{error}");
}

#[test]
fn a_client_without_a_path_or_without_the_option_does_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = board(&path);
    let mut client = Client::connect(&path, &ClientOptions::default()).unwrap();
    assert!(client.connection_events().is_none());
    server.end();
    let server = board(&path);
    assert_eq!(client.info().unwrap_err().errno(), Some(Errno::ECONNRESET));
    let closed = client.info().unwrap_err().to_string();
    assert!(closed.ends_with("the connection to the server is closed; connect again"), "{closed}");
    assert_eq!((client.resets(), client.wait_reconnected().unwrap()), (0, 0));
    server.end();

    let (_there, here) = std::os::unix::net::UnixStream::pair().unwrap();
    let options = ClientOptions::default().reconnect(Reconnect::within(LONG));
    let error = Client::new("card", here, &options).unwrap_err().to_string();
    assert!(error.contains("use Client::connect"), "{error}");
}

#[test]
fn handles_share_the_connection_and_the_last_one_ends_its_thread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let serve = || Serving::start(&path, Backend::new(open("serial")));
    let server = serve();
    let client = connect(&path, LONG);
    let mut other = client.clone();
    server.end();
    let server = serve();
    wait_until_reset(&client, 1);
    drop(client);
    assert_eq!(other.resets(), 1);
    other.info().unwrap();
    server.end();
    let begun = Instant::now();
    drop(other);
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
}
