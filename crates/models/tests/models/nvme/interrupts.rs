//! Interrupts: messages, the line and its mask.

use std::os::fd::AsFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use whimbrel_device::{IrqAction, IrqData};
use whimbrel_models::nvme::guest::Command;

use super::device::Device;
use super::host::{Bench, settle};

/// Sets up all interrupts of an index.
fn eventfds<const N: usize>(device: &Device, index: u32) -> [EventFd; N] {
    let eventfds = [(); N].map(|()| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    let triggers = eventfds.iter().map(|eventfd| Some(eventfd.as_fd().try_clone_to_owned().unwrap()));
    device.set_irq_triggers(index, 0, triggers.collect()).unwrap();
    eventfds
}

fn signals(eventfd: &EventFd) -> u64 {
    eventfd.read().unwrap_or(0)
}

#[test]
fn it_has_a_vector_for_each_queue_pair_and_a_line() {
    let bench = Bench::new();
    let device = bench.device();
    assert_eq!([0, 1, 2].map(|index| device.irq_info(index).unwrap().count), [1, 0, 5]);
    assert_eq!(device.region_info(0).unwrap().size, 0x4000);
    let mut class = [0; 3];
    device.read_region(7, 9, &mut class).unwrap();
    assert_eq!(class, [0x02, 0x08, 0x01], "mass storage, non-volatile memory, NVM Express");
}

#[test]
fn a_queue_signals_its_vector_for_new_completions() {
    let bench = Bench::new();
    let device = bench.device();
    let vectors: [EventFd; 5] = eventfds(&device, 2);
    let mut host = bench.admin_on(device.clone());
    host.driver.create_queue(1, 16, Some(3)).unwrap();
    host.driver.create_queue(2, 16, None).unwrap();
    let _ = vectors.each_ref().map(signals);
    for _ in 0..3 {
        host.driver.submit(1, Command::flush(), 0, 0).unwrap();
    }
    settle(&device);
    let [admin, first, second, queue, last] = vectors.each_ref().map(signals);
    assert_eq!((admin, first, second, last), (0, 0, 0, 0));
    assert!((1..=3).contains(&queue), "{queue}");
    host.driver.submit(2, Command::flush(), 0, 0).unwrap();
    settle(&device);
    assert_eq!(vectors.each_ref().map(signals), [0; 5], "a queue without interrupts");
    host.driver.identify(1, 0).unwrap();
    assert_eq!(signals(&vectors[0]), 1);
}

#[test]
fn the_line_is_asserted_until_the_host_has_taken_all_completions_out() {
    let bench = Bench::new();
    let device = bench.device();
    let mut host = bench.admin_on(device.clone());
    host.driver.create_queue(1, 16, Some(0)).unwrap();
    let [line] = eventfds(&device, 0);
    let status = || {
        let mut status = [0; 2];
        device.read_region(7, 6, &mut status).unwrap();
        status[0] >> 3 & 1
    };
    assert_eq!((signals(&line), status()), (0, 0));
    for _ in 0..2 {
        host.driver.submit(1, Command::flush(), 0, 0).unwrap();
    }
    settle(&device);
    assert_eq!((signals(&line), status()), (1, 1));
    let unmask = || device.set_irqs(0, 0, IrqAction::Unmask, IrqData::None(1)).unwrap();
    host.driver.take_completion(1).unwrap().unwrap();
    unmask();
    assert_eq!((signals(&line), status()), (1, 1), "another one waits");
    host.driver.take_completion(1).unwrap().unwrap();
    unmask();
    assert_eq!((signals(&line), status()), (0, 0));

    host.driver.write_u32(0x0c, 1).unwrap();
    host.driver.submit(1, Command::flush(), 0, 0).unwrap();
    settle(&device);
    assert_eq!((signals(&line), status()), (0, 0), "masked by INTMS");
    host.driver.write_u32(0x10, 1).unwrap();
    assert_eq!((signals(&line), status()), (1, 1), "unmasked by INTMC");
}
