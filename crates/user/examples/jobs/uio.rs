//! The engine behind `uio_pci_generic`, where there is no IOMMU: it takes physical addresses.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use whimbrel_models::accel::REGISTERS_BYTES;

use super::{Fallible, Hardware, MEMORY_BYTES};

const COMMAND: u64 = 0x04;
const BUS_MASTER: u16 = 0x0004;
const INTX_DISABLE: u16 = 0x0400;
const PAGE_BYTES: u64 = 4096;

pub(super) struct Uio {
    registers: MmapRegion,
    config: File,
    events: File,
    memory: MmapRegion,
    address: u64,
}

impl Uio {
    pub(super) fn new(device: &str) -> Fallible<Uio> {
        let folder = Path::new("/sys/bus/pci/devices").join(device);
        let both = |path: PathBuf| OpenOptions::new().read(true).write(true).open(path);
        let registers = FileOffset::new(both(folder.join("resource0"))?, 0);
        let name = fs::read_dir(folder.join("uio"))?.next().ok_or("uio_pci_generic has no such device")??;
        // One huge page: its physical addresses are adjacent, and it is never moved.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_POPULATE;
        let memory = MmapRegion::build(None, MEMORY_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags)?;
        let mut uio = Uio {
            registers: MmapRegion::from_file(registers, REGISTERS_BYTES as usize)?,
            config: both(folder.join("config"))?,
            events: File::open(Path::new("/dev").join(name.file_name()))?,
            address: physical_address(memory.as_ptr() as u64)?,
            memory,
        };
        uio.set_command(BUS_MASTER, INTX_DISABLE)?;
        Ok(uio)
    }

    fn set_command(&mut self, set: u16, clear: u16) -> Fallible<()> {
        let mut command = [0; 2];
        self.config.read_exact_at(&mut command, COMMAND)?;
        let command = (u16::from_le_bytes(command) | set) & !clear;
        Ok(self.config.write_all_at(&command.to_le_bytes(), COMMAND)?)
    }
}

/// Returns the physical address of a page of this program.
fn physical_address(address: u64) -> Fallible<u64> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, address / PAGE_BYTES * 8)?;
    let entry = u64::from_ne_bytes(entry);
    if entry & PRESENT == 0 || entry & FRAME == 0 {
        return Err("the page is not in memory, or this user may not know where".into());
    }
    Ok((entry & FRAME) * PAGE_BYTES + address % PAGE_BYTES)
}

impl Hardware for Uio {
    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Fallible<()> {
        for (at, word) in (offset as usize..).step_by(4).zip(data.chunks_exact_mut(4)) {
            word.copy_from_slice(&self.registers.get_ref::<u32>(at)?.load().to_ne_bytes());
        }
        Ok(())
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Fallible<()> {
        for (at, word) in (offset as usize..).step_by(4).zip(data.chunks_exact(4)) {
            self.registers.get_ref::<u32>(at)?.store(u32::from_ne_bytes(word.try_into()?));
        }
        Ok(())
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn take_interrupt(&mut self) -> Fallible<()> {
        Ok(self.events.read_exact(&mut [0; 4])?)
    }

    fn rearm(&mut self) -> Fallible<()> {
        // The driver disables the line at each interrupt.
        self.set_command(0, INTX_DISABLE)
    }

    fn memory(&self) -> &MmapRegion {
        &self.memory
    }

    fn address(&self) -> u64 {
        self.address
    }
}
