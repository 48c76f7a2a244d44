use std::ops::ControlFlow;

use super::super::memory::is_zero;
use super::super::test_memory::{room, sparse};
use super::*;

const MIB: u64 = 1 << 20;

fn read(ram: &dyn Ram, address: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; length as usize];
    ram.read(address, &mut bytes).unwrap();
    bytes
}

/// Memory that counts the bytes it is asked to clear.
struct Counting<R> {
    ram: R,
    cleared: std::sync::atomic::AtomicU64,
}

impl<R: Ram> Ram for Counting<R> {
    fn regions(&self) -> Vec<RamRegion> {
        self.ram.regions()
    }
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RamError> {
        self.ram.read(address, data)
    }
    fn write(&self, address: u64, data: &[u8]) -> Result<(), RamError> {
        self.ram.write(address, data)
    }
    fn clear(&self, address: u64, length: u64) -> Result<(), RamError> {
        self.cleared.fetch_add(length, std::sync::atomic::Ordering::Relaxed);
        self.ram.clear(address, length)
    }
    fn next_data(&self, address: u64, length: u64, pagemap: &Pagemap) -> Option<RamRegion> {
        self.ram.next_data(address, length, pagemap)
    }
}

#[test]
fn clearing_a_hole_again_and_again_does_nothing() {
    let (ram, files) = sparse(&[(0, 4096 * MIB)]);
    let ram = Counting { ram, cleared: 0.into() };
    let mut arrival = Arrival::new(&ram);
    for _ in 0..100 {
        arrival.clear(0, 4096 * MIB).unwrap();
    }
    drop(arrival);
    assert_eq!((room(&files[0]), ram.cleared.into_inner()), (0, 0));
}

#[test]
fn memory_that_was_used_before_is_cleared_once() {
    let (ram, files) = sparse(&[(0, 64 * MIB)]);
    ram.write(5 * MIB, &vec![1; MIB as usize]).unwrap();
    let ram = Counting { ram, cleared: 0.into() };
    let mut arrival = Arrival::new(&ram);
    for _ in 0..100 {
        arrival.clear(0, 64 * MIB).unwrap();
    }
    drop(arrival);
    assert!(read(&ram, 5 * MIB, MIB).iter().all(|byte| *byte == 0));
    assert_eq!((room(&files[0]), ram.cleared.into_inner()), (MIB, MIB));
}

#[test]
fn memory_without_known_holes_is_cleared_once() {
    struct Opaque(super::super::MappedRam);
    impl Ram for Opaque {
        fn regions(&self) -> Vec<RamRegion> {
            self.0.regions()
        }
        fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RamError> {
            self.0.read(address, data)
        }
        fn write(&self, address: u64, data: &[u8]) -> Result<(), RamError> {
            self.0.write(address, data)
        }
        fn clear(&self, address: u64, length: u64) -> Result<(), RamError> {
            self.0.clear(address, length)
        }
    }
    let (ram, _) = sparse(&[(0, MIB)]);
    ram.write(0x1234, &[1]).unwrap();
    let ram = Counting { ram: Opaque(ram), cleared: 0.into() };
    let mut arrival = Arrival::new(&ram);
    arrival.clear(0, MIB).unwrap();
    arrival.clear(0, MIB).unwrap();
    drop(arrival);
    assert_eq!(read(&ram, 0x1234, 1), [0]);
    assert_eq!(ram.cleared.into_inner(), MIB);
}

#[test]
fn what_arrived_is_cleared_and_its_neighbours_stay() {
    let (ram, _) = sparse(&[(0, 0x4000), (0x8000, 0x1800)]);
    let mut arrival = Arrival::new(&ram);
    arrival.write(0, &[5; 0x4000]).unwrap();
    arrival.write(0x8000, &[6; 0x1800]).unwrap();
    arrival.clear(0x800, 0x1000).unwrap();
    arrival.clear(0x9000, 0x800).unwrap();
    // The rest of a page that was cleared in part.
    arrival.clear(0, 0x800).unwrap();
    drop(arrival);
    let whole = read(&ram, 0, 0x4000);
    assert!(whole[..0x1800].iter().all(|byte| *byte == 0) && whole[0x1800..].iter().all(|byte| *byte == 5));
    let whole = read(&ram, 0x8000, 0x1800);
    assert!(whole[..0x1000].iter().all(|byte| *byte == 6) && whole[0x1000..].iter().all(|byte| *byte == 0));
}

#[test]
fn nothing_outside_of_memory_arrives() {
    let (ram, _) = sparse(&[(0x1000, 0x3000), (0x10000, 0x2000)]);
    let mut arrival = Arrival::new(&ram);
    for (address, length) in
        [(0, 1), (0xfff, 2), (0x3fff, 2), (0x11fff, 2), (u64::MAX, 2), (0x1000, u64::MAX)]
    {
        assert!(arrival.clear(address, length).is_err(), "{address:#x}");
        let mut untouched = |_: &mut [u8]| panic!("nothing is to be read");
        assert!(arrival.receive(address, length, &mut untouched).is_err(), "{address:#x}");
    }
    assert!(arrival.write(0xfff, &[1, 2]).is_err());
    assert!(read(&ram, 0x1000, 0x3000).iter().all(|byte| *byte == 0));
}

