//! Moves a served device to another server, with the memory that it writes:
//! `cargo run -p whimbrel-vfio-user --example migrate -- [SOURCE DESTINATION]`. The arguments are the sockets
//! of two servers of one model; without, both are in this process.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Destination, NoCpuLog, Source};
use whimbrel_models::Model;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{DmaRegion, Error, Migratable};
use whimbrel_vfio_user::{Backend, Client, ClientOptions, DmaMapping};

const MEMORY: u64 = 16 << 20;

/// A client of a server in this process.
fn served(name: &str) -> Result<Client, Box<dyn std::error::Error>> {
    let model = "accel?state=8MiB&rate=1MiB".parse::<Model>()?.open(name)?;
    let (server, stream) = UnixStream::pair()?;
    std::thread::spawn(move || Backend::new(model).serve(server));
    Ok(Client::new(name, stream, &ClientOptions::default())?)
}

/// Memory of a guest, which a server can map too.
fn guest_memory() -> Result<GuestMemoryMmap, Box<dyn std::error::Error>> {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(MEMORY)?;
    // A server that maps it need not fear that it gets shorter.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
    let range = (GuestAddress(0), MEMORY as usize, Some(FileOffset::new(file, 0)));
    Ok(GuestMemoryMmap::from_ranges_with_files([range])?)
}

fn map(device: &Client, memory: &GuestMemoryMmap) -> Result<(), Error> {
    let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
    let mapping =
        |region: &vm_memory::GuestRegionMmap| DmaMapping::new(0, rights, DmaRegion::from(region.get_mmap()));
    device.map_dma_all(memory.iter().map(mapping).collect())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mut source, mut destination) = match arguments.as_slice() {
        [source, destination] => {
            let connect = |path| Client::connect(path, &ClientOptions::default());
            (connect(source)?, connect(destination)?)
        }
        _ => (served("source")?, served("destination")?),
    };
    let (here_memory, there_memory) = (guest_memory()?, guest_memory()?);
    map(&source, &here_memory)?;
    map(&destination, &there_memory)?;

    // Between hosts this is a TCP connection.
    let (here, there) = UnixStream::pair()?;
    // The migration has a handle of its own to each device.
    let arriving = Destination::new(vec![Box::new(destination.clone())]).memory(Arc::new(there_memory));
    let receiver = std::thread::spawn(|| arriving.receive(Stream::from(there)));
    let sent = Source::new(vec![Box::new(source.clone())])
        .memory(Arc::new(here_memory), NoCpuLog)
        .send(Stream::from(here));
    let report = sent.result?;
    receiver.join().expect("it does not panic").result?;
    println!("{} bytes of the device and {} of memory moved", report.device_bytes, report.memory_bytes);
    println!("here: {}, there: {}", source.state()?, destination.state()?);
    Ok(())
}
