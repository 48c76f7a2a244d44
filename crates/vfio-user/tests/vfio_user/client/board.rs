//! A device with a doorbell and a log of its DMA, served by a thread.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use whimbrel_device::{
    Context, DeviceFile, DeviceInfoFlags, DmaLogging, Driver, Errno, Info, IoeventfdWrite, Region,
    RegionInfoFlags, WriteWidth,
};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_user::DmaRegion;
use whimbrel_vfio_user::{Backend, Client, ClientOptions};

pub(crate) const PAGE: u64 = 4096;
/// A u64 written here is an IOVA, to which the device writes a byte by DMA.
pub(crate) const TARGET: u64 = 0x10;
/// The doorbell: `RING` written here is counted at [`RUNG`].
pub(crate) const DOORBELL: u64 = 0x20;
pub(crate) const RING: u32 = 0x1234;
/// u64: how often it was rung.
pub(crate) const RUNG: u64 = 0x30;
/// Writes from here on are refused with EIO.
pub(crate) const BROKEN: u64 = 0x800;

#[derive(Default)]
struct Board {
    rung: u64,
    log: Option<Arc<DirtyLog>>,
    written: Written,
    can_reset: bool,
}

/// Every write to the device, in order.
pub(crate) type Written = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

pub(crate) fn doorbell() -> IoeventfdWrite {
    IoeventfdWrite::new(0, DOORBELL, WriteWidth::Four, RING.into())
}

impl Driver for Board {
    fn info(&self) -> Info {
        let reset = if self.can_reset { DeviceInfoFlags::RESET } else { DeviceInfoFlags::empty() };
        Info::new(DeviceInfoFlags::PCI | reset).num_regions(2)
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        if !self.can_reset {
            return Err(Errno::ENOTTY);
        }
        self.rung = 0;
        Ok(())
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        let size = if index == 0 { PAGE } else { 0 };
        Ok(Region::new(flags, size))
    }

    fn read_region(
        &mut self,
        _: &Context,
        _index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        match (offset, data.len()) {
            (RUNG, 8) => data.copy_from_slice(&self.rung.to_ne_bytes()),
            (BROKEN.., _) => return Err(Errno::EIO),
            // What is read says where.
            _ => data.fill(offset as u8),
        }
        Ok(data.len())
    }

    fn write_region(
        &mut self,
        context: &Context,
        _index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        if offset >= BROKEN {
            return Err(Errno::EIO);
        }
        self.written.lock().push((offset, data.to_vec()));
        match (offset, data) {
            (DOORBELL, data) if data == RING.to_le_bytes() => self.rung += 1,
            (TARGET, iova) => {
                if let Ok(iova) = iova.try_into().map(u64::from_ne_bytes) {
                    context.bus().dma().write(iova, b"x").map_err(|_| Errno::EFAULT)?;
                }
            }
            _ => {}
        }
        Ok(data.len())
    }

    fn doorbells(&self) -> Vec<IoeventfdWrite> {
        vec![doorbell()]
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(self)
    }
}

impl DmaLogging for Board {
    fn start(&mut self, context: &Context, ranges: &LoggingRanges) -> Result<u64, Errno> {
        let log = Arc::new(DirtyLog::new(ranges)?);
        context.bus().dma().set_log(Some(log.clone()));
        let page_size = log.page_size();
        self.log = Some(log);
        Ok(page_size)
    }

    fn stop(&mut self, context: &Context) -> Result<(), Errno> {
        context.bus().dma().set_log(None);
        self.log = None;
        Ok(())
    }

    fn report(&mut self, _: &Context, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        self.log.as_ref().ok_or(Errno::EINVAL)?.report(report);
        Ok(())
    }
}

/// A client of a new board, and what is written to the board.
pub(crate) fn board(options: &ClientOptions) -> (Client, Written) {
    board_with(options, Backend::new)
}

pub(crate) fn board_with(
    options: &ClientOptions,
    backend: impl FnOnce(DeviceFile) -> Backend,
) -> (Client, Written) {
    let written = Written::default();
    let board = Board { written: written.clone(), ..Board::default() };
    let backend = backend(DeviceFile::new("board", |_| board));
    let (server, stream) = UnixStream::pair().unwrap();
    std::thread::spawn(move || backend.serve(server));
    (Client::new("board", stream, options).unwrap(), written)
}

/// A board that is not served yet, and what is written to it.
pub(crate) fn bare_board(can_reset: bool) -> (DeviceFile, Written) {
    let written = Written::default();
    let board = Board { written: written.clone(), can_reset, ..Board::default() };
    (DeviceFile::new("board", |_| board), written)
}

/// Memory of so many bytes that can be mapped by others too.
pub(crate) fn memory(size: u64) -> DmaRegion {
    let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    let range = (GuestAddress(0), size as usize, Some(FileOffset::new(file, 0)));
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
    DmaRegion::from(memory.iter().next().unwrap().get_mmap())
}
