//! A VMM that moves to another process: memory, CPUs that write it, and two devices. What arrives is checked, and works on.
//! `vmm receive SOCKET` waits for `vmm send SOCKET`, or for `vmm send SOCKET cancel`, which calls the migration off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::{sleep, spawn};
use std::time::Duration;

use parking_lot::RwLock;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use whimbrel_device::DeviceFile;
use whimbrel_engine::channel::{Address, Listener, Until, connect};
use whimbrel_engine::{Blob, BlobName, Cancel, Destination, Guest, GuestError, Phase, Progress, Source};
use whimbrel_models::Model;
use whimbrel_models::accel::REGISTER_QUEUE_BASE;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{DmaMap, Local, Migratable};

/// Memory that marks in a bitmap what goes through it: the engine reads that as the log of the CPUs' writes.
type Memory = GuestMemoryMmap<AtomicBitmap>;

const MEMORY_BYTES: usize = 64 << 20;
const CPUS: usize = 2;
const PAGES: u64 = 200;
/// The devices, each with a register and its contents.
const DEVICES: [(&str, u64, &[u8]); 2] =
    [("accel?state=8MiB&rate=16MiB", REGISTER_QUEUE_BASE, &[0x40; 8]), ("serial", 7, &[0x40])];
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Default)]
struct Vmm {
    memory: Arc<Memory>,
    devices: Vec<DeviceFile>,
    counts: Arc<[AtomicU64; CPUS]>,
    runs: Arc<RwLock<bool>>,
}

fn page(cpu: usize, count: u64) -> GuestAddress {
    GuestAddress(cpu as u64 * 0x10_0000 + count % PAGES * 0x1000)
}

impl Vmm {
    /// A CPU, which counts in one page after the other. Its state is how far it has come.
    fn run_cpu(&self, cpu: usize) {
        loop {
            // A CPU stops between two writes.
            if *self.runs.read() {
                let count = self.counts[cpu].fetch_add(1, SeqCst) + 1;
                self.memory.write_obj(count, page(cpu, count)).expect("guest memory is there");
            }
            sleep(Duration::from_micros(50));
        }
    }
    /// Checks that memory holds what the CPUs have written last, and each device its register.
    fn check(&self) -> Result<(), GuestError> {
        let counts = self.counts.each_ref().map(|count| count.load(SeqCst));
        for (cpu, &last) in counts.iter().enumerate() {
            for count in last.saturating_sub(PAGES - 1).max(1)..=last {
                let found: u64 = self.memory.read_obj(page(cpu, count))?;
                (found == count).then_some(()).ok_or("memory is not as a CPU left it")?;
            }
        }
        for (device, (_, register, contents)) in self.devices.iter().zip(DEVICES) {
            let mut found = vec![0; contents.len()];
            device.read_region(0, register, &mut found)?;
            (found == contents).then_some(()).ok_or("a device is not as it was")?;
        }
        println!("memory and devices are as they should be, with the CPUs at {counts:?}");
        Ok(())
    }
}

impl Guest for Vmm {
    fn blobs(&self) -> Vec<BlobName> {
        vec![BlobName { name: "cpus".into(), version: 1 }]
    }
    fn loads(&self) -> Vec<BlobName> {
        self.blobs()
    }
    fn pause(&mut self) -> Result<(), GuestError> {
        *self.runs.write() = false;
        Ok(())
    }
    fn resume(&mut self) -> Result<(), GuestError> {
        *self.runs.write() = true;
        Ok(())
    }
    fn save(&mut self) -> Result<Vec<Blob>, GuestError> {
        let counts = self.counts.iter().flat_map(|count| count.load(SeqCst).to_le_bytes());
        Ok(vec![Blob::new("cpus", 1, counts.collect())])
    }
    fn load(&mut self, blobs: Vec<Blob>) -> Result<(), GuestError> {
        let counts = blobs[0].data.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        self.counts.iter().zip(counts).for_each(|(cpu, count)| cpu.store(count, SeqCst));
        self.check()
    }
    fn run(&mut self) -> Result<(), GuestError> {
        self.resume()
    }
}

fn main() -> Result<(), GuestError> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, side, socket, rest @ ..] = &arguments[..] else {
        return Err("expected send or receive, and a socket".into());
    };
    let (address, cancels) = (Address::Unix(socket.into()), !rest.is_empty());
    let file = memfd_create(c"guest", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, MEMORY_BYTES as u64)?;
    let ranges = [(GuestAddress(0), MEMORY_BYTES, Some(FileOffset::new(file.into(), 0)))];
    let memory = Arc::new(Memory::from_ranges_with_files(ranges)?);
    let mut vmm = Vmm { memory: memory.clone(), ..Vmm::default() };
    let mut devices: Vec<Box<dyn Migratable>> = Vec::new();
    for (model, register, contents) in DEVICES {
        let device = model.parse::<Model>()?.open(model)?;
        if side == "send" {
            device.write_region(0, register, contents)?;
        }
        vmm.devices.push(device.device().clone());
        let mut device = Local::new(device);
        let region = memory.iter().next().ok_or("no memory")?;
        device.map_dma(0, DmaMapFlags::READ | DmaMapFlags::WRITE, region.get_mmap().into())?;
        devices.push(Box::new(device));
    }
    for cpu in 0..CPUS {
        let vmm = vmm.clone();
        spawn(move || vmm.run_cpu(cpu));
    }
    if side == "receive" {
        let arriving = Destination::new(devices).memory(memory).guest(vmm.clone());
        let accepted = arriving.accept(&mut Listener::bind(&address)?, Until::timeout(PATIENCE))?;
        arriving.receive_accepted(accepted).result?;
    } else {
        vmm.resume()?;
        let cancel = Cancel::new();
        let leaving = Source::new(devices).memory(memory.clone(), memory).guest(vmm.clone()).cancel(&cancel);
        let observer = move |progress: &Progress| match progress.phase {
            Phase::Round(1) if cancels => cancel.cancel("the operator changed their mind"),
            phase => println!("{phase:?}: {} of {} bytes", progress.done, progress.total),
        };
        let sent = leaving.observer(observer).send(connect(&address, Until::timeout(PATIENCE))?);
        println!("{}", sent.result.map_or_else(|error| error.to_string(), |_| "migrated".into()));
    }
    sleep(PATIENCE / 100);
    vmm.pause()?;
    vmm.check()
}
