//! The client's memory: mapped, reached by the device, unmapped, and logged.

use std::os::fd::AsFd;

use whimbrel_device::{Errno, survive_lost_memory};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::type1::DmaUnmapFlags;
use whimbrel_vfio_user::Backend;
use whimbrel_vfio_user::message::DmaAccessModes;
use whimbrel_vfio_user::message::{
    BitmapRequest, DeviceFeature, DmaMap, DmaUnmap, LoggingReport, LoggingStart, Reply, Request,
};

use super::support::*;

const IOVA: u64 = 0x10_0000;

fn ring(peer: &mut Peer, iova: u64) {
    peer.write(BAR, DOORBELL, &iova.to_ne_bytes()).unwrap();
}

fn unmap(peer: &mut Peer, iova: u64, size: u64) -> Result<u64, Errno> {
    unmap_by(peer, DmaUnmap::Range { iova, size, bitmap: None })
}

fn unmap_by(peer: &mut Peer, unmap: DmaUnmap) -> Result<u64, Errno> {
    let answer = peer.ask(&Request::DmaUnmap(unmap))?;
    match answer.reply() {
        Reply::DmaUnmap(reply) => Ok(reply.size),
        other => panic!("{other:?}"),
    }
}

/// Starts a log and says its page size.
fn start(peer: &mut Peer, page_size: u64, ranges: &[(u64, u64)]) -> Result<u64, Errno> {
    let mut room = vec![[0; 16]; ranges.len()];
    let data = LoggingStart::new(page_size, ranges, &mut room).to_bytes();
    let feature = Feature::DmaLoggingStart.number();
    let argsz = 8 + data.len() as u32;
    let request = DeviceFeature { argsz, feature, flags: FeatureFlags::SET, data: &data };
    let answer = peer.ask(&Request::DeviceFeature(request))?;
    let Reply::DeviceFeature(reply) = answer.reply() else { panic!() };
    assert_eq!(reply.data[8..], data[8..], "the reply is the request, with another page size");
    Ok(u64::from_ne_bytes(reply.data[..8].try_into().unwrap()))
}

/// The bitmap of `pages` pages from an IOVA on.
fn report(peer: &mut Peer, iova: u64, pages: u64) -> Result<u64, Errno> {
    let data = LoggingReport { iova, length: pages * PAGE, page_size: PAGE }.to_bytes();
    let feature = Feature::DmaLoggingReport.number();
    let request = DeviceFeature { argsz: 40, feature, flags: FeatureFlags::GET, data: &data };
    let answer = peer.ask(&Request::DeviceFeature(request))?;
    let Reply::DeviceFeature(reply) = answer.reply() else { panic!() };
    assert_eq!((reply.argsz, &reply.data[..24]), (40, data.as_slice()));
    Ok(u64::from_le_bytes(reply.data[24..].try_into().unwrap()))
}

#[test]
fn a_client_that_shortens_its_memory_loses_it_and_the_server_goes_on() {
    survive_lost_memory().unwrap();
    let host = Host::new();
    let mut peer = host.client();
    let (short, whole) = (memory(2 * PAGE), memory(PAGE));
    peer.map(IOVA, 2 * PAGE, &short).unwrap();
    peer.map(IOVA + 2 * PAGE, PAGE, &whole).unwrap();
    short.set_len(PAGE).unwrap();
    let faults = host.backend.device().bus().dma().faults();
    ring(&mut peer, IOVA + PAGE);
    assert_eq!(host.backend.device().bus().dma().faults(), faults + 1);
    ring(&mut peer, IOVA + 2 * PAGE);
    assert_eq!(mark_in(&whole), MARK);
    assert_eq!(unmap(&mut peer, IOVA, 2 * PAGE), Ok(2 * PAGE));
}

#[test]
fn the_device_reaches_what_is_mapped_and_nothing_else() {
    let host = Host::new();
    let mut peer = host.client();
    let memory = memory(2 * PAGE);
    ring(&mut peer, IOVA);
    assert_eq!(host.backend.device().bus().dma().faults(), 1);
    let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: PAGE, iova: IOVA, size: PAGE };
    peer.ask_with(&Request::DmaMap(map), &[memory.as_fd()]).unwrap();
    ring(&mut peer, IOVA);
    assert_eq!(mark_in(&memory), 0, "the offset is that of the file");
    peer.map(IOVA + PAGE, PAGE, &memory).unwrap();
    ring(&mut peer, IOVA + PAGE);
    assert_eq!(mark_in(&memory), MARK);
    assert_eq!(unmap(&mut peer, IOVA, PAGE), Ok(PAGE));
    ring(&mut peer, IOVA);
    assert_eq!(host.backend.device().bus().dma().faults(), 2);
}

