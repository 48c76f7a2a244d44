//! Memory that is added or removed while it migrates.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use whimbrel_engine::{NoCpuLog, Ram, RamError, RamRegion};

use crate::support::{At, Memory, Rig, Shape};

const MIB: u64 = 1 << 20;

/// Memory whose regions are others from some moment on.
struct Changing {
    memory: Memory,
    later: Vec<RamRegion>,
    has_changed: Arc<AtomicBool>,
}

impl Ram for Changing {
    fn regions(&self) -> Vec<RamRegion> {
        if self.has_changed.load(Ordering::SeqCst) { self.later.clone() } else { self.memory.regions() }
    }
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RamError> {
        Ram::read(&self.memory, address, data)
    }
    fn write(&self, address: u64, data: &[u8]) -> Result<(), RamError> {
        Ram::write(&self.memory, address, data)
    }
    fn clear(&self, address: u64, length: u64) -> Result<(), RamError> {
        Ram::clear(&self.memory, address, length)
    }
}

#[test]
fn the_devices_run_on_if_memory_comes_or_goes_and_the_error_names_it() {
    let (first, second, third) =
        (RamRegion::new(0, MIB), RamRegion::new(4 * MIB, MIB), RamRegion::new(8 * MIB, 2 * MIB));
    for (later, named) in [
        (vec![first, second, third], "memory was added: 2097152 bytes at guest address 0x800000"),
        (vec![first], "memory was removed: 1048576 bytes at guest address 0x400000"),
    ] {
        let shape = Shape { dma_pages: 64, ..Shape::default() };
        let rig = Rig::new(&shape).with_memory(&[(0, MIB as usize), (4 * MIB, MIB as usize)]);
        let has_changed = Arc::new(AtomicBool::new(false));
        let changes = has_changed.clone();
        // The second time it is asked, the first round has gone out.
        rig.here.control().when(At::Precopy, 1, move || changes.store(true, Ordering::SeqCst));
        let memory = rig.memory.as_ref().unwrap().0.clone();
        let (left, right) = UnixStream::pair().unwrap();
        let mut ended = rig.migrate_with(left.into(), right.into(), |source| {
            source.memory(Arc::new(Changing { memory, later, has_changed }), NoCpuLog)
        });
        ended.assert_sane(named);
        let error = ended.sent.unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
        ended.rig.assert_source_runs(named);
    }
}