#[test]
fn data_is_filled_in_place_and_across_regions_that_touch() {
    let (ram, _) = sparse(&[(0, 0x2000), (0x2000, 0x2000)]);
    let mut arrival = Arrival::new(&ram);
    let mut next = 0_u8;
    let mut pieces = Vec::new();
    arrival
        .receive(0x1000, 0x2000, &mut |place| {
            pieces.push(place.len());
            place.fill_with(|| {
                next = next.wrapping_add(1);
                next
            });
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(pieces, [0x1000, 0x1000]);
    let expected: Vec<u8> = (1..=0x2000_u32).map(|value| value as u8).collect();
    assert_eq!(read(&ram, 0x1000, 0x2000), expected);
}

#[test]
fn a_break_ends_the_transfer() {
    let (ram, _) = sparse(&[(0, 0x1000), (0x1000, 0x1000)]);
    let mut calls = 0;
    Arrival::new(&ram)
        .receive(0, 0x2000, &mut |_| {
            calls += 1;
            ControlFlow::Break(())
        })
        .unwrap();
    assert_eq!(calls, 1);
}

#[test]
fn population_stays_close_to_the_data() {
    let (ram, files) = sparse(&[(0, 1024 * MIB)]);
    let population = Population::new();
    let data = vec![7; MIB as usize];
    std::thread::scope(|scope| {
        scope.spawn(|| population.run(&ram));
        let mut arrival = Arrival::new(&ram).populated_by(&population);
        for address in (100..164).map(|mib| mib * MIB) {
            arrival.write(address, &data).unwrap();
        }
        // Data elsewhere, a page at a time.
        for page in 0..64 {
            arrival.write(500 * MIB + page * 2 * MIB, &data[..PAGE as usize]).unwrap();
        }
    });
    let taken = room(&files[0]);
    let sent = 64 * MIB + 64 * PAGE;
    assert!((sent..=sent + 64 * MIB / AHEAD).contains(&taken), "{taken} bytes for {sent}");
    assert!(read(&ram, 100 * MIB, 64 * MIB).iter().all(|byte| *byte == 7));
}

#[test]
fn the_memory_of_each_lane_is_populated_for_itself() {
    const LANES: u32 = 4;
    let (ram, files) = sparse(&[(0, 256 * MIB)]);
    let data = vec![7; MIB as usize];
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let (ram, data) = (&ram, &data);
            scope.spawn(move || {
                let population = Population::new();
                std::thread::scope(|scope| {
                    scope.spawn(|| population.run(ram));
                    let mut arrival = Arrival::new(ram).populated_by(&population);
                    let share = Share::new(lane, LANES);
                    arrival.set_share(share);
                    for address in (0..128).map(|mib| mib * MIB) {
                        if share.has_memory(address, MIB) {
                            arrival.write(address, data).unwrap();
                        }
                    }
                });
            });
        }
    });
    let taken = room(&files[0]);
    // No lane populates more than a stripe ahead.
    let most = 128 * MIB + u64::from(LANES) * STRIPE;
    assert!((128 * MIB..=most).contains(&taken), "{taken} bytes");
    assert!(read(&ram, 0, 128 * MIB).iter().all(|byte| *byte == 7));
    assert!(is_zero(&read(&ram, 128 * MIB, 128 * MIB)));
}

/// Memory whose holes may be looked for within a page only.
struct PageByPage<R>(R);

impl<R: Ram> Ram for PageByPage<R> {
    fn regions(&self) -> Vec<RamRegion> {
        self.0.regions()
    }
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RamError> {
        self.0.read(address, data)
    }
    fn write(&self, address: u64, data: &[u8]) -> Result<(), RamError> {
        self.0.write(address, data)
    }
    fn clear(&self, address: u64, length: u64) -> Result<(), RamError> {
        super::super::mapping::clear(self, address, length)
    }
    fn next_data(&self, address: u64, length: u64, pagemap: &Pagemap) -> Option<RamRegion> {
        assert!(length <= PAGE, "{length} bytes: the kernel walks to the end of the data");
        self.0.next_data(address, length, pagemap)
    }
}

#[test]
fn clearing_looks_for_holes_no_further_than_a_page_and_touches_none() {
    let (ram, files) = sparse(&[(0, 16 * MIB)]);
    ram.write(MIB, &vec![1; MIB as usize]).unwrap();
    let ram = PageByPage(ram);
    ram.clear(MIB / 2 + 5, 8 * MIB).unwrap();
    assert_eq!(room(&files[0]), MIB);
    assert!(is_zero(&read(&ram, 0, 16 * MIB)));
}