#[test]
fn a_map_over_another_is_refused() {
    let mut peer = Host::new().client();
    let memory = memory(4 * PAGE);
    peer.map(IOVA, 2 * PAGE, &memory).unwrap();
    for (iova, size) in [(IOVA, 2 * PAGE), (IOVA + PAGE, PAGE), (IOVA - PAGE, 2 * PAGE), (0, 0x1000_0000)] {
        assert_eq!(peer.map(iova, size, &memory), Err(Errno::EEXIST), "{iova:#x}");
    }
    peer.map(IOVA + 2 * PAGE, PAGE, &memory).unwrap();
    peer.map(IOVA - PAGE, PAGE, &memory).unwrap();
}

#[test]
fn a_file_that_is_too_short_or_may_not_be_written_is_refused() {
    let mut peer = Host::new().client();
    let short = memory(PAGE);
    assert_eq!(peer.map(IOVA, 2 * PAGE, &short), Err(Errno::EINVAL));
    let map = DmaMap {
        rights: BOTH,
        modes: DmaAccessModes::empty(),
        offset: u64::MAX - PAGE + 1,
        iova: IOVA,
        size: PAGE,
    };
    assert_eq!(peer.ask_with(&Request::DmaMap(map), &[short.as_fd()]).err(), Some(Errno::EINVAL));
    let named = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    named.as_file().set_len(PAGE).unwrap();
    let read_only = named.reopen().map(|_| std::fs::File::open(named.path()).unwrap()).unwrap();
    assert_eq!(peer.map(IOVA, PAGE, &read_only), Err(Errno::EINVAL));
    // The same file with the right to write is another.
    peer.map(IOVA, PAGE, named.as_file()).unwrap();
}

#[test]
fn whole_mappings_are_unmapped_and_none_is_cut() {
    let mut peer = Host::new().client();
    let memory = memory(4 * PAGE);
    for index in 0..4 {
        peer.map(IOVA + 2 * index * PAGE, 2 * PAGE, &memory).unwrap();
    }
    assert_eq!(unmap(&mut peer, IOVA + PAGE, 2 * PAGE), Err(Errno::EINVAL));
    assert_eq!(unmap(&mut peer, IOVA, PAGE), Err(Errno::EINVAL));
    assert_eq!(unmap(&mut peer, IOVA - PAGE, PAGE), Ok(0), "nothing is there");
    assert_eq!(unmap(&mut peer, IOVA, 4 * PAGE), Ok(4 * PAGE));
    assert_eq!(unmap_by(&mut peer, DmaUnmap::All), Ok(4 * PAGE));
    peer.map(IOVA, 4 * PAGE, &memory).unwrap();
}

