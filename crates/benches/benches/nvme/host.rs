//! A user-side driver of the model, with memory of its own that the device shares.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{DeviceFile, WorkingDevice};
use whimbrel_memory::{FileOffset, Memory};
use whimbrel_models::Model;
use whimbrel_models::nvme::guest::{Command, GuestDriver, Platform};
use whimbrel_models::nvme::{EngineKind, Nvme, NvmeConfig};
use whimbrel_sandbox::Sandbox;
use whimbrel_uapi::pci::VFIO_PCI_MSIX_IRQ_INDEX;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, DmaRegion, Local};
use whimbrel_vfio_user::{Backend, Client, ClientOptions};

use super::load::Load;
use super::{CONFINED, IMAGE, Result, SERVER};

/// Bytes of memory, for the queues and then the data.
const MEMORY: u64 = 32 << 20;
const DATA: u64 = 16 << 20;
/// Entries of a queue, more than any depth.
const ENTRIES: u32 = 64;
const RIGHTS: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

/// A device, and its user's memory and interrupt.
pub(crate) struct Seat {
    device: Registers,
    memory: Memory,
    interrupt: OwnedFd,
}

/// The way to the device.
enum Registers {
    /// In this process, and it works when its user looks for completions.
    Alone(Local),
    /// In this process, and it works on a thread of its own.
    Here(Local),
    /// In another process.
    There(Client),
}

impl Seat {
    /// Waits for an interrupt, or lets the device work.
    fn wait(&mut self) -> Result<()> {
        if let Registers::Alone(device) = &self.device {
            device.driver_side().advance(Duration::ZERO);
            return Ok(());
        }
        let mut interrupt = [PollFd::new(&self.interrupt, PollFlags::IN)];
        if rustix::event::poll(&mut interrupt, Some(&Timespec { tv_sec: 10, tv_nsec: 0 }))? == 0 {
            return Err("no interrupt for 10 s".into());
        }
        rustix::io::read(&self.interrupt, &mut [0; 8])?;
        Ok(())
    }
}

