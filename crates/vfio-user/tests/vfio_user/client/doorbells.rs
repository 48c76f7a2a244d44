//! VFIO_USER_DEVICE_GET_REGION_IO_FDS: doorbells that are rung without a message.

use std::time::{Duration, Instant};

use whimbrel_device::{Errno, IoeventfdWrite, WriteWidth};
use whimbrel_user::Device;
use whimbrel_vfio_user::BackendOptions;
use whimbrel_vfio_user::{Backend, Client, ClientOptions, IoAccess, RegionIoFd};

use super::board::{PAGE, RING, RUNG, board, board_with, doorbell};

fn rung(client: &mut Client) -> u64 {
    let mut rung = [0; 8];
    client.read_region(0, RUNG, &mut rung).unwrap();
    u64::from_ne_bytes(rung)
}

fn ring(part: &RegionIoFd) {
    let IoAccess::Ioeventfd { eventfd, .. } = &part.access else { panic!("{part:?}") };
    rustix::io::write(eventfd, &1_u64.to_ne_bytes()).unwrap();
}

fn wait_until_rung(client: &mut Client, times: u64) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while rung(client) != times {
        assert!(Instant::now() < deadline, "the doorbell was not rung");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_doorbell_that_the_driver_names_is_rung_by_its_eventfd() {
    let (mut client, _) = board(&ClientOptions::default());
    for times in 1..=3 {
        let parts = client.region_io_fds(0).unwrap();
        let [part] = parts.as_slice() else { panic!("{parts:?}") };
        assert_eq!((part.offset, part.size), (doorbell().offset, 4));
        let IoAccess::Ioeventfd { datamatch, flags, .. } = part.access else { panic!("{part:?}") };
        assert_eq!((datamatch, flags), (Some(RING.into()), 1));
        ring(part);
        wait_until_rung(&mut client, times);
    }
    assert!(client.region_io_fds(1).unwrap().is_empty(), "a region that is not there has none");
    assert_eq!(client.region_io_fds(2).unwrap_err().errno(), Some(Errno::EINVAL));
}

#[test]
fn a_backend_has_more_doorbells_than_the_driver_names_and_each_once() {
    let more = |offset| IoeventfdWrite::new(0, offset, WriteWidth::One, 7);
    // More than the room that is asked for first: the client asks again.
    let list: Vec<_> = (0x100..0x180).map(more).chain([doorbell()]).collect();
    let (mut client, written) = board_with(&ClientOptions::default(), |device| {
        Backend::with(device, BackendOptions::default().ioeventfds(list))
    });
    let parts = client.region_io_fds(0).unwrap();
    let mut offsets: Vec<u64> = parts.iter().map(|part| part.offset).collect();
    offsets.sort_unstable();
    let expected: Vec<u64> = [doorbell().offset].into_iter().chain(0x100..0x180).collect();
    assert_eq!(offsets, expected);
    ring(parts.iter().find(|part| part.offset == 0x17f).unwrap());
    let deadline = Instant::now() + Duration::from_mins(1);
    while written.lock().is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(*written.lock(), [(0x17f, vec![7])]);
    ring(parts.iter().find(|part| part.offset == doorbell().offset).unwrap());
    wait_until_rung(&mut client, 1);
}

#[test]
fn no_more_doorbells_come_than_descriptors_can() {
    let list: Vec<_> = (0..PAGE / 8).map(|at| IoeventfdWrite::new(0, at * 4, WriteWidth::Four, at)).collect();
    for (most, expected) in [(3, 3), (0, 0)] {
        let capabilities = Client::capabilities().max_msg_fds(most);
        let options = ClientOptions::default().capabilities(capabilities);
        let backend = |device| Backend::with(device, BackendOptions::default().ioeventfds(list.clone()));
        let (client, _) = board_with(&options, backend);
        assert_eq!(client.region_io_fds(0).unwrap().len(), expected);
    }
}