#[test]
fn no_more_than_the_agreed_number_of_mappings_is_made() {
    let most = Backend::capabilities().max_dma_maps;
    let host = Host::new();
    let mut peer = host.client();
    let file = memory(PAGE);
    let mut refused = 0;
    for index in 0..70_000 {
        match peer.map(u64::from(index) * PAGE, PAGE, &file) {
            Ok(()) => assert!(index < most, "{index}"),
            Err(errno) => {
                assert_eq!((errno, index >= most), (Errno::ENOSPC, true), "{index}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 70_000 - most);
    assert_eq!(unmap(&mut peer, 0, PAGE), Ok(PAGE));
    peer.map(0, PAGE, &file).unwrap();
    peer.leave().unwrap();
    assert!(host.backend.device().bus().dma().is_empty());
}

#[test]
fn the_log_tells_what_was_written_once() {
    let mut peer = Host::new().client();
    let memory = memory(64 * PAGE);
    peer.map(IOVA, 64 * PAGE, &memory).unwrap();
    assert_eq!(report(&mut peer, IOVA, 64), Err(Errno::EINVAL), "no log runs");
    assert_eq!(start(&mut peer, PAGE, &[(IOVA, 32 * PAGE)]), Ok(PAGE));
    assert_eq!(start(&mut peer, PAGE, &[(IOVA, 32 * PAGE)]), Err(Errno::EINVAL), "one runs");
    ring(&mut peer, IOVA + 3 * PAGE);
    ring(&mut peer, IOVA + 40 * PAGE);
    assert_eq!(report(&mut peer, IOVA, 64), Ok(1 << 3), "what is logged of it");
    assert_eq!(report(&mut peer, IOVA, 64), Ok(0));
}

#[test]
fn a_report_without_room_says_how_much_it_takes_and_forgets_nothing() {
    let mut peer = Host::new().client();
    peer.map(IOVA, PAGE, &memory(PAGE)).unwrap();
    start(&mut peer, PAGE, &[(IOVA, PAGE)]).unwrap();
    ring(&mut peer, IOVA);
    let data = LoggingReport { iova: IOVA, length: PAGE, page_size: PAGE }.to_bytes();
    let feature = Feature::DmaLoggingReport.number();
    let request = DeviceFeature { argsz: 32, feature, flags: FeatureFlags::GET, data: &data };
    let answer = peer.ask(&Request::DeviceFeature(request)).unwrap();
    assert_eq!(answer.reply(), Reply::DeviceFeature(DeviceFeature { argsz: 40, ..request }));
    assert_eq!(report(&mut peer, IOVA, 1), Ok(1));
}

#[test]
fn without_ranges_everything_is_logged_also_what_is_mapped_later() {
    let mut peer = Host::new().client();
    let memory = memory(8 * PAGE);
    peer.map(IOVA, 4 * PAGE, &memory).unwrap();
    peer.map(IOVA + (1 << 30), PAGE, &memory).unwrap();
    start(&mut peer, PAGE, &[]).unwrap();
    ring(&mut peer, IOVA + PAGE);
    ring(&mut peer, IOVA + (1 << 30));
    assert_eq!(report(&mut peer, IOVA, 8), Ok(0b10));
    assert_eq!(report(&mut peer, IOVA + (1 << 30), 8), Ok(1));
    peer.map(IOVA + 4 * PAGE, 2 * PAGE, &memory).unwrap();
    for _ in 0..2 {
        assert_eq!(report(&mut peer, IOVA, 8), Ok(0b11_0000), "nobody knows what was written of it");
    }
}

#[test]
fn what_is_mapped_up_to_the_last_address_while_everything_is_logged_counts_as_written() {
    let mut peer = Host::new().client();
    start(&mut peer, PAGE, &[]).unwrap();
    let half = 1 << 63;
    let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova: half, size: half };
    peer.ask(&Request::DmaMap(map)).unwrap();
    assert_eq!(report(&mut peer, half, 8), Ok(0xff));
    assert_eq!(report(&mut peer, u64::MAX - 8 * PAGE + 1, 7), Ok(0x7f));
}

#[test]
fn all_addresses_can_be_mapped_and_unmapped_at_once() {
    let mut peer = Host::new().client();
    let half = 1 << 63;
    for iova in [0, half] {
        let map = DmaMap { rights: BOTH, modes: DmaAccessModes::empty(), offset: 0, iova, size: half };
        peer.ask(&Request::DmaMap(map)).unwrap();
    }
    assert_eq!(unmap_by(&mut peer, DmaUnmap::All).unwrap(), u64::MAX, "as many bytes as can be told");
    peer.leave().unwrap();
}

#[test]
fn an_unmap_can_tell_what_was_written() {
    let mut peer = Host::new().client();
    let memory = memory(8 * PAGE);
    peer.map(IOVA, 8 * PAGE, &memory).unwrap();
    let with = |size| DmaUnmap::Range {
        iova: IOVA,
        size: 8 * PAGE,
        bitmap: Some(BitmapRequest { page_size: PAGE, size }),
    };
    assert_eq!(unmap_by(&mut peer, with(8)), Err(Errno::EINVAL), "no log runs");
    start(&mut peer, PAGE, &[(IOVA, 8 * PAGE)]).unwrap();
    ring(&mut peer, IOVA + 5 * PAGE);
    assert_eq!(unmap_by(&mut peer, with(7)), Err(Errno::EINVAL), "the bitmap is too short");
    let answer = peer.ask(&Request::DmaUnmap(with(16))).unwrap();
    let Reply::DmaUnmap(reply) = answer.reply() else { panic!() };
    assert_eq!((reply.size, reply.flags), (8 * PAGE, DmaUnmapFlags::GET_DIRTY_BITMAP));
    let bits = reply.bitmap.unwrap().bits;
    assert_eq!(bits, [&(1_u64 << 5).to_le_bytes()[..], &[0; 8]].concat());
    peer.map(IOVA, PAGE, &memory).unwrap();
}
