//! What a user has set up of one device, handed to another like it: no signal of the user is lost, and none is
//! done twice.

use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{
    Context, DeviceFile, DeviceInfoFlags, Driver, Errno, InUse, Info, InterruptsInUse, IoeventfdWrite, Irq,
    IrqAction, IrqData, IrqInfoFlags, LowPower, Region, RegionInfoFlags, WriteWidth,
};
use whimbrel_memory::FileOffset;
use whimbrel_uapi::type1::DmaMapFlags;

/// Tells what is written to it.
struct Card(Sender<u8>);

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(9).num_irqs(5)
    }

    fn region(&self, _index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        Ok(Region::new(flags, 0x1000))
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        Ok(match index {
            0 => Irq::new(IrqInfoFlags::EVENTFD | IrqInfoFlags::MASKABLE, 1),
            1 | 2 => Irq::new(IrqInfoFlags::EVENTFD | IrqInfoFlags::NORESIZE, 4),
            _ => Irq::new(IrqInfoFlags::EVENTFD, 1),
        })
    }

    fn write_region(&mut self, _: &Context, _index: u32, _offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.0.send(data[0]).unwrap();
        Ok(data.len())
    }

    fn low_power(&mut self) -> Option<&mut dyn LowPower> {
        Some(self)
    }
}

impl LowPower for Card {
    fn suspend(&mut self, _: &Context) {
        self.0.send(b's').unwrap();
    }

    fn resume(&mut self, _: &Context) {
        self.0.send(b'r').unwrap();
    }
}

fn open() -> (DeviceFile, Receiver<u8>) {
    let (written, told) = channel();
    (DeviceFile::new("card", |_| Card(written)), told)
}

fn eventfd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap()
}

fn write(data: u8) -> IoeventfdWrite {
    IoeventfdWrite::new(0, 0, WriteWidth::One, data.into())
}

#[test]
fn a_signal_while_signals_are_paused_is_done_when_they_go_on() {
    let (device, told) = open();
    let doorbell = eventfd();
    device.set_ioeventfd(write(1), Some(doorbell.as_fd().try_clone_to_owned().unwrap())).unwrap();
    for _ in 0..50 {
        doorbell.write(1).unwrap();
        assert_eq!(told.recv().unwrap(), 1);
        device.pause_signals().unwrap();
        doorbell.write(1).unwrap();
        device.resume_signals();
        assert_eq!(told.recv().unwrap(), 1);
    }
    assert!(told.try_recv().is_err());
}

#[test]
fn each_signal_is_done_by_one_of_two_devices_while_the_doorbell_goes_from_one_to_the_other() {
    let (old, told_old) = open();
    let (new, told_new) = open();
    let doorbell = eventfd();
    old.set_ioeventfd(write(1), Some(doorbell.as_fd().try_clone_to_owned().unwrap())).unwrap();
    new.pause_signals().unwrap();
    for round in 0..200 {
        let (from, to) = if round % 2 == 0 { (&old, &new) } else { (&new, &old) };
        doorbell.write(1).unwrap();
        from.pause_signals().unwrap();
        for (write, eventfd) in from.ioeventfds().unwrap() {
            to.set_ioeventfd(write, Some(eventfd)).unwrap();
            from.set_ioeventfd(write, None).unwrap();
        }
        to.resume_signals();
        let done_before = told_old.try_iter().chain(told_new.try_iter()).count();
        if done_before == 0 {
            // It was still in the counter, which is the other's now.
            let told = if round % 2 == 0 { &told_new } else { &told_old };
            assert_eq!(told.recv().unwrap(), 1);
        }
        assert!(told_old.try_recv().is_err() && told_new.try_recv().is_err(), "round {round}");
    }
}

#[test]
fn what_was_signalled_before_the_pause_is_done_when_it_has_begun() {
    let (device, told) = open();
    let doorbell = eventfd();
    device.set_ioeventfd(write(1), Some(doorbell.as_fd().try_clone_to_owned().unwrap())).unwrap();
    for _ in 0..200 {
        doorbell.write(1).unwrap();
        device.pause_signals().unwrap();
        let left = doorbell.read().unwrap_or(0);
        assert_eq!(told.try_iter().count() as u64 + left, 1, "done, or still in the counter");
        device.resume_signals();
    }
}

