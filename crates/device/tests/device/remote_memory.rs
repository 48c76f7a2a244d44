//! Memory that a device reaches by asking for it, alone and beside mapped memory.

use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::dma::{Access, DmaFault, DmaSpace, FaultCause};
use whimbrel_device::{Errno, RemoteMemory};
use whimbrel_memory::{DirtyLog, FileOffset};
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_uapi::type1::DmaMapFlags;

const PAGE: u64 = 4096;
const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

/// One request of [`Elsewhere`]: address and bytes.
type Asked = (Access, u64, usize);

/// Memory from an address on, which notes what it is asked for and refuses what reaches `limit`.
#[derive(Debug)]
struct Elsewhere {
    start: u64,
    limit: u64,
    bytes: Mutex<Vec<u8>>,
    asked: Mutex<Vec<Asked>>,
}

impl Elsewhere {
    fn new(start: u64, size: u64) -> Arc<Elsewhere> {
        Elsewhere::failing_at(start, size, u64::MAX)
    }

    fn failing_at(start: u64, size: u64, limit: u64) -> Arc<Elsewhere> {
        let bytes = Mutex::new(vec![0; size as usize]);
        Arc::new(Elsewhere { start, limit, bytes, asked: Mutex::default() })
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn note(&self, access: Access, iova: u64, count: usize) -> Result<usize, Errno> {
        self.asked.lock().unwrap().push((access, iova, count));
        if iova + count as u64 > self.limit {
            return Err(Errno::ENOTCONN);
        }
        Ok((iova - self.start) as usize)
    }
}

impl RemoteMemory for Elsewhere {
    fn read(&self, iova: u64, data: &mut [u8], _: Instant) -> Result<(), Errno> {
        let at = self.note(Access::Read, iova, data.len())?;
        data.copy_from_slice(&self.bytes.lock().unwrap()[at..][..data.len()]);
        Ok(())
    }

