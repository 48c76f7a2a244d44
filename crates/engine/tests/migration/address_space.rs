//! A device without a log of its own, whose writes the log of its address space has, and memory that is unmapped from
//! that address space meanwhile.

use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress};
use whimbrel_device::Worker;
use whimbrel_engine::set::DirtyChoice;
use whimbrel_engine::{CpuLog, Guest, GuestError};
use whimbrel_protocol::dirty::{DirtyReport, PageBitmap};
use whimbrel_user::{DirtySource, DmaMap, Local};

use crate::live::assert_same_memory;
use crate::support::{At, Ended, OwnLog, Rig, Shape};

const MIB: usize = 1 << 20;

fn rig() -> Rig {
    Rig::new(&Shape { logging: false, dma_pages: 64, ..Shape::default() }).with_memory(&[(0, 4 * MIB)])
}

#[test]
fn what_a_device_writes_is_taken_from_its_address_space() {
    let rig = rig();
    let log = Local::new(rig.here.file()).dirty_log().expect("a log");
    let worker = Worker::start(rig.here.file()).unwrap();
    while rig.here.control().written() < 50 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (left, right) = UnixStream::pair().unwrap();
    let mut ended = rig.migrate_with(left.into(), right.into(), |source| source.address_space(log));
    drop(worker);
    ended.assert_sane("the log of the address space");
    assert_same_memory(ended.rig.memory.as_ref().unwrap());
    let report = ended.sent.unwrap();
    assert_eq!(report.devices[0].dirty_log, Some(DirtyChoice::AddressSpace));
    assert!(report.memory_bytes < 6 * MIB as u64, "{}: it was sent twice", report.memory_bytes);
}

#[test]
fn without_such_a_log_all_memory_is_sent_again() {
    let mut ended = rig().migrate();
    ended.assert_sane("no log");
    let report = ended.sent.unwrap();
    assert_eq!(report.devices[0].dirty_log, Some(DirtyChoice::AllDirty));
    assert_eq!(report.memory_bytes, 8 * MIB as u64);
}

/// A program that could be slowed down, and how often it was asked.
struct Fast(Arc<Mutex<u32>>);

impl Guest for Fast {
    fn slow_down(&mut self, _: u32) -> Result<bool, GuestError> {
        *self.0.lock() += 1;
        Ok(true)
    }
}

#[test]
fn a_program_is_not_slowed_down_for_memory_that_no_log_covers() {
    let mut rig = rig();
    rig.memory.as_ref().unwrap().0.write_slice(&vec![7; 4 * MIB], GuestAddress(0)).unwrap();
    // No round fits: each leaves all memory, which takes half a second.
    let bandwidth = NonZeroU64::new(8 * MIB as u64).unwrap();
    rig.options = rig.options.downtime_limit(Duration::from_millis(250)).max_rounds(4).bandwidth(bandwidth);
    let asked = Arc::new(Mutex::new(0));
    let guest = Fast(asked.clone());
    let (left, right) = UnixStream::pair().unwrap();
    let mut ended = rig.migrate_with(left.into(), right.into(), |source| source.guest(guest));
    ended.assert_sane("it does not converge");
    assert!(ended.sent.is_err_and(|error| error.report.rounds == 4));
    assert_eq!(*asked.lock(), 0);
}

/// The memory that is unmapped, and the pages of it that the device writes before.
const UNMAPPED: (u64, usize) = (1 << 30, MIB);
const PAGES: [u64; 3] = [0, 7, 255];
const PAGE: u64 = 4096;

