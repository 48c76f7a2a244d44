//! Memory that is mostly holes: it takes no room on either side, and a peer cannot make it take any.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use whimbrel_engine::proto::control::Control;
use whimbrel_engine::proto::message::Message;

use crate::support::peer::{Peer, hello, table};
use crate::support::{Memory, Rig, Shape};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 2048 * MIB;

/// The bytes that the files behind a memory take.
fn room(memory: &Memory) -> u64 {
    memory.iter().map(|region| region.file_offset().unwrap().file().metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn holes_stay_holes_on_both_sides() {
    let rig = Rig::new(&Shape::default()).with_memory(&[(0, SIZE as usize)]);
    let (here, there) = rig.memory.clone().unwrap();
    let data: Vec<u8> = (0..MIB).map(|index| (index % 251) as u8 + 1).collect();
    for number in 0..4 {
        here.write_slice(&data, GuestAddress(number * SIZE / 4 + 0x5000)).unwrap();
    }
    let held = room(&here);
    let mut ended = rig.migrate();
    ended.assert_sane("sparse memory");
    let report = ended.sent.unwrap();
    assert_eq!(report.memory_bytes, SIZE);
    assert_eq!(room(&here), held, "the source was made whole");
    assert!(room(&there) <= held + 16 * MIB, "the destination takes {} bytes", room(&there));
    let mut arrived = vec![0; data.len()];
    for number in 0..4 {
        there.read_slice(&mut arrived, GuestAddress(number * SIZE / 4 + 0x5000)).unwrap();
        assert!(arrived == data, "piece {number}");
    }
}

/// The bytes of this process's memory that are present or swapped out, by its entries in `/proc/self/pagemap`.
fn present(memory: &Memory) -> u64 {
    const IN_USE: u64 = 0b11 << 62;
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let mut bytes = 0;
    for region in memory.iter() {
        let start = region.get_host_address(MemoryRegionAddress(0)).unwrap() as u64;
        let mut entries = vec![0; (region.len() / 4096 * 8) as usize];
        pagemap.read_exact_at(&mut entries, start / 4096 * 8).unwrap();
        let entries = entries.chunks_exact(8).map(|entry| u64::from_ne_bytes(entry.try_into().unwrap()));
        bytes += entries.filter(|entry| entry & IN_USE != 0).count() as u64 * 4096;
    }
    bytes
}

#[test]
fn anonymous_memory_that_was_never_touched_stays_so_on_both_sides() {
    let mut rig = Rig::new(&Shape::default());
    let memory = || Memory::from_ranges(&[(GuestAddress(0), SIZE as usize)]).unwrap();
    let (here, there) = (memory(), memory());
    rig.memory = Some((here.clone(), there.clone()));
    let data: Vec<u8> = (0..MIB).map(|index| (index % 251) as u8 + 1).collect();
    for number in 0..4 {
        here.write_slice(&data, GuestAddress(number * SIZE / 4 + 0x5000)).unwrap();
    }
    let held = present(&here);
    assert!(held < SIZE / 4, "huge pages alone hold {held} bytes");
    let mut ended = rig.migrate();
    ended.assert_sane("sparse anonymous memory");
    assert_eq!(ended.sent.unwrap().memory_bytes, SIZE);
    assert_eq!(present(&here), held, "pages of the source were touched");
    assert!(present(&there) <= held + 64 * MIB, "{} bytes were touched at the destination", present(&there));
    let mut arrived = vec![0; data.len()];
    for number in 0..4 {
        there.read_slice(&mut arrived, GuestAddress(number * SIZE / 4 + 0x5000)).unwrap();
        assert!(arrived == data, "piece {number}");
    }
}

#[test]
fn a_peer_that_clears_all_memory_again_and_again_costs_next_to_nothing() {
    let mut rig = Rig::new(&Shape::default()).with_memory(&[(0, SIZE as usize)]);
    let memory = rig.memory.clone().unwrap().1;
    let (mut peer, link) = Peer::new();
    let clearing = std::thread::spawn(move || {
        peer.tell(&[hello(), Control::Table(table(SIZE)).into()]);
        for _ in 0..100 {
            peer.say(&Message::MemoryZero { address: 0, length: SIZE });
        }
        peer.finish();
    });
    let started = Instant::now();
    rig.receive_from(link).unwrap_err();
    clearing.join().unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(room(&memory) < MIB, "{} bytes", room(&memory));
    rig.assert_destination_is_fresh("only zeros came");
}
