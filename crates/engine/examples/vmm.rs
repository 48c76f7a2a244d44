//! A VMM of two processes' worth in one: two devices, guest memory, and CPUs that write it, migrate from a source to a
//! destination. `cargo run --example vmm --features vm-memory`, and `-- cancel` to see one that is called off.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Blob, BlobName, Guest, GuestError, Phase, Progress};
use whimbrel_engine::{Cancel, Destination, Source};
use whimbrel_models::Model;
use whimbrel_user::{Local, Migratable};

/// Memory that marks in a bitmap what goes through it: the engine reads that as the log of the CPUs' writes.
type Memory = GuestMemoryMmap<AtomicBitmap>;

const MEMORY_BYTES: usize = 64 << 20;
const CPUS: u64 = 2;

/// The CPUs: each counts in a page of its own, and its state is where it got to.
struct Cpus {
    memory: Arc<Memory>,
    run: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
    state: Vec<u64>,
}

impl Cpus {
    fn new(memory: &Arc<Memory>) -> Cpus {
        let run = Arc::new(AtomicBool::new(false));
        Cpus { memory: memory.clone(), run, threads: Vec::new(), state: vec![0; CPUS as usize] }
    }

    fn start(&mut self) {
        self.run.store(true, Ordering::Release);
        for (cpu, count) in (0..CPUS).zip(self.state.clone()) {
            let (memory, run) = (self.memory.clone(), self.run.clone());
            self.threads.push(spawn(move || {
                let mut count = count;
                while run.load(Ordering::Acquire) {
                    count += 1;
                    let address = GuestAddress(cpu * 0x10_0000 + count % 200 * 0x1000);
                    memory.write_obj(count, address).expect("guest memory is there");
                    std::thread::sleep(Duration::from_micros(50));
                }
                count
            }));
        }
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        self.run.store(false, Ordering::Release);
        for (state, thread) in self.state.iter_mut().zip(self.threads.drain(..)) {
            *state = thread.join().map_err(|_| "a CPU has failed")?;
        }
        Ok(())
    }
}

impl Guest for Cpus {
    fn blobs(&self) -> Vec<BlobName> {
        vec![BlobName { name: "cpus".into(), version: 1 }]
    }

    fn loads(&self) -> Vec<BlobName> {
        self.blobs()
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        self.stop()
    }

    fn save(&mut self) -> Result<Vec<Blob>, GuestError> {
        let state = self.state.iter().flat_map(|count| count.to_le_bytes()).collect();
        Ok(vec![Blob::new("cpus", 1, state)])
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.start();
        Ok(())
    }

    fn load(&mut self, blobs: Vec<Blob>) -> Result<(), GuestError> {
        let (counts, rest) = blobs[0].data.as_chunks();
        if counts.len() as u64 != CPUS || !rest.is_empty() {
            return Err(format!("the state of {} CPUs, expected {CPUS}", counts.len()).into());
        }
        self.state = counts.iter().map(|count| u64::from_le_bytes(*count)).collect();
        Ok(())
    }

    fn run(&mut self) -> Result<(), GuestError> {
        println!("the CPUs go on at {:?}", self.state);
        self.start();
        Ok(())
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        // One that has failed has said so.
        let _ = self.stop();
    }
}

fn devices(side: &str) -> Result<Vec<Box<dyn Migratable>>, Box<dyn Error>> {
    let open = |model: &str, name: &str| -> Result<Box<dyn Migratable>, Box<dyn Error>> {
        Ok(Box::new(Local::new(model.parse::<Model>()?.open(format!("{side} {name}"))?)))
    };
    Ok(vec![open("accel?state=8MiB&rate=16MiB", "accelerator")?, open("serial", "console")?])
}

fn memory() -> Result<Arc<Memory>, Box<dyn Error>> {
    Ok(Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])?))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (left, right) = UnixStream::pair()?;
    let (here, there) = (memory()?, memory()?);
    let arriving = Destination::new(devices("there")?).memory(there.clone()).guest(Cpus::new(&there));
    let receiver = spawn(move || arriving.receive(Stream::from(right)));

    let mut cpus = Cpus::new(&here);
    cpus.start();
    let cancel = Cancel::new();
    let (canceller, cancels) = (cancel.clone(), std::env::args().any(|argument| argument == "cancel"));
    let sent = Source::new(devices("here")?)
        .memory(here.clone(), here)
        .guest(cpus)
        .cancel(&cancel)
        .observer(move |progress: &Progress| match progress.phase {
            Phase::Round(1) if cancels => canceller.cancel("the operator changed their mind"),
            phase => println!("{phase:?}: {} of {} bytes", progress.done, progress.total),
        })
        .send(Stream::from(left));
    let arrived = receiver.join().map_err(|_| "the destination has failed")?;
    match (sent.result, arrived.result) {
        (Ok(report), Ok(_)) => println!("moved, with a downtime of {:.2} ms", report.downtime_ms),
        (Err(sent), Err(arrived)) => println!("source: {sent}\ndestination: {arrived}"),
        (sent, arrived) => println!("source: {sent:?}\ndestination: {arrived:?}"),
    }
    Ok(())
}
