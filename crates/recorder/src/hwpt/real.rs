//! The running kernel's iommufd with its mock device.

use std::os::fd::AsRawFd;

use whimbrel_uapi::Errno;
use whimbrel_uapi::ioctl::IOMMU_DESTROY;
use whimbrel_uapi::iommufd::Destroy;
use zerocopy::IntoBytes;

use super::{Side, TOLD};
use crate::kernel::{ioctl, open, page};
use crate::vfio::probes::{ARGUMENT, DATA, PAGE, SHARED, SHARED_SIZE};

/// The kernel, and its own request for tests (`iommufd_test.h`): `struct iommu_test_cmd` as words.
pub(crate) struct Real {
    file: std::fs::File,
    /// The numbers of the mock devices.
    devices: Vec<u32>,
}

impl Real {
    pub(crate) fn new() -> Real {
        page::map(ARGUMENT, PAGE);
        page::map(DATA, PAGE);
        page::map(SHARED, SHARED_SIZE as usize);
        Real { file: open("/dev/iommu"), devices: Vec::new() }
    }

    fn request(&mut self, number: u32, argument: u64) -> Result<i32, Errno> {
        ioctl(self.file.as_raw_fd(), number, argument)
    }

    fn test(&mut self, mut words: [u32; 18]) -> Result<[u32; 18], Errno> {
        const TEST: u32 = 0x3ba0;
        words[0] = 72;
        let mut data = [0; TOLD];
        self.ioctl(TEST, ARGUMENT, words.as_mut_bytes(), &mut data)?;
        Ok(words)
    }
}

impl Side for Real {
    fn ioctl(&mut self, number: u32, argument: u64, bytes: &mut [u8], data: &mut [u8]) -> Result<i32, Errno> {
        page::put(DATA + 0x800, &[0; PAGE - 0x800]);
        page::put(ARGUMENT, &[0; PAGE]);
        page::put(ARGUMENT, bytes);
        let result = self.request(number, argument);
        page::get(ARGUMENT, bytes);
        page::get(DATA + 0x800, data);
        result
    }

    fn device(&mut self, to: u32, tracks: bool) -> Result<[u32; 2], Errno> {
        const MOCK_DOMAIN_FLAGS: u32 = 12;
        let mut words = [0; 18];
        (words[1], words[2], words[7]) = (MOCK_DOMAIN_FLAGS, to, u32::from(!tracks));
        let words = self.test(words)?;
        self.devices.push(words[4]);
        Ok([words[6], words[5]])
    }

    fn attach(&mut self, device: usize, to: u32) -> Result<u32, Errno> {
        const MOCK_DOMAIN_REPLACE: u32 = 10;
        let mut words = [0; 18];
        (words[1], words[2], words[4]) = (MOCK_DOMAIN_REPLACE, self.devices[device], to);
        self.test(words).map(|words| words[4])
    }

    fn write(&mut self, _device: usize, table: u32, iova: u64, pages: u64) {
        const DIRTY: u32 = 13;
        let mut words = [0; 18];
        // Bits of half pages.
        let bits =
            (0..32).filter(|page| pages >> page & 1 == 1).fold(0u64, |bits, page| bits | 1 << (2 * page));
        page::put(DATA, bits.as_bytes());
        (words[1], words[2]) = (DIRTY, table);
        let fields = [iova, 64 * 2048, 2048, DATA];
        for (index, field) in fields.into_iter().enumerate() {
            words[6 + 2 * index] = field as u32;
            words[7 + 2 * index] = (field >> 32) as u32;
        }
        self.test(words).unwrap();
    }

    fn close(&mut self, device: usize) {
        let mut asked = Destroy { size: 8, id: self.devices[device] };
        self.ioctl(IOMMU_DESTROY.number(), ARGUMENT, asked.as_mut_bytes(), &mut [0; TOLD]).unwrap();
    }
}
