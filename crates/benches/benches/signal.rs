//! The cost of a non-blocking signal of an interrupt's eventfd, compared with a user's write.
#![allow(clippy::unwrap_used)]

use std::os::fd::AsFd;

use criterion::{Criterion, criterion_group, criterion_main};
use nix::sys::eventfd::{EfdFlags, EventFd};
use whimbrel_device::{
    DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Irq, IrqAction, IrqData, IrqInfoFlags,
};

/// A card with one MSI.
struct Card;

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_irqs(5)
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        Ok(Irq::new(IrqInfoFlags::EVENTFD, u32::from(index == 1)))
    }
}

fn signal(criterion: &mut Criterion) {
    let device = DeviceFile::new("card", |_| Card);
    let bus = device.bus();
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let told = IrqData::Eventfd(vec![Some(eventfd.as_fd().try_clone_to_owned().unwrap())]);
    device.set_irqs(1, 0, IrqAction::Trigger, told).unwrap();
    let mut group = criterion.benchmark_group("eventfd");
    group.bench_function("a message interrupt", |bencher| bencher.iter(|| bus.interrupts().trigger(1, 0)));
    group.bench_function("write(2)", |bencher| bencher.iter(|| eventfd.write(1)));
    group.finish();
}

criterion_group!(benches, signal);
criterion_main!(benches);
