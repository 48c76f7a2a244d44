use std::fs::File;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

use super::*;

const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

fn memory(size: u64) -> FileOffset {
    let file = File::from(memfd_create(c"dma test", MemfdFlags::empty()).unwrap());
    file.set_len(size).unwrap();
    FileOffset::new(file, 0)
}

fn space(mappings: &[(u64, u64, DmaMapFlags)]) -> DmaSpace {
    let space = DmaSpace::default();
    for (iova, size, rights) in mappings {
        space.map(*iova, *size, *rights, memory(*size)).unwrap();
    }
    space
}

#[test]
fn an_access_may_span_adjacent_mappings() {
    let space = space(&[(0x1000, 0x1000, BOTH), (0x2000, 0x1000, BOTH)]);
    space.write(0x1ffe, &[1, 2, 3, 4]).unwrap();
    let mut back = [0; 4];
    space.read(0x1ffe, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3, 4]);
}

#[test]
fn an_access_without_mapping_or_right_is_a_fault_and_changes_nothing() {
    let space = space(&[
        (0x1000, 0x1000, BOTH),
        (0x2000, 0x1000, DmaMapFlags::READ),
        (0x4000, 0x1000, DmaMapFlags::WRITE),
    ]);
    let cases = [
        (0x0, 1, Access::Read),
        (0xfff, 2, Access::Read),
        (0x1ffe, 4, Access::Write),
        (0x2fff, 2, Access::Read),
        (0x4000, 1, Access::Read),
        (u64::MAX, 2, Access::Read),
    ];
    for (count, (iova, length, access)) in cases.into_iter().enumerate() {
        let result = match access {
            Access::Read => space.read(iova, &mut vec![0; length as usize]),
            Access::Write => space.write(iova, &vec![1; length as usize]),
        };
        assert_eq!(result, Err(DmaFault::new(iova, length, access, FaultCause::NotMapped)));
        assert_eq!(space.faults(), count as u64 + 1);
    }
    let mut back = [9; 2];
    space.read(0x1ffe, &mut back).unwrap();
    assert_eq!(back, [0, 0], "the part of a faulting write that is mapped stays as it was");
}

#[test]
fn mappings_do_not_overlap() {
    let space = space(&[(0x2000, 0x2000, BOTH)]);
    for (iova, size) in [(0x2000, 0x2000), (0x1000, 0x1001), (0x3fff, 0x1000), (0x2800, 0x10), (0, 0x10000)] {
        assert_eq!(space.map(iova, size, BOTH, memory(size)), Err(Errno::EEXIST), "{iova:#x}");
    }
    space.map(0x1000, 0x1000, BOTH, memory(0x1000)).unwrap();
    space.map(0x4000, 0x1000, BOTH, memory(0x1000)).unwrap();
}

#[test]
fn impossible_mappings_are_refused() {
    let space = DmaSpace::default();
    assert_eq!(space.map(0, 0, BOTH, memory(0x1000)), Err(Errno::EINVAL));
    assert_eq!(space.map(0, 0x1000, DmaMapFlags::empty(), memory(0x1000)), Err(Errno::EINVAL));
    assert_eq!(space.map(0, 0x1000, DmaMapFlags::VADDR, memory(0x1000)), Err(Errno::EINVAL));
    assert_eq!(space.map(u64::MAX, 2, BOTH, memory(0x1000)), Err(Errno::EOVERFLOW));
    assert_eq!(space.map(0, 0x2000, BOTH, memory(0x1000)), Err(Errno::EINVAL), "the file is too short");
}

#[test]
fn a_mapping_that_is_cut_is_two_that_hold_what_it_held() {
    let space = space(&[(0x1000, 0x3000, BOTH)]);
    space.write(0x1ffe, &[1, 2, 3, 4]).unwrap();
    space.cut(0x2000);
    let mut back = [0; 4];
    space.read(0x1ffe, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3, 4]);
    assert_eq!(space.unmap(0x1000, 0x1000), Ok(0x1000));
    space.read(0x2000, &mut back[..2]).unwrap();
    assert_eq!(back, [3, 4, 3, 4]);
    assert_eq!(space.unmap(0x2000, 0x2000), Ok(0x2000));
}

#[test]
fn remote_memory_that_is_cut_is_asked_for_the_same_addresses() {
    #[derive(Debug)]
    struct Addresses;
    impl RemoteMemory for Addresses {
        fn read(&self, iova: u64, data: &mut [u8], _: Instant) -> Result<(), Errno> {
            for (address, byte) in (iova..).zip(data) {
                *byte = (address >> 8) as u8;
            }
            Ok(())
        }
        fn write(&self, _iova: u64, _data: &[u8], _: Instant) -> Result<(), Errno> {
            Err(Errno::EROFS)
        }
    }
    let space = DmaSpace::default();
    space.map_remote(0x1000, 0x3000, BOTH, Arc::new(Addresses)).unwrap();
    space.cut(0x2000);
    let mut back = [0; 4];
    space.read(0x1ffe, &mut back).unwrap();
    assert_eq!(back, [0x1f, 0x1f, 0x20, 0x20]);
    assert_eq!(space.unmap(0x1000, 0x1000), Ok(0x1000));
    assert_eq!(space.unmap(0x2000, 0x2000), Ok(0x2000));
}

