//! KVM's dirty log as the log of the CPUs' writes.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;

use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVMIO, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1, kvm_userspace_memory_region,
};
use rustix::ioctl::{Setter, ioctl, opcode};
use whimbrel_protocol::dirty::{PageBitmap, Run};

use super::cpu_log::{CpuDirtyChoice, CpuLog};
use super::memory::{PAGE, RamRegion};
use crate::guest::GuestError;

/// KVM_GET_DIRTY_LOG.
const GET_DIRTY_LOG: u32 = opcode::write::<kvm_dirty_log>(KVMIO as u8, 0x42);
/// KVM_SET_USER_MEMORY_REGION.
const SET_USER_MEMORY_REGION: u32 = opcode::write::<kvm_userspace_memory_region>(KVMIO as u8, 0x46);

/// A memory slot of a virtual machine, as set with KVM_SET_USER_MEMORY_REGION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KvmSlot {
    slot: u32,
    flags: u32,
    guest: RamRegion,
    address: u64,
}

impl KvmSlot {
    /// Returns the slot with this number: `size` bytes at the guest physical address `start`, mapped at `address` in
    /// this process.
    pub const fn new(slot: u32, start: u64, size: u64, address: u64) -> KvmSlot {
        KvmSlot { slot, flags: 0, guest: RamRegion::new(start, size), address }
    }

    /// Sets the flags that the slot has, such as KVM_MEM_READONLY.
    #[must_use]
    pub const fn flags(self, flags: u32) -> KvmSlot {
        KvmSlot { flags, ..self }
    }
}

/// The log of the pages written by a virtual machine's CPUs, read with KVM_GET_DIRTY_LOG.
///
/// No other reader may use the log during the migration. The virtual machine must not have enabled
/// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, with which reading the log does not reset it. The log does not contain the VMM's
/// own writes.
///
/// ```no_run
/// # fn example(vm: std::os::fd::OwnedFd, ram: whimbrel_engine::set::MappedRam, address: u64) {
/// use whimbrel_engine::Ram;
/// use whimbrel_engine::set::{KvmLog, KvmSlot};
///
/// // A duplicate of the virtual machine's file descriptor, and its one slot.
/// // SAFETY: the slot exists like this until the migration has ended.
/// let log = unsafe { KvmLog::new(vm, &ram.regions(), vec![KvmSlot::new(0, 0, 1 << 30, address)]) };
/// # }
/// ```
#[derive(Debug)]
pub struct KvmLog {
    vm: OwnedFd,
    regions: Vec<RamRegion>,
    slots: Vec<KvmSlot>,
    words: Vec<u64>,
}

impl KvmLog {
    /// Returns the log of a virtual machine's slots, for memory with these regions.
    ///
    /// # Safety
    ///
    /// The virtual machine must have these slots, and keep them unchanged as long as this exists.
    pub unsafe fn new(vm: OwnedFd, regions: &[RamRegion], slots: Vec<KvmSlot>) -> KvmLog {
        KvmLog { vm, regions: regions.to_vec(), slots, words: Vec::new() }
    }

    fn set_flags(&self, slot: &KvmSlot, flags: u32) -> Result<(), GuestError> {
        let region = kvm_userspace_memory_region {
            slot: slot.slot,
            flags,
            guest_phys_addr: slot.guest.start,
            memory_size: slot.guest.size,
            userspace_addr: slot.address,
        };
        // SAFETY: KVM reads the structure that belongs to this request. Only the flags change: the slot is as it was before,
        // as promised to `new`.
        let set = unsafe { Setter::<SET_USER_MEMORY_REGION, _>::new(region) };
        // SAFETY: as above.
        unsafe { ioctl(&self.vm, set) }
            .map_err(|errno| format!("KVM_SET_USER_MEMORY_REGION of slot {}: {errno}", slot.slot).into())
    }

    /// Reads a slot's log into `self.words`, which resets the log.
    fn read(&mut self, slot: &KvmSlot) -> Result<(), GuestError> {
        self.words.clear();
        self.words.resize(slot.guest.pages().div_ceil(64), 0);
        let log = kvm_dirty_log {
            slot: slot.slot,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: self.words.as_mut_ptr().cast() },
        };
        // SAFETY: KVM reads the structure that belongs to this request, and writes a bit for each page of the slot, in whole
        // words, to the bitmap, which has room for it: the slot has the size that was promised to `new`.
        let get = unsafe { Setter::<GET_DIRTY_LOG, _>::new(log) };
        // SAFETY: as above.
        unsafe { ioctl(&self.vm, get) }
            .map_err(|errno| format!("KVM_GET_DIRTY_LOG of slot {}: {errno}", slot.slot).into())
    }

    /// Marks the pages of `self.words` in the regions where they lie.
    fn mark(&self, slot: &KvmSlot, bitmaps: &mut [PageBitmap]) {
        let mut dirty = PageBitmap::new(slot.guest.pages());
        dirty.merge(&self.words);
        for run in dirty.runs() {
            let start = slot.guest.start + run.first as u64 * PAGE;
            let written = RamRegion { start, size: run.count as u64 * PAGE };
            for (region, bitmap) in self.regions.iter().zip(&mut *bitmaps) {
                let Some(part) = region.intersection(written) else { continue };
                let first = (part.start - region.start) / PAGE;
                let end = (part.end() - region.start).div_ceil(PAGE);
                bitmap.set_run(Run { first: first as usize, count: (end - first) as usize });
            }
        }
    }
}

impl CpuLog for KvmLog {
    fn start(&mut self) -> Result<(), GuestError> {
        for index in 0..self.slots.len() {
            let slot = self.slots[index];
            // The second discards the contents of a log that was enabled before.
            let started =
                self.set_flags(&slot, slot.flags | KVM_MEM_LOG_DIRTY_PAGES).and_then(|()| self.read(&slot));
            if let Err(error) = started {
                self.stop();
                return Err(error);
            }
        }
        Ok(())
    }

    fn collect(&mut self, bitmaps: &mut [PageBitmap]) -> Result<(), GuestError> {
        for index in 0..self.slots.len() {
            let slot = self.slots[index];
            self.read(&slot)?;
            self.mark(&slot, bitmaps);
        }
        Ok(())
    }

    fn stop(&mut self) {
        for slot in &self.slots {
            if let Err(error) = self.set_flags(slot, slot.flags) {
                tracing::warn!(%error, "KVM's dirty log cannot be stopped");
            }
        }
    }

    fn choice(&self) -> CpuDirtyChoice {
        CpuDirtyChoice::Kvm
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
#[path = "kvm_tests.rs"]
mod tests;