#[test]
fn messages_and_errors_are_told_by_the_new_device_as_by_the_old() {
    let (old, _told_old) = open();
    let (new, _told_new) = open();
    let (vector, error) = (eventfd(), eventfd());
    let msi = vec![None, None, Some(vector.as_fd().try_clone_to_owned().unwrap())];
    old.set_irq_triggers(1, 0, msi).unwrap();
    old.set_irq_triggers(3, 0, vec![Some(error.as_fd().try_clone_to_owned().unwrap())]).unwrap();
    new.restore_interrupts(old.interrupts_in_use().unwrap()).unwrap();
    new.bus().interrupts().trigger(1, 2);
    assert_eq!(vector.read().unwrap(), 1);
    new.bus().interrupts().trigger(3, 0);
    assert_eq!(error.read().unwrap(), 1);
    // As many as were set up at first can be set up again, and no more.
    let two = || vec![Some(eventfd().into()), Some(eventfd().into())];
    assert_eq!(new.set_irq_triggers(1, 1, two()), Ok(()));
    assert_eq!(new.set_irq_triggers(1, 2, two()), Err(Errno::EINVAL));
    assert_eq!(new.restore_interrupts(old.interrupts_in_use().unwrap()), Err(Errno::EBUSY));
}

#[test]
fn a_masked_line_stays_masked_until_its_own_eventfd_unmasks_it() {
    let (old, _told_old) = open();
    let (new, _told_new) = open();
    let (trigger, unmask) = (eventfd(), eventfd());
    old.set_irq_triggers(0, 0, vec![Some(trigger.as_fd().try_clone_to_owned().unwrap())]).unwrap();
    let data = IrqData::Eventfd(vec![Some(unmask.as_fd().try_clone_to_owned().unwrap())]);
    old.set_irqs(0, 0, IrqAction::Unmask, data).unwrap();
    old.bus().interrupts().set_line(true);
    assert_eq!(trigger.read().unwrap(), 1, "it masks itself");
    old.pause_signals().unwrap();
    new.pause_signals().unwrap();
    new.restore_interrupts(old.interrupts_in_use().unwrap()).unwrap();
    new.bus().interrupts().set_line(true);
    assert!(trigger.read().is_err());
    unmask.write(1).unwrap();
    assert!(trigger.read().is_err());
    new.resume_signals();
    while trigger.read().is_err() {
        std::thread::yield_now();
    }
}

#[test]
fn what_a_device_cannot_have_is_refused() {
    let (device, _told) = open();
    let messages = |index, interrupt| {
        InterruptsInUse::new(
            InUse::Messages { index, allocated: 4, eventfds: vec![(interrupt, eventfd().into())] },
            Vec::new(),
        )
    };
    for in_use in [messages(1, 4), messages(0, 0), messages(5, 0), messages(u32::MAX, 0)] {
        let text = format!("{in_use:?}");
        assert_eq!(device.restore_interrupts(in_use), Err(Errno::EINVAL), "{text}");
    }
    let singles = vec![(1, eventfd().into())];
    let none = InterruptsInUse::new(InUse::None, singles);
    assert_eq!(device.restore_interrupts(none), Err(Errno::EINVAL));
    device.restore_interrupts(messages(1, 3)).unwrap();
}

#[test]
fn a_device_that_sleeps_is_taken_out_of_it_without_telling_its_user() {
    let (device, told) = open();
    assert!(device.take_low_power().unwrap().is_none());
    let wakeup = eventfd();
    device.enter_low_power(Some(wakeup.as_fd().try_clone_to_owned().unwrap())).unwrap();
    assert_eq!(told.try_recv(), Ok(b's'));
    let entry = device.take_low_power().unwrap().expect("it was let sleep");
    assert_eq!(told.try_recv(), Ok(b'r'));
    assert!(wakeup.read().is_err(), "its user is told nothing");
    device.info();
    assert!(told.try_recv().is_err(), "it stays awake");
    device.enter_low_power(entry.wakeup).unwrap();
    device.info();
    assert_eq!(wakeup.read().unwrap(), 1);
}

#[test]
fn the_mappings_of_a_device_are_told_with_their_files() {
    let (device, _told) = open();
    let file = std::fs::File::from(memfd_create(c"test", MemfdFlags::empty()).unwrap());
    file.set_len(0x4000).unwrap();
    let file = std::sync::Arc::new(file);
    let both = DmaMapFlags::READ | DmaMapFlags::WRITE;
    let at = |start| FileOffset::from_arc(file.clone(), start);
    device.bus().dma().map(0x8000, 0x1000, DmaMapFlags::READ, at(0)).unwrap();
    device.bus().dma().map(0x1000, 0x2000, both, at(0x2000)).unwrap();
    let told = device.bus().dma().mappings();
    let ranges: Vec<_> = told.iter().map(|mapped| (mapped.iova, mapped.size, mapped.rights)).collect();
    assert_eq!(ranges, [(0x1000, 0x2000, both), (0x8000, 0x1000, DmaMapFlags::READ)]);
    for (mapped, start) in told.iter().zip([0x2000, 0]) {
        let behind = mapped.file.as_ref().expect("a file");
        assert!(std::sync::Arc::ptr_eq(behind.arc(), &file));
        assert_eq!(behind.start(), start);
    }
}