    fn write(&self, iova: u64, data: &[u8], _: Instant) -> Result<(), Errno> {
        let at = self.note(Access::Write, iova, data.len())?;
        self.bytes.lock().unwrap()[at..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

fn file(size: u64) -> FileOffset {
    let file = File::from(memfd_create(c"remote", MemfdFlags::empty()).unwrap());
    file.set_len(size).unwrap();
    FileOffset::new(file, 0)
}

fn log(space: &DmaSpace) -> Arc<DirtyLog> {
    let mut ranges = LoggingRanges::new(PAGE, 1).unwrap();
    ranges.push(0, 64 * PAGE).unwrap();
    let log = Arc::new(DirtyLog::new(&ranges).unwrap());
    space.set_log(Some(log.clone()));
    log
}

fn dirty(log: &DirtyLog) -> u64 {
    let mut words = [0];
    log.report(&mut DirtyReport::new(0, 64 * PAGE, PAGE, &mut words).unwrap());
    words[0]
}

#[test]
fn an_access_spans_mapped_and_remote_memory() {
    let space = DmaSpace::default();
    let elsewhere = Elsewhere::new(0x2000, PAGE);
    space.map(0x1000, PAGE, BOTH, file(PAGE)).unwrap();
    space.map_remote(0x2000, PAGE, BOTH, elsewhere.clone()).unwrap();
    space.map(0x3000, PAGE, BOTH, file(PAGE)).unwrap();
    let data: Vec<u8> = (0..PAGE + 8).map(|n| n as u8 ^ 0x5a).collect();
    space.write(0x1ffc, &data).unwrap();
    assert_eq!(elsewhere.asked(), [(Access::Write, 0x2000, PAGE as usize)]);
    assert_eq!(elsewhere.bytes.lock().unwrap().as_slice(), &data[4..][..PAGE as usize]);
    let mut back = vec![0; data.len()];
    space.read(0x1ffc, &mut back).unwrap();
    assert_eq!(back, data);
    assert_eq!(elsewhere.asked(), [(Access::Read, 0x2000, PAGE as usize)]);
}

#[test]
fn nothing_is_asked_for_that_is_not_mapped_with_the_right() {
    let space = DmaSpace::default();
    let elsewhere = Elsewhere::new(0x1000, 2 * PAGE);
    space.map_remote(0x1000, PAGE, BOTH, elsewhere.clone()).unwrap();
    space.map_remote(0x2000, PAGE, DmaMapFlags::READ, elsewhere.clone()).unwrap();
    let fault = |iova, length, access| DmaFault::new(iova, length, access, FaultCause::NotMapped);
    assert_eq!(space.write(0x1ffc, &[0; 8]), Err(fault(0x1ffc, 8, Access::Write)));
    assert_eq!(space.read(0x2ffc, &mut [0; 8]), Err(fault(0x2ffc, 8, Access::Read)));
    assert_eq!(space.unmap(0x1000, 2 * PAGE), Ok(2 * PAGE));
    assert_eq!(space.read(0x1000, &mut [0]), Err(fault(0x1000, 1, Access::Read)));
    assert_eq!((elsewhere.asked(), space.faults()), (vec![], 3));
}

#[test]
fn impossible_mappings_are_refused() {
    let space = DmaSpace::default();
    let map =
        |iova, size, rights| space.map_remote(iova, size, rights, Elsewhere::new(iova, 0)).map_err(Some);
    map(0x1000, PAGE, BOTH).unwrap();
    for (iova, size, rights, errno) in [
        (0x3000, 0, BOTH, Errno::EINVAL),
        (0x3000, PAGE, DmaMapFlags::empty(), Errno::EINVAL),
        (0x3000, PAGE, DmaMapFlags::VADDR, Errno::EINVAL),
        (u64::MAX, 2, BOTH, Errno::EOVERFLOW),
        (0, 0x1001, BOTH, Errno::EEXIST),
        (0x1fff, PAGE, BOTH, Errno::EEXIST),
    ] {
        assert_eq!(map(iova, size, rights), Err(Some(errno)), "{iova:#x}");
    }
}

#[test]
fn what_remote_memory_refuses_is_a_fault_that_is_counted() {
    let space = DmaSpace::default();
    space.map_remote(0, 2 * PAGE, BOTH, Elsewhere::failing_at(0, 2 * PAGE, PAGE)).unwrap();
    let cause = FaultCause::Remote(Errno::ENOTCONN);
    let read = DmaFault::new(PAGE, 4, Access::Read, cause);
    assert_eq!(space.read(PAGE, &mut [0; 4]), Err(read));
    assert_eq!(space.write(PAGE, &[0; 4]), Err(DmaFault::new(PAGE, 4, Access::Write, cause)));
    assert_eq!(space.access(PAGE, 4, Access::Read, |_| panic!("nothing came")), Err(read));
    assert_eq!(space.faults(), 3);
    let text = read.to_string();
    assert!(
        text.starts_with("DMA read of 4 bytes at IOVA 0x1000 failed: remote memory access failed: ENOTCONN"),
        "{text}"
    );
}

#[test]
fn a_write_marks_the_log_as_far_as_it_may_have_come() {
    let space = DmaSpace::default();
    space.map(0, 2 * PAGE, BOTH, file(2 * PAGE)).unwrap();
    space.map_remote(2 * PAGE, 2 * PAGE, BOTH, Elsewhere::new(2 * PAGE, 2 * PAGE)).unwrap();
    space.map_remote(4 * PAGE, 2 * PAGE, BOTH, Elsewhere::failing_at(4 * PAGE, 2 * PAGE, 0)).unwrap();
    space.map(6 * PAGE, PAGE, BOTH, file(PAGE)).unwrap();
    let log = log(&space);
    space.read(PAGE, &mut vec![0; 2 * PAGE as usize]).unwrap();
    assert_eq!(dirty(&log), 0);
    space.write(2 * PAGE - 1, &[1, 2]).unwrap();
    assert_eq!(dirty(&log), 0b110);
    space.write(3 * PAGE, &[1; 4 * PAGE as usize]).unwrap_err();
    assert_eq!(dirty(&log), 0b11_1000, "what comes after the failure was not written");
    space.access(2 * PAGE, 8, Access::Write, |_| ()).unwrap();
    assert_eq!(dirty(&log), 0b100);
}

#[test]
fn a_visitor_sees_copies_of_remote_memory_in_pieces() {
    const SIZE: u64 = 150 << 10;
    let space = DmaSpace::default();
    let elsewhere = Elsewhere::new(PAGE, SIZE);
    space.map_remote(PAGE, SIZE, BOTH, elsewhere.clone()).unwrap();
    let mut at = 0_u64;
    let pieces = [64 << 10, 64 << 10, 22 << 10];
    space
        .access(PAGE, SIZE, Access::Write, |slice| {
            let mut seen = vec![9_u8; slice.len()];
            slice.copy_to(&mut seen);
            assert!(seen.iter().all(|byte| *byte == 0));
            slice.part(8, 8).unwrap().copy_from(&at.to_ne_bytes());
            at += slice.len() as u64;
        })
        .unwrap();
    let asked: Vec<usize> = elsewhere.asked().iter().map(|(_, _, count)| *count).collect();
    assert_eq!((asked.as_slice(), at), (pieces.as_slice(), SIZE));
    let mut seen = Vec::new();
    space
        .access(PAGE, SIZE, Access::Read, |slice| {
            let word = slice.part(8, 8).unwrap();
            let mut found = [0; 8];
            word.copy_to(&mut found);
            seen.push((slice.len(), u64::from_ne_bytes(found)));
            word.copy_from(&[0; 8]);
        })
        .unwrap();
    assert_eq!(seen, [(64 << 10, 0), (64 << 10, 64 << 10), (22 << 10, 128 << 10)]);
    let mut kept = [0; 8];
    space.read(PAGE + (64 << 10) + 8, &mut kept).unwrap();
    assert_eq!(u64::from_ne_bytes(kept), 64 << 10, "what is done to a copy that was read is lost");
}

/// Four bytes before the end of all addresses.
#[derive(Debug)]
struct Last;

impl RemoteMemory for Last {
    fn read(&self, iova: u64, data: &mut [u8], _: Instant) -> Result<(), Errno> {
        assert_eq!((iova, data.len()), (u64::MAX - 3, 4));
        data.fill(7);
        Ok(())
    }
    fn write(&self, _iova: u64, _data: &[u8], _: Instant) -> Result<(), Errno> {
        Err(Errno::EIO)
    }
}

#[test]
fn the_last_byte_of_the_address_space_is_reached() {
    let space = DmaSpace::default();
    let start = u64::MAX - PAGE + 1;
    space.map_remote(start, PAGE, BOTH, Arc::new(Last)).unwrap();
    let mut data = [0; 4];
    space.read(u64::MAX - 3, &mut data).unwrap();
    assert_eq!(data, [7; 4]);
    let mut seen = 0;
    space.access(u64::MAX - 3, 4, Access::Read, |slice| seen += slice.len()).unwrap();
    assert_eq!(seen, 4);
}

/// Notes the deadlines that it is given.
#[derive(Debug, Default)]
struct Deadlines(Mutex<Vec<Instant>>);

impl RemoteMemory for Deadlines {
    fn read(&self, _iova: u64, _data: &mut [u8], deadline: Instant) -> Result<(), Errno> {
        self.0.lock().unwrap().push(deadline);
        Ok(())
    }
    fn write(&self, _iova: u64, _data: &[u8], deadline: Instant) -> Result<(), Errno> {
        self.0.lock().unwrap().push(deadline);
        Ok(())
    }
}

#[test]
fn all_that_one_access_asks_for_has_one_deadline() {
    let space = DmaSpace::default();
    let deadlines = Arc::new(Deadlines::default());
    for start in [0, 0x100_000] {
        space.map_remote(start, 0x100_000, BOTH, deadlines.clone()).unwrap();
    }
    let before = Instant::now();
    for access in [Access::Read, Access::Write] {
        space.access(0, 0x200_000, access, |_| {}).unwrap();
        let noted = std::mem::take(&mut *deadlines.0.lock().unwrap());
        assert_eq!(noted.len(), 0x200_000 / (64 << 10));
        assert!(noted.iter().all(|deadline| *deadline == noted[0]));
        assert!(noted[0] >= before + DmaSpace::REMOTE_TIMEOUT);
    }
}