#[test]
fn a_cut_where_a_mapping_begins_or_ends_or_where_none_is_does_nothing() {
    let space = space(&[(0x1000, 0x1000, BOTH)]);
    for iova in [0, 0x800, 0x1000, 0x2000, 0x2800, u64::MAX] {
        space.cut(iova);
    }
    assert_eq!(space.unmap(0x1000, 0x1000), Ok(0x1000));
}

#[test]
fn unmap_takes_whole_mappings_or_nothing() {
    let space = space(&[(0x1000, 0x2000, BOTH), (0x4000, 0x1000, BOTH)]);
    assert_eq!(space.unmap(0x2000, 0x3000), Err(Errno::EINVAL));
    assert_eq!(space.unmap(0x1000, 0x1000), Err(Errno::EINVAL));
    assert_eq!(space.unmap(0, 0x10000), Ok(0x3000));
    assert_eq!(space.unmap(0, 0x10000), Ok(0));
    assert!(space.read(0x1000, &mut [0]).is_err());
}

#[test]
fn writes_are_logged_and_reads_are_not() {
    let space = space(&[(0, 0x8000, BOTH)]);
    let mut ranges = LoggingRanges::new(4096, 1).unwrap();
    ranges.push(0, 0x8000).unwrap();
    let log = Arc::new(DirtyLog::new(&ranges).unwrap());
    space.write(0x7000, &[1]).unwrap();
    space.set_log(Some(log.clone()));
    space.read(0x1000, &mut [0; 16]).unwrap();
    space.write(0x2fff, &[1, 2]).unwrap();
    space.set_log(None);
    space.write(0x6000, &[1]).unwrap();
    let mut words = [0];
    log.report(&mut DirtyReport::new(0, 0x8000, 4096, &mut words).unwrap());
    assert_eq!(words, [0b1100]);
}

#[test]
fn a_write_marks_every_log_that_is_on_over_all_its_mappings() {
    let space = DmaSpace::default();
    let log = |size| {
        let mut ranges = LoggingRanges::new(4096, 1).unwrap();
        ranges.push(0, size).unwrap();
        Arc::new(DirtyLog::new(&ranges).unwrap())
    };
    let told = |log: &DirtyLog| {
        let mut words = [0];
        log.report(&mut DirtyReport::new(0, 0x10000, 4096, &mut words).unwrap());
        words[0]
    };
    let (device, first, second) = (log(0x10000), log(0x2000), log(0x4000));
    let mapped = |size| Memory::of_file(memory(size), size, true).unwrap();
    let logged = |log: &Arc<DirtyLog>, offset| Some(MappingLog { log: log.clone(), offset });
    space.map_logged(0x1000, BOTH, mapped(0x2000), logged(&first, 0)).unwrap();
    space.map_logged(0x3000, BOTH, mapped(0x2000), logged(&second, 0x2000)).unwrap();
    let whole = log(0x10000);
    space.set_log(Some(device.clone()));
    space.set_space_log(Some(whole.clone()));
    space.write(0x2fff, &[1, 2]).unwrap();
    assert_eq!([told(&device), told(&first), told(&second)], [0b1100, 0b10, 0b100]);
    assert_eq!(told(&whole), 0b1100);
    space.set_space_log(None);
    space.write(0x4000, &[1]).unwrap();
    space.set_mapping_log(0x3000, None);
    space.write(0x3000, &[1]).unwrap();
    assert_eq!([told(&device), told(&first), told(&second)], [0b11000, 0, 0b1000]);
    assert_eq!(told(&whole), 0);
    assert!(space.write(0x4fff, &[1, 2]).is_err());
    assert_eq!([told(&device), told(&first), told(&second)], [0, 0, 0], "a blocked write marks nothing");
}

/// Takes down the messages of this thread.
#[derive(Clone, Default)]
struct Listener(Arc<parking_lot::Mutex<Vec<String>>>);

impl tracing::Subscriber for Listener {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Vec::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            fields.push(format!("{field}={value:?}"));
        });
        self.0.lock().push(fields.join(" "));
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_blocked_access_is_traced() {
    let space = space(&[(0x1000, 0x1000, DmaMapFlags::READ)]);
    let listener = Listener::default();
    tracing::subscriber::with_default(listener.clone(), || {
        space.read(0x1000, &mut [0]).unwrap();
        space.write(0x1004, &[1, 2]).unwrap_err();
    });
    let heard = listener.0.lock().clone();
    assert_eq!(heard, ["message=DMA fault iova=4100 length=2 access=write"]);
}

#[test]
fn after_an_unmap_no_access_through_the_mapping_is_under_way() {
    let space = space(&[(0, 0x1000, BOTH)]);
    let inside = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let accesses: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut blocked = false;
                    while !blocked {
                        let result = space.access(0, 8, Access::Write, |_| {
                            inside.fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                        blocked = result.is_err();
                    }
                })
            })
            .collect();
        while inside.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(space.unmap(0, 0x1000), Ok(0x1000));
        assert_eq!(inside.load(Ordering::SeqCst), 0);
        for access in accesses {
            access.join().unwrap();
        }
    });
    assert_eq!(space.faults(), 3);
}
