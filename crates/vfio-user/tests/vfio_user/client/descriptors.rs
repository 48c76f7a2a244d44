//! What goes over the socket as a descriptor: parts of regions, and eventfds.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{
    Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Irq, IrqInfoFlags, Region, RegionInfoFlags,
};
use whimbrel_memory::FileOffset;
use whimbrel_user::{Device, IrqAction, IrqData};
use whimbrel_vfio_user::{Backend, Client, ClientOptions};

const PAGE: u64 = 4096;
const MSI: u32 = 1;

/// A page of memory in a file that is `length` bytes long, and a write to the region sends an MSI.
struct Card {
    file: File,
}

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(1).num_irqs(2)
    }

    fn region(&self, _index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE | RegionInfoFlags::MMAP;
        Ok(Region::new(flags, PAGE))
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        let count = if index == MSI { 4 } else { 0 };
        Ok(Irq::new(IrqInfoFlags::EVENTFD | IrqInfoFlags::NORESIZE, count))
    }

    fn write_region(
        &mut self,
        context: &Context,
        _index: u32,
        _offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        for number in data {
            context.bus().interrupts().trigger(MSI, (*number).into());
        }
        Ok(data.len())
    }

    fn mmap(&mut self, _: &Context, _index: u32, offset: u64, _length: u64) -> Result<FileOffset, Errno> {
        Ok(FileOffset::new(self.file.try_clone().map_err(|_| Errno::EMFILE)?, PAGE + offset))
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }
}

/// A client of a card whose region begins at the second page of a file of so many bytes.
fn card(length: u64, options: &ClientOptions) -> (Client, File) {
    let file = File::from(memfd_create("card", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(length).unwrap();
    let card = Card { file: file.try_clone().unwrap() };
    let backend = Backend::new(DeviceFile::new("card", |_| card));
    let (server, stream) = UnixStream::pair().unwrap();
    std::thread::spawn(move || backend.serve(server));
    (Client::new("card", stream, options).unwrap(), file)
}

#[test]
fn a_region_is_mapped_from_the_file_that_comes_with_it() {
    use std::os::unix::fs::FileExt;
    let (mut client, file) = card(2 * PAGE, &ClientOptions::default());
    let mapped = client.map_region(0, 0, PAGE).unwrap();
    mapped.write(8, b"seen").unwrap();
    let mut seen = [0; 4];
    file.read_exact_at(&mut seen, PAGE + 8).unwrap();
    assert_eq!(&seen, b"seen");
    for (offset, length) in [(0, 2 * PAGE), (PAGE, PAGE), (u64::MAX, 2), (0, 0)] {
        let error = client.map_region(0, offset, length).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EINVAL), "{offset:#x}, {length:#x}");
    }
}

#[test]
fn a_file_that_is_shorter_than_its_region_is_not_mapped() {
    let (mut client, _file) = card(2 * PAGE - 1, &ClientOptions::default());
    let error = client.map_region(0, 0, PAGE).unwrap_err().to_string();
    assert!(error.contains("the region's file is shorter than the region"), "{error}");
}

#[test]
fn interrupts_signal_their_eventfds_with_gaps_and_in_messages_of_few() {
    let one = Client::capabilities().max_msg_fds(1);
    for capabilities in [Client::capabilities(), one] {
        let (mut client, _file) = card(2 * PAGE, &ClientOptions::default().capabilities(capabilities));
        let eventfds: Vec<EventFd> =
            (0..4).map(|_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap()).collect();
        let signalled = || eventfds.iter().map(|eventfd| eventfd.read().is_ok()).collect::<Vec<bool>>();
        let all: Vec<Option<BorrowedFd<'_>>> = eventfds.iter().map(|eventfd| Some(eventfd.as_fd())).collect();
        client.set_irq_triggers(MSI, 0, &all).unwrap();
        client.write_region(0, 0, &[0, 3]).unwrap();
        assert_eq!(signalled(), [true, false, false, true]);
        client.set_irq_triggers(MSI, 0, &[None, all[1], None, all[3]]).unwrap();
        client.write_region(0, 0, &[0, 1, 2, 3]).unwrap();
        assert_eq!(signalled(), [false, true, false, true]);
        client.set_irqs(MSI, 0, IrqAction::Trigger, IrqData::Bool(&[true, true, false, false])).unwrap();
        assert_eq!(signalled(), [false, true, false, false]);
        client.set_irqs(MSI, 0, IrqAction::Trigger, IrqData::None(0)).unwrap();
        client.write_region(0, 0, &[1]).unwrap();
        assert_eq!(signalled(), [false; 4]);
    }
}
