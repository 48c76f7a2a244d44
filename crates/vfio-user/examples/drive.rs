//! Drives a device behind a socket as a VMM does: registers, an interrupt, memory. With a socket's path it is
//! the `accel` model that is served there; without, one in this process:
//! `cargo run -p whimbrel-vfio-user --example drive -- [SOCKET]`.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use whimbrel_models::{Model, accel};
use whimbrel_uapi::pci::VFIO_PCI_MSI_IRQ_INDEX;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, DmaRegion, Migratable};
use whimbrel_vfio_user::message::WriteOne;
use whimbrel_vfio_user::{Backend, Client, ClientOptions, RegionRead};
use zerocopy::IntoBytes;

const BAR: u32 = 0;
const COMPLETIONS: u64 = 0x1000;
const DATA: u64 = 0x2000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut device = if let Some(path) = std::env::args().nth(1) {
        Client::connect(path, &ClientOptions::default())?
    } else {
        let (server, stream) = UnixStream::pair()?;
        let backend = Backend::new("accel?state=64KiB".parse::<Model>()?.open("accel")?);
        std::thread::spawn(move || backend.serve(server));
        Client::new("accel", stream, &ClientOptions::default())?
    };

    // Two registers by messages that are under way together.
    let (mut id, mut version) = ([0; 4], [0; 4]);
    device.read_regions(&mut [
        RegionRead::new(BAR, accel::REGISTER_ID, &mut id),
        RegionRead::new(BAR, accel::REGISTER_VERSION, &mut version),
    ])?;
    println!("{}: device {:?}, version {}", device.name(), str::from_utf8(&id)?, u32::from_le_bytes(version));

    // Memory that both processes map, at IOVA 0.
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(1 << 20)?;
    // A server that maps it need not fear that it gets shorter.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
    let range = (GuestAddress(0), 1 << 20, Some(FileOffset::new(file, 0)));
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range])?;
    for region in memory.iter() {
        device.map_dma(0, DmaMapFlags::READ | DmaMapFlags::WRITE, DmaRegion::from(region.get_mmap()))?;
    }

    // An interrupt is an eventfd, which a VMM gives to KVM. Here it is waited for.
    let interrupt = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    device.set_irq_triggers(VFIO_PCI_MSI_IRQ_INDEX, 0, &[Some(interrupt.as_fd())])?;

    // The rings, by one message; then one job, and a doorbell that nobody waits for.
    let set_up: [(u64, &[u8]); 5] = [
        (accel::REGISTER_QUEUE_SIZE, &2_u32.to_le_bytes()),
        (accel::REGISTER_QUEUE_BASE, &0_u64.to_le_bytes()),
        (accel::REGISTER_COMPLETION_BASE, &COMPLETIONS.to_le_bytes()),
        (accel::REGISTER_INTERRUPT_ENABLE, &accel::INTERRUPT_COMPLETION.to_le_bytes()),
        (accel::REGISTER_CONTROL, &accel::CONTROL_ENABLE.to_le_bytes()),
    ];
    let writes: Option<Vec<WriteOne>> =
        set_up.iter().map(|(offset, data)| WriteOne::new(BAR, *offset, data)).collect();
    device.write_multiple(&writes.ok_or("a register of more than 8 bytes")?)?;
    memory.write_slice(b"123456789", GuestAddress(DATA))?;
    let job = accel::Descriptor::checksum(7, DATA, 9);
    memory.write_slice(job.as_bytes(), GuestAddress(0))?;
    device.post_write(BAR, accel::REGISTER_TAIL, &1_u32.to_le_bytes())?;

    rustix::io::read(&interrupt, &mut [0; 8])?;
    let mut completion = accel::Completion::default();
    memory.read_slice(completion.as_mut_bytes(), GuestAddress(COMPLETIONS))?;
    println!("job {} is done, and the checksum is {:#x}", completion.tag, completion.result);
    device.unmap_all_dma()?;
    Ok(())
}
