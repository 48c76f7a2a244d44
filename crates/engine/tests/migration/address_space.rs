//! A device without a log of its own, whose writes the log of its address space has.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use whimbrel_device::Worker;
use whimbrel_engine::set::DirtyChoice;
use whimbrel_user::{DmaMap, Local};

use crate::live::assert_same_memory;
use crate::support::{Rig, Shape};

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
