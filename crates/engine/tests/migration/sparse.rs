//! Memory that is mostly holes: it takes no room on either side, and a peer cannot make it take any.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
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