/// Migrates a device that writes some pages once all memory was sent and then loses its mapping of them, before anybody
/// has read its log. Nothing maps them again.
fn unmaps(
    has_log: bool,
    unmap: impl FnOnce(&mut Local) + Send + 'static,
    unmapped: Arc<Mutex<Vec<u64>>>,
) -> Ended {
    let shape = Shape { logging: has_log, ..Shape::default() };
    let rig = Rig::new(&shape).with_memory(&[(0, 4 * MIB), UNMAPPED]);
    // All logs and changes of the address space are those of this handle.
    let mut space = Local::new(rig.here.file());
    let log = space.dirty_log().expect("a log");
    // The second time it is asked, the first round has gone out.
    rig.here.control().when(At::Precopy, 1, move || {
        for page in PAGES {
            let dma = space.driver_side().bus().dma();
            dma.write(UNMAPPED.0 + page * PAGE + 100, b"written by the device").unwrap();
        }
        unmap(&mut space);
        space.driver_side().bus().dma().write(UNMAPPED.0, b"!").expect_err("it is unmapped");
    });
    let memory = rig.memory.as_ref().unwrap().0.clone();
    let (left, right) = UnixStream::pair().unwrap();
    let mut ended = rig.migrate_with(left.into(), right.into(), |source| {
        let cpus = Owner { own: OwnLog(memory.clone()), unmapped };
        source.memory(Arc::new(memory), cpus).address_space(log)
    });
    ended.assert_sane("memory that was unmapped");
    assert!(!ended.rig.here.control().has_faults_left(), "it was unmapped");
    ended
}

/// All memory was sent once, and the pages that the device had written once more.
fn assert_arrived(ended: &Ended, choice: DirtyChoice) {
    let both = ended.rig.memory.as_ref().unwrap();
    assert_same_memory(both);
    for page in PAGES {
        let mut found = [0; 21];
        both.1.read_slice(&mut found, GuestAddress(UNMAPPED.0 + page * PAGE + 100)).unwrap();
        assert_eq!(&found, b"written by the device", "page {page}");
    }
    let report = ended.sent.as_ref().unwrap();
    assert_eq!(report.devices[0].dirty_log, Some(choice));
    assert_eq!(report.memory_bytes, 5 * MIB as u64 + PAGES.len() as u64 * PAGE);
}

/// The log of the owner's CPUs, in which it also marks what it was told when it unmapped memory.
struct Owner {
    own: OwnLog,
    /// The words of the region that is unmapped.
    unmapped: Arc<Mutex<Vec<u64>>>,
}

impl CpuLog for Owner {
    fn start(&mut self) -> Result<(), GuestError> {
        self.own.start()
    }

    fn collect(&mut self, bitmaps: &mut [PageBitmap]) -> Result<(), GuestError> {
        bitmaps[1].merge(&std::mem::take(&mut *self.unmapped.lock()));
        self.own.collect(bitmaps)
    }

    fn stop(&mut self) {
        self.own.stop();
    }
}

#[test]
fn pages_written_before_their_memory_was_unmapped_arrive() {
    let unmap = |space: &mut Local| {
        assert_eq!(space.unmap_dma(UNMAPPED.0, UNMAPPED.1 as u64).unwrap(), UNMAPPED.1 as u64);
    };
    let ended = unmaps(false, unmap, Arc::default());
    assert_arrived(&ended, DirtyChoice::AddressSpace);
    let ended = unmaps(true, unmap, Arc::default());
    assert_arrived(&ended, DirtyChoice::Device);
}

#[test]
fn pages_that_the_owner_was_told_when_it_unmapped_them_arrive() {
    let told = Arc::<Mutex<Vec<u64>>>::default();
    let its = told.clone();
    let ended = unmaps(
        false,
        move |space| {
            let mut words = vec![0; UNMAPPED.1 / 4096 / 64];
            let mut dirty = DirtyReport::new(UNMAPPED.0, UNMAPPED.1 as u64, PAGE, &mut words).unwrap();
            assert_eq!(space.unmap_dma_dirty(&mut dirty).unwrap(), UNMAPPED.1 as u64);
            // They are told once.
            let mut again = vec![0; words.len()];
            let mut dirty = DirtyReport::new(UNMAPPED.0, UNMAPPED.1 as u64, PAGE, &mut again).unwrap();
            space.dirty_log().unwrap().report(&mut dirty).unwrap();
            assert!(again.iter().all(|word| *word == 0));
            assert_eq!(words.iter().map(|word| word.count_ones()).sum::<u32>(), PAGES.len() as u32);
            *its.lock() = words;
        },
        told,
    );
    assert_arrived(&ended, DirtyChoice::AddressSpace);
}
