// In tests a panic is how a failure is told, helpers included.
#![allow(clippy::unwrap_used)]
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use whimbrel_memory::{FileOffset, Memory};

use super::super::{Ledger, MappedRam, MemoryLogs, Ram};
use super::*;

const BASE: u64 = 0x1000;
const PAGES: u64 = 200;

/// Writes AL to [BX], then to [CX], and halts; again when it is run again.
const PROGRAM: [u8; 8] = [
    0x88, 0x07, // mov [bx], al
    0x89, 0xcb, // mov bx, cx
    0x88, 0x07, // mov [bx], al
    0xf4, // hlt
    0x90,
];

struct Guest {
    vm: VmFd,
    vcpu: VcpuFd,
    memory: Memory,
    ram: MappedRam,
}

impl Guest {
    /// Returns a real-mode guest with memory at `BASE`, or the reason why this machine cannot run one.
    fn new() -> Result<Guest, kvm_ioctls::Error> {
        let vm = Kvm::new()?.create_vm()?;
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGES * PAGE).unwrap();
        let memory = Memory::of_file(FileOffset::new(file, 0), PAGES * PAGE, true).unwrap();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: BASE,
            memory_size: memory.size(),
            userspace_addr: memory.address(),
        };
        // SAFETY: the memory stays mapped as long as `Guest` has it, which drops the virtual machine first.
        unsafe { vm.set_user_memory_region(region)? };
        let vcpu = vm.create_vcpu(0)?;
        let ram = MappedRam::new([(BASE, memory.clone())]).unwrap();
        ram.write(BASE, &PROGRAM).unwrap();
        Ok(Guest { vm, vcpu, memory, ram })
    }

    /// Runs the guest so that it writes a byte to two addresses.
    fn write(&mut self, value: u8, first: u16, second: u16) -> Result<(), kvm_ioctls::Error> {
        let mut sregs = self.vcpu.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        (sregs.ds.base, sregs.ds.selector) = (0, 0);
        self.vcpu.set_sregs(&sregs)?;
        let mut regs = self.vcpu.get_regs()?;
        (regs.rip, regs.rflags) = (BASE, 2);
        (regs.rax, regs.rbx, regs.rcx) = (value.into(), first.into(), second.into());
        self.vcpu.set_regs(&regs)?;
        match self.vcpu.run()? {
            VcpuExit::Hlt => Ok(()),
            other => panic!("{other:?}"),
        }
    }

    fn slot(&self) -> KvmSlot {
        KvmSlot::new(0, BASE, self.memory.size(), self.memory.address())
    }

    fn fd(&self) -> OwnedFd {
        // SAFETY: the virtual machine has it open.
        unsafe { BorrowedFd::borrow_raw(self.vm.as_raw_fd()) }.try_clone_to_owned().unwrap()
    }
}

/// Names what this machine cannot prove. That is no failure even where everything is required, because many a machine has
/// no KVM; `.ci/run` repeats it at its end.
fn unproven(what: &str, error: kvm_ioctls::Error) {
    // Past the test harness, which shows what a test prints only when it fails.
    let _ = writeln!(std::io::stderr(), "UNPROVEN: {what}: /dev/kvm runs no guest here: {error}");
}

#[test]
fn the_pages_that_a_guest_writes_are_found_once() {
    let ready = Guest::new().and_then(|mut guest| guest.write(1, 0x3000, 0x3000).map(|()| guest));
    let mut guest = match ready {
        Ok(guest) => guest,
        Err(error) => return unproven("KVM's log of dirty pages", error),
    };
    // SAFETY: `Guest` has made the slot.
    let log = unsafe { KvmLog::new(guest.fd(), &guest.ram.regions(), vec![guest.slot()]) };
    let ledger = parking_lot::Mutex::new(Ledger::new(guest.ram.regions()));
    let mut logs = MemoryLogs::new(Vec::new(), Box::new(log));
    logs.start(&ledger).unwrap();
    ledger.lock().take();
    let ram = guest.ram.clone();
    let mut dirty = || {
        logs.collect(&ram, &ledger, false).unwrap();
        let taken = ledger.lock().take();
        taken[0].1.runs().flat_map(|run| run.first..run.first + run.count).collect::<Vec<_>>()
    };

    assert_eq!(dirty(), [0; 0], "what was written before the start");
    guest.write(7, 0x5001, 0xbfff).unwrap();
    assert_eq!(dirty(), [4, 10], "pages are counted from the region's start");
    assert_eq!(dirty(), [0; 0]);
    guest.write(8, 0x5001, 0x5002).unwrap();
    assert_eq!(dirty(), [4]);
    logs.stop(&ledger);

    let mut found = [0; 2];
    guest.ram.read(0x5001, &mut found).unwrap();
    assert_eq!(found, [8, 8]);
}

#[test]
fn a_slot_at_another_address_fails_with_the_request() {
    let guest = match Guest::new() {
        Ok(guest) => guest,
        Err(error) => return unproven("KVM's refusal of a slot", error),
    };
    let wrong = KvmSlot { address: guest.memory.address() + 1, ..guest.slot() };
    // SAFETY: KVM refuses to move the slot's memory.
    let mut log = unsafe { KvmLog::new(guest.fd(), &guest.ram.regions(), vec![wrong]) };
    let error = log.start().unwrap_err();
    assert!(error.to_string().starts_with("KVM_SET_USER_MEMORY_REGION of slot 0: "), "{error}");
}

#[test]
fn a_slot_may_hold_several_regions_and_more() {
    let guest = [RamRegion::new(0x2000, 0x2000), RamRegion::new(0x6000, 0x1000)];
    let vm = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    // SAFETY: there is no slot.
    let mut log = unsafe { KvmLog::new(vm, &guest, Vec::new()) };
    log.words = vec![0b110_0011];
    let mut bitmaps = guest.map(|region| PageBitmap::new(region.pages()));
    log.mark(&KvmSlot::new(0, 0x1000, 0x8000, 0), &mut bitmaps);
    let runs = |bitmap: &PageBitmap| bitmap.runs().map(|run| (run.first, run.count)).collect::<Vec<_>>();
    assert_eq!((runs(&bitmaps[0]), runs(&bitmaps[1])), (vec![(0, 1)], vec![(0, 1)]));
}
