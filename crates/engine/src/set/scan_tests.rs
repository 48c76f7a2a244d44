use proptest::prelude::*;
use whimbrel_protocol::dirty::Run;

use super::super::test_memory::{room, sparse};
use super::super::{Ledger, Walk};
use super::*;

const MIB: u64 = 1 << 20;

/// A stretch without its bytes: address, length, whether it is zero.
type Found = (u64, u64, bool);

/// Walks over all memory and checks each stretch.
fn walk(mut scan: Scan<'_>, mut see: impl FnMut(u64, &[u8])) -> Vec<Found> {
    let mut found = Vec::new();
    let mut batch = Batch::default();
    while scan.fill(&mut batch).unwrap() {
        found.extend(batch.stretches().map(|stretch| match stretch {
            Stretch::Zero { address, length } => {
                assert!((1..=ZERO_PIECE).contains(&length), "{length}");
                (address, length, true)
            }
            Stretch::Data { address, data } => {
                assert!((1..=PIECE as usize).contains(&data.len()), "{}", data.len());
                assert!(data.chunks(PAGE as usize).all(|page| !is_zero(page)));
                see(address, data);
                (address, data.len() as u64, false)
            }
        }));
    }
    found
}

fn all_of(ram: &dyn Ram) -> Vec<(RamRegion, PageBitmap)> {
    Ledger::new(ram.regions()).take()
}

#[test]
fn a_hole_is_named_without_being_touched() {
    let (ram, files) = sparse(&[(0, 4096 * MIB)]);
    let data = vec![3; 16 * MIB as usize];
    ram.write(100 * MIB, &data).unwrap();
    let found = walk(Scan::new(&ram, &Pagemap::new(), all_of(&ram)), |_, data| {
        assert!(data.iter().all(|byte| *byte == 3));
    });
    assert_eq!(room(&files[0]), 16 * MIB, "looking at a hole must not fill it");
    let bytes = |zero| found.iter().filter(|piece| piece.2 == zero).map(|piece| piece.1).sum::<u64>();
    assert_eq!((bytes(false), bytes(true)), (16 * MIB, 4080 * MIB));
    assert!(found.len() < 100, "{} stretches", found.len());
}

#[test]
fn zeros_that_take_room_are_named_too() {
    let (ram, _) = sparse(&[(0, 3 * MIB)]);
    ram.write(0, &vec![0; 3 * MIB as usize]).unwrap();
    ram.write(2 * MIB + 5, &[1]).unwrap();
    let found = walk(Scan::new(&ram, &Pagemap::new(), all_of(&ram)), |_, _| {});
    assert_eq!(found, [(0, 2 * MIB, true), (2 * MIB, PAGE, false), (2 * MIB + PAGE, MIB - PAGE, true)]);
}

#[test]
fn regions_that_touch_are_not_joined() {
    let (ram, _) = sparse(&[(0, MIB), (MIB, MIB)]);
    let found = walk(Scan::new(&ram, &Pagemap::new(), all_of(&ram)), |_, _| {});
    assert_eq!(found, [(0, MIB, true), (MIB, MIB, true)]);
}

#[test]
fn a_region_may_end_within_a_page() {
    let (ram, _) = sparse(&[(0, 2 * PAGE + 100)]);
    ram.write(2 * PAGE, &[9; 100]).unwrap();
    let found = walk(Scan::new(&ram, &Pagemap::new(), all_of(&ram)), |_, _| {});
    assert_eq!(found, [(0, 2 * PAGE, true), (2 * PAGE, 100, false)]);
}

#[test]
fn nothing_dirty_is_nothing_to_send() {
    let (ram, _) = sparse(&[(0, MIB)]);
    let mut ledger = Ledger::new(ram.regions());
    ledger.take();
    assert_eq!(walk(Scan::new(&ram, &Pagemap::new(), ledger.take()), |_, _| {}), []);
    assert_eq!(walk(Scan::new(&ram, &Pagemap::new(), Vec::new()), |_, _| {}), []);
}

proptest! {
    #[test]
    fn a_walk_names_the_dirty_pages_and_no_others(
        // Pages per region, runs of data, runs of dirty pages.
        pages in proptest::collection::vec(1u64..400, 1..4),
        data in proptest::collection::vec((0usize..4, 0u64..400, 1u64..40, any::<u8>()), 0..10),
        dirty in proptest::collection::vec((0usize..4, 0usize..400, 1usize..200), 0..10),
        lanes in 1u32..5,
    ) {
        let starts: Vec<u64> = (0..pages.len() as u64).map(|index| index * 400 * PAGE).collect();
        let layout: Vec<_> = starts.iter().zip(&pages).map(|(start, pages)| (*start, pages * PAGE)).collect();
        let (ram, _) = sparse(&layout);
        for (region, first, count, value) in data {
            let region = region % pages.len();
            let first = first % pages[region];
            let count = count.min(pages[region] - first);
            ram.write(starts[region] + first * PAGE, &vec![value; (count * PAGE) as usize]).unwrap();
        }
        let mut marked: Vec<_> = ram.regions().into_iter()
            .map(|region| (region, PageBitmap::new(region.pages())))
            .collect();
        for (region, first, count) in dirty {
            marked[region % pages.len()].1.set_run(Run { first, count });
        }
        let expected: Vec<u64> = marked.iter()
            .flat_map(|(region, bitmap)| {
                bitmap.runs().flat_map(|run| run.first..run.first + run.count)
                    .map(|page| region.start + page as u64 * PAGE)
            })
            .collect();
        let mut seen = Vec::new();
        let pagemap = Pagemap::new();
        let walk = Walk::new(&ram, &pagemap, marked);
        for share in (0..lanes).map(|lane| Share::new(lane, lanes)) {
            let mut scan = walk.scan(share);
            let mut batch = Batch::default();
            let before = seen.len();
            while scan.fill(&mut batch).unwrap() {
                for stretch in batch.stretches() {
                    let (address, length) = match stretch {
                        Stretch::Zero { address, length } => {
                            let mut bytes = vec![1; length as usize];
                            ram.read(address, &mut bytes).unwrap();
                            prop_assert!(is_zero(&bytes));
                            (address, length)
                        }
                        Stretch::Data { address, data } => {
                            let mut bytes = vec![0; data.len()];
                            ram.read(address, &mut bytes).unwrap();
                            prop_assert_eq!(&bytes[..], data);
                            (address, data.len() as u64)
                        }
                    };
                    prop_assert!(share.has_memory(address, length), "{:#x} {:#x}", address, length);
                    seen.extend((address..address + length).step_by(PAGE as usize));
                }
            }
            prop_assert!(seen[before..].is_sorted());
        }
        seen.sort_unstable();
        prop_assert_eq!(seen, expected);
    }
}