impl Platform for Seat {
    type Error = whimbrel_user::Error;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> whimbrel_user::Result<()> {
        match &mut self.device {
            Registers::Alone(device) | Registers::Here(device) => device.read_region(0, offset, data)?,
            Registers::There(device) => device.read_region(0, offset, data)?,
        }
        Ok(())
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> whimbrel_user::Result<()> {
        match &mut self.device {
            Registers::Alone(device) | Registers::Here(device) => {
                device.write_region(0, offset, data)?;
            }
            // Without a reply, for which QEMU's client waits.
            Registers::There(device) => device.post_write(0, offset, data)?,
        }
        Ok(())
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> whimbrel_user::Result<()> {
        let bytes = self.memory.bytes(address as usize, data.len()).expect("within memory");
        bytes.copy_to(data);
        Ok(())
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> whimbrel_user::Result<()> {
        let bytes = self.memory.bytes(address as usize, data.len()).expect("within memory");
        bytes.copy_from(data);
        Ok(())
    }
}

/// A server in a process of its own.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A driver with one queue.
pub(crate) struct Host {
    driver: GuestDriver<Seat>,
    _server: Option<Server>,
}

/// Returns the device with an image.
pub(crate) fn device(image: &Path, engine: EngineKind) -> Result<WorkingDevice> {
    Ok(Model::Nvme(NvmeConfig::new(image).engine(engine)).open("disk")?)
}

/// Serves the device with an image on the socket that is the standard input, in a sandbox if `is_confined`.
pub(crate) fn serve(image: &Path, is_confined: bool) -> Result<()> {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let config = NvmeConfig::new(image);
    let image = config.open_image()?;
    if is_confined {
        Sandbox::new().confine()?;
    }
    let device = DeviceFile::try_new("disk", |bus| Nvme::new(config, image, bus))?;
    // It ends with its client.
    let _ = Backend::new(WorkingDevice::start(device)?).serve(socket);
    Ok(())
}

impl Host {
    /// On a device in this process, with a thread of its own.
    pub(crate) fn in_process(image: &Path, engine: EngineKind) -> Result<Host> {
        Host::on(device(image, engine)?)
    }

    /// On a device in this process, which works on the driver's thread.
    pub(crate) fn on_one_thread(image: &Path, engine: EngineKind) -> Result<Host> {
        let config = NvmeConfig::new(image).engine(engine);
        let image = config.open_image()?;
        let device = DeviceFile::try_new("disk", |bus| Nvme::new(config, image, bus))?;
        Host::start(|memory| local(device.into(), memory).map(Registers::Alone), None)
    }

    pub(crate) fn on(device: WorkingDevice) -> Result<Host> {
        Host::start(|memory| local(device, memory).map(Registers::Here), None)
    }

    /// On a device of a server in a process of its own.
    pub(crate) fn over_vfio_user(image: &Path, is_confined: bool) -> Result<Host> {
        let (there, here) = UnixStream::pair()?;
        let mut program = Program::new(std::env::current_exe()?);
        program.env(SERVER, image).stdin(Stdio::from(OwnedFd::from(there)));
        if is_confined {
            program.env(CONFINED, "1");
        }
        let server = Server(program.spawn()?);
        let connect = |memory| {
            let mut device = Client::new("disk", here, &ClientOptions::default())?;
            device.map_dma(0, RIGHTS, memory)?;
            Ok(Registers::There(device))
        };
        Host::start(connect, Some(server))
    }

    fn start(connect: impl FnOnce(DmaRegion) -> Result<Registers>, server: Option<Server>) -> Result<Host> {
        let memory = memory()?;
        let mut device = connect(DmaRegion::from(memory.clone()))?;
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let triggers = [Some(interrupt.as_fd())];
        match &mut device {
            Registers::Alone(device) | Registers::Here(device) => {
                device.set_irq_triggers(VFIO_PCI_MSIX_IRQ_INDEX, 1, &triggers)?;
            }
            Registers::There(device) => device.set_irq_triggers(VFIO_PCI_MSIX_IRQ_INDEX, 1, &triggers)?,
        }
        let wait = |seat: &mut Seat| {
            if let Registers::Alone(device) = &seat.device {
                device.driver_side().advance(Duration::ZERO);
            }
            Ok(())
        };
        let mut driver = GuestDriver::start(Seat { device, memory, interrupt }, 0..DATA, ENTRIES, wait)?;
        driver.create_queue(1, ENTRIES, Some(1))?;
        Ok(Host { driver, _server: server })
    }

    /// Runs a load for a time, and returns its rate of operations in a second.
    pub(crate) fn run(&mut self, load: &Load, time: Duration) -> Result<f64> {
        let begun = Instant::now();
        let mut accesses = Accesses::new(load);
        let mut buffers: Vec<u64> = (0..load.depth as u64).map(|at| DATA + at * load.bytes).collect();
        let mut used = [0; ENTRIES as usize];
        let mut ended = 0_u64;
        loop {
            let goes_on = begun.elapsed() < time;
            while goes_on && let Some(buffer) = buffers.pop() {
                let identifier = self.driver.submit(1, accesses.next(), buffer, load.bytes)?;
                used[usize::from(identifier)] = buffer;
            }
            if self.driver.in_flight(1) == 0 {
                return Ok(ended as f64 / begun.elapsed().as_secs_f64());
            }
            let Some(completion) = self.driver.take_completion(1)? else {
                self.driver.platform().wait()?;
                continue;
            };
            if !completion.is_success() {
                return Err(format!("{}: {completion:?}", load.name).into());
            }
            buffers.push(used[usize::from(completion.identifier)]);
            ended += 1;
        }
    }
}

impl Host {
    /// Submits as many commands of a load as are in flight with it, and waits for none of them.
    pub(crate) fn fill(&mut self, load: &Load) -> Result<()> {
        let mut accesses = Accesses::new(load);
        for at in 0..load.depth as u64 {
            self.driver.submit(1, accesses.next(), DATA + at * load.bytes, load.bytes)?;
        }
        Ok(())
    }
}

/// The accesses of a load, without an end.
struct Accesses<'a> {
    load: &'a Load,
    random: fastrand::Rng,
    next: u64,
}

impl Accesses<'_> {
    fn new(load: &Load) -> Accesses<'_> {
        Accesses { load, random: fastrand::Rng::new(), next: 0 }
    }

    fn next(&mut self) -> Command {
        let Load { is_write, is_random, bytes, .. } = *self.load;
        let places = IMAGE / bytes;
        let place = if is_random { self.random.u64(..places) } else { self.next % places };
        self.next += 1;
        let (start, blocks) = (place * bytes / 512, (bytes / 512) as u32);
        if is_write { Command::write(start, blocks) } else { Command::read(start, blocks) }
    }
}

fn local(device: WorkingDevice, memory: DmaRegion) -> Result<Local> {
    let mut device = Local::new(device);
    device.map_dma(0, RIGHTS, memory)?;
    Ok(device)
}

fn memory() -> Result<Memory> {
    let file = File::from(memfd_create(c"host", MemfdFlags::CLOEXEC)?);
    file.set_len(MEMORY)?;
    let memory = Memory::of_file(FileOffset::new(file, 0), MEMORY, true)?;
    // A host's memory has its pages.
    let zeros = vec![0; MEMORY as usize];
    memory.access(0, zeros.len(), |bytes| bytes.copy_from(&zeros))?;
    Ok(memory)
}
