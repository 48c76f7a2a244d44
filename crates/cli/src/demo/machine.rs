//! The machine of a demo host: memory that the devices share, and the devices.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};
use whimbrel_engine::Ram;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaRegion};
use zerocopy::IntoBytes;

use super::attachment::Attachment;
use crate::failure::Failure;
use crate::output;

/// Memory whose writes by this process are logged page by page.
pub(super) type Memory = GuestMemoryMmap<AtomicBitmap>;

/// Minimum memory of a demo for each device, in bytes.
pub(super) const MIN_MEMORY: u64 = 16 << 20;

/// Checks that a machine can have this much memory, in bytes.
pub(super) fn check_memory(bytes: u64) -> Result<u64, String> {
    if bytes < MIN_MEMORY || !bytes.is_multiple_of(4096) {
        return Err(format!("expected at least {}, a multiple of 4096 bytes", output::bytes(MIN_MEMORY)));
    }
    Ok(bytes)
}

/// Checks that this machine has the memory for a demo with so many bytes in each of the two hosts. Beyond that, the kernel
/// would kill a process in the middle of the demo.
pub(super) fn check_available(bytes: u64) -> Result<u64, String> {
    // Without the figure, the allocation itself decides.
    available().map_or(Ok(bytes), |available| fits(bytes, available))
}

fn fits(bytes: u64, available: u64) -> Result<u64, String> {
    if bytes > available / 2 {
        return Err(format!(
            "expected at most {}: both hosts of the demo allocate it, and this machine has {} of memory available",
            output::bytes(available / 2),
            output::bytes(available)
        ));
    }
    Ok(bytes)
}

/// The memory that can be allocated without swapping, in bytes.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let figure = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    figure.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The part of memory that belongs to one device and its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// Memory from address 0 on, and the devices that access it at the same addresses.
#[derive(Clone)]
pub(super) struct Machine {
    pub(super) memory: Arc<Memory>,
    attachments: Arc<[Attachment]>,
    bytes: u64,
}

impl Machine {
    pub(super) fn new(attachments: &Arc<[Attachment]>, bytes: u64) -> Result<Machine, Failure> {
        check_memory(bytes).map_err(Failure::new)?;
        let no_memory = |error: std::io::Error| {
            Failure::from_io(format!("cannot allocate {} of memory", output::bytes(bytes)), &error)
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create(c"whimbrel-demo", flags).map_err(|errno| no_memory(errno.into()))?;
        let file = File::from(fd);
        file.set_len(bytes).map_err(no_memory)?;
        // Servers that map it rely on its size.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(|errno| no_memory(errno.into()))?;
        let length = usize::try_from(bytes).map_err(|error| no_memory(std::io::Error::other(error)))?;
        // Allocated now: otherwise the page faults would occur during the migration.
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_POPULATE;
        let region = MmapRegionBuilder::new_with_bitmap(length, AtomicBitmap::with_len(length))
            .with_file_offset(FileOffset::new(file, 0))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags)
            .build()
            .map_err(|error| no_memory(std::io::Error::other(error)))?;
        let memory = GuestRegionMmap::new(region, GuestAddress(0))
            .and_then(|region| Memory::from_regions(vec![region]).ok())
            .ok_or_else(|| no_memory(std::io::Error::other("it does not fit the address space")))?;
        let machine = Machine { memory: Arc::new(memory), attachments: attachments.clone(), bytes };
        for mut device in machine.devices()? {
            let Some(space) = device.dma_map() else { continue };
            for region in machine.memory.iter() {
                let start = vm_memory::GuestMemoryRegion::start_addr(region).0;
                let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
                space.map_dma(start, rights, DmaRegion::from(region.get_mmap()))?;
            }
        }
        Ok(machine)
    }

    /// The machine's devices.
    pub(super) fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// Other handles to all devices.
    pub(super) fn devices(&self) -> Result<Vec<Box<dyn Device>>, Failure> {
        self.attachments.iter().map(Attachment::device).collect()
    }

    /// The part of memory that belongs to a device, by its number.
    pub(super) fn share(&self, device: usize) -> Share {
        share(self.bytes, self.attachments.len(), device)
    }

    /// Fills memory: all zeros would be too easy to migrate.
    pub(super) fn fill_with_noise(&self) -> Result<(), Failure> {
        let failed = |error| Failure::from_error(&error);
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut piece = vec![0u64; 128 << 10];
        for region in Ram::regions(&*self.memory) {
            let mut at = 0;
            while at < region.size {
                for word in &mut piece {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    *word = seed;
                }
                let count = (region.size - at).min(size_of_val(piece.as_slice()) as u64);
                let data = &piece.as_bytes()[..count as usize];
                self.memory.write_slice(data, GuestAddress(region.start + at)).map_err(failed)?;
                at += count;
            }
        }
        Ok(())
    }
}

/// One of `devices` equal parts of memory, in whole pages.
fn share(bytes: u64, devices: usize, device: usize) -> Share {
    let bytes = bytes / devices.max(1) as u64 / 4096 * 4096;
    Share { start: bytes * device as u64, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_memory_of_its_own() {
        assert_eq!(share(64 << 20, 1, 0), Share { start: 0, bytes: 64 << 20 });
        let shares: Vec<Share> = (0..3).map(|device| share(64 << 20, 3, device)).collect();
        assert!(shares.windows(2).all(|pair| pair[0].start + pair[0].bytes == pair[1].start), "{shares:?}");
        assert!(shares.iter().all(|share| share.bytes >= MIN_MEMORY && share.start % 4096 == 0));
        assert!(shares[2].start + shares[2].bytes <= 64 << 20);
    }

    #[test]
    fn memory_that_the_machine_cannot_give_twice_is_refused_with_the_reason() {
        assert_eq!(fits(3 << 30, 6 << 30), Ok(3 << 30));
        assert_eq!(
            fits((3 << 30) + 4096, 6 << 30).unwrap_err(),
            "expected at most 3.00 GiB: both hosts of the demo allocate it, and this machine has 6.00 GiB of memory \
             available"
        );
    }
}
