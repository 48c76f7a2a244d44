//! The time to map, look up and unmap a page in a container with 1,000 to 1,000,000 other mappings. The
//! goal: under 2 microseconds for a map and unmap in a container with 100,000.

use std::cell::Cell;
use std::fs::File;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{
    Bus, Container, ContainerSettings, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Group, GroupFile,
    Info, Memory, SparseMemory, Translation,
};
use whimbrel_memory::FileOffset;
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
use whimbrel_uapi::type1::{DmaMapFlags, DmaUnmapFlags};

const PAGE: u64 = 4096;
const MEMORY: u64 = 0x10_0000_0000;
const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

struct Quiet;

impl Driver for Quiet {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::RESET)
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }
}

/// A container whose one device sees `count` mappings of a page, each with a page between it and the next.
struct Filled {
    container: Container,
    process: SparseMemory,
    bus: Bus,
    count: u64,
    _group: GroupFile,
    seed: Cell<u64>,
}

impl Filled {
    fn new(count: u64) -> Result<Filled, Box<dyn std::error::Error>> {
        let file = File::from(memfd_create(c"type1 bench", MemfdFlags::empty())?);
        file.set_len(count * PAGE)?;
        let mut process = SparseMemory::new();
        process.insert_shared(MEMORY, Memory::of_file(FileOffset::new(file, 0), count * PAGE, true)?);
        let device = DeviceFile::new("bench", |_| Quiet);
        let bus = device.bus().clone();
        let group = Group::new(Translation::Emulated, vec![device])?.open()?;
        let settings = ContainerSettings::default().dma_entry_limit(u32::MAX);
        let container = Container::new(settings);
        group.set_container(&container)?;
        container.set_iommu(VFIO_TYPE1V2_IOMMU.into())?;
        for index in 0..count {
            container.map_dma(BOTH, MEMORY + index * PAGE, 2 * index * PAGE, PAGE, &process)?;
        }
        Ok(Filled { container, process, bus, count, _group: group, seed: Cell::new(1) })
    }

    /// Some mapping: xorshift, so that the caches are used as by a guest and not as by a loop.
    fn any(&self) -> u64 {
        let mut seed = self.seed.get();
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        self.seed.set(seed);
        seed % self.count
    }
}

fn growth(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("type1");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    for count in [1_000, 10_000, 100_000, 1_000_000] {
        let filled = Filled::new(count).expect("this machine has memory for a million mappings");
        group.bench_function(BenchmarkId::new("map and unmap a page", count), |bencher| {
            bencher.iter(|| {
                let index = filled.any();
                let iova = (2 * index + 1) * PAGE;
                let vaddr = MEMORY + index * PAGE;
                filled.container.map_dma(BOTH, vaddr, iova, PAGE, &filled.process)?;
                filled.container.unmap_dma(DmaUnmapFlags::empty(), iova, PAGE)
            });
        });
        group.bench_function(BenchmarkId::new("a device looks up a page", count), |bencher| {
            bencher.iter(|| {
                let iova = 2 * filled.any() * PAGE;
                filled.bus.dma().access(iova, 8, whimbrel_device::dma::Access::Read, |slice| {
                    black_box(slice.len());
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, growth);
criterion_main!(benches);
