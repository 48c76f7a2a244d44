//! The time to map, look up and unmap a page in a container with 1,000 to 1,000,000 other mappings. The
//! goal: under 2 microseconds for a map and unmap in a container with 100,000.

mod contained;

use std::cell::Cell;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use whimbrel_device::ContainerSettings;
use whimbrel_uapi::type1::DmaUnmapFlags;

use self::contained::{BOTH, Contained, MEMORY, PAGE};

/// A container whose one device sees `count` mappings of a page, each with a page between it and the next.
struct Filled {
    contained: Contained,
    count: u64,
    seed: Cell<u64>,
}

impl Filled {
    fn new(count: u64) -> contained::Result<Filled> {
        let settings = ContainerSettings::default().dma_entry_limit(u32::MAX);
        let contained = Contained::new(settings, count * PAGE)?;
        let Contained { container, process, .. } = &contained;
        for index in 0..count {
            container.map_dma(BOTH, MEMORY + index * PAGE, 2 * index * PAGE, PAGE, process)?;
        }
        Ok(Filled { contained, count, seed: Cell::new(1) })
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
        let Contained { container, process, bus, .. } = &filled.contained;
        group.bench_function(BenchmarkId::new("map and unmap a page", count), |bencher| {
            bencher.iter(|| {
                let index = filled.any();
                let iova = (2 * index + 1) * PAGE;
                let vaddr = MEMORY + index * PAGE;
                container.map_dma(BOTH, vaddr, iova, PAGE, process)?;
                container.unmap_dma(DmaUnmapFlags::empty(), iova, PAGE)
            });
        });
        group.bench_function(BenchmarkId::new("a device looks up a page", count), |bencher| {
            bencher.iter(|| {
                let iova = 2 * filled.any() * PAGE;
                bus.dma().access(iova, 8, whimbrel_device::dma::Access::Read, |slice| {
                    black_box(slice.len());
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, growth);
criterion_main!(benches);
