//! Our iommufd with a device that has an IOMMU like the kernel's mock device.

use whimbrel_device::iommufd::{Iommu, OwnIommu};
use whimbrel_device::{Bus, Cdev, Errno, Process};
use whimbrel_recorder::HWPT as RECORDED;
use whimbrel_recorder::hwpt::{self, FIRST, LAST, Side};
use whimbrel_recorder::vfio::probes::{ARGUMENT, DATA, PAGE};

use crate::iommufd_program::bench::{Bench, open};

struct Ours {
    bench: Bench,
    /// Each device with the object that takes the number the kernel's mock device takes.
    devices: Vec<Option<(Cdev, Bus, u32)>>,
}

impl Side for Ours {
    fn ioctl(&mut self, number: u32, argument: u64, bytes: &mut [u8], data: &mut [u8]) -> Result<i32, Errno> {
        let program = &mut self.bench.program;
        program.memory.insert(DATA, vec![0; PAGE]);
        program.memory.insert(ARGUMENT, vec![0; PAGE]);
        program.write(ARGUMENT, bytes).unwrap();
        let result = self.bench.iommufd.ioctl(number, argument, program);
        program.read(ARGUMENT, bytes).unwrap();
        program.read(DATA + 0x800, data).unwrap();
        result
    }

    fn device(&mut self, to: u32, tracks: bool) -> Result<[u32; 2], Errno> {
        let taken = self.bench.ioas();
        let (cdev, bus) = open(Iommu::Own(
            OwnIommu::default()
                .dirty_tracking(tracks)
                .last_iova(LAST)
                .reserved(vec![(0, FIRST - 1)])
                .page_sizes(2048)
                .coherent(false)
                .pasid_bits(0),
        ));
        let id = self.bench.bind(&cdev).unwrap();
        match self.bench.attach(&cdev, to) {
            Ok(table) => {
                self.devices.push(Some((cdev, bus, taken)));
                Ok([id, table])
            }
            Err(errno) => {
                drop(cdev);
                self.bench.destroy(taken).unwrap();
                Err(errno)
            }
        }
    }

    fn attach(&mut self, device: usize, to: u32) -> Result<u32, Errno> {
        let (cdev, ..) = self.devices[device].as_ref().unwrap();
        self.bench.attach(cdev, to)
    }

    fn write(&mut self, device: usize, _table: u32, iova: u64, pages: u64) {
        let (_, bus, _) = self.devices[device].as_ref().unwrap();
        for page in (0..64).filter(|page| pages >> page & 1 == 1) {
            // The mock device marks what is mapped, whatever its rights.
            if let Err(fault) = bus.dma().write(iova + (page << 12), &[1]) {
                panic!("the list writes what is mapped and writable: {fault}");
            }
        }
    }

    fn close(&mut self, device: usize) {
        let (cdev, _, taken) = self.devices[device].take().unwrap();
        drop(cdev);
        self.bench.destroy(taken).unwrap();
    }
}

#[test]
fn every_request_is_answered_as_by_the_kernel() {
    let mut ours = Vec::new();
    hwpt::answers(&mut Ours { bench: Bench::new(), devices: Vec::new() }, |line| ours.push(line));
    RECORDED.check(&ours);
}
