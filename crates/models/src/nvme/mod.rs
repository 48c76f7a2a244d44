//! An NVM Express controller with one namespace, whose blocks are in a file or a block device, the image.
//!
//! It follows the NVM Express base specification 1.4, so that the drivers of all systems use it: a PCI device with the
//! registers in BAR 0, up to 64 pairs of I/O queues, MSI-X or INTx, and pages of 4 KiB.
//!
//! | | supported |
//! |---|---|
//! | admin commands | create and delete queues, identify, get log page, get and set features, abort, asynchronous event request, keep alive |
//! | I/O commands | read and write (FUA), flush, write zeroes (deallocate), dataset management (deallocate) |
//! | data | PRPs and PRP lists, up to 256 KiB a command; no SGLs, metadata or fused commands |
//! | resets | of the controller (CC.EN), by shutdown (CC.SHN), of the function (VFIO_DEVICE_RESET) |
//!
//! An abort answers "not aborted". Nothing formats the namespace. A command that is invalid completes with the status that
//! the specification has for it. Every bound holds for a hostile guest: at most 144 commands are in flight, with 32 MiB of
//! buffers, and commands are fetched only if their completion queue has room.
//!
//! No doorbell is one in the sense of [`Driver::doorbells`]: the host writes an index, and an eventfd carries none. An
//! ioeventfd of VFIO matches one value. One of KVM may match any, but does not tell which; ioregionfd and libvfio-user's shadow
//! memory, which would, are in no released kernel.
//!
//! # The image
//!
//! Reads of blocks in the page cache, and writes where the file system can take them at once, go straight between the image
//! and memory that this process has mapped. All other operations go through a buffer, and are executed by io_uring, or
//! by threads where this process cannot use it, as in a sandbox ([`EngineKind`]): never by the thread that serves requests.
//! Writes go to the page cache, and the namespace has a volatile write cache: what was written before a flush command is on the disk when it completes.
//! With FUA, or with the write cache disabled by the host, each write is.
//!
//! **An image has one owner.** A device locks it (flock) when it enters RUNNING or RUNNING_P2P, and unlocks it when it
//! enters STOP, after its operations have ended and were flushed. While another device has the lock, the arc fails with EBUSY
//! and can be tried again. A device that starts in RUNNING takes the lock with the first command that needs the image:
//! until then it may wait for an incoming state while the other device runs. A command that cannot get the lock
//! completes with "namespace not ready". A reset of the function unlocks the image. Where locks do not reach across hosts,
//! as on a block device, the operator must fence the other host.
//!
//! # Migration
//!
//! The state has the registers, queues, features, events, logs, completions that wait for room or for memory, and the
//! commands in flight. In RUNNING_P2P and PRE_COPY_P2P the controller starts no DMA, since it cannot tell a peer device from
//! memory. On the arc to STOP it waits for its operations on the image ([`NvmeConfig::drain_timeout`]) and flushes it; after
//! that time the arc fails with EBUSY and the device continues. A write whose operation has ended travels as a completion
//! and is not written again. All other commands begin again at the destination: nothing of them was completed, so that
//! the host may not have touched their data, and a read or write that is repeated has the same result.
//!
//! In PRE_COPY the image is flushed while the device runs, so that little is left for the stop. Interrupts that were
//! pending are sent again at the destination: each queue with entries that the host has not taken out signals its
//! vector. The configuration space and the MSI-X table are the user's, as with vfio-pci.

mod admin;
mod command;
mod config;
mod controller;
mod direct;
mod flight;
#[cfg(feature = "guest")]
pub mod guest;
mod image;
mod io;
mod limits;
mod migration;
mod outcome;
mod progress;
mod prp;
mod queue;
mod registers;
mod stream;
mod transfer;
mod work;

use std::time::{Duration, Instant};

use whimbrel_device::dma::DmaAccess;
use whimbrel_device::pci::function::{Access, Function};
use whimbrel_device::{
    AsyncDma, Bus, Context, DmaLogging, Driver, Errno, Info, Irq, Migration, Next, Region, State,
};
use whimbrel_uapi::pci::VFIO_PCI_BAR0_REGION_INDEX;

pub use self::config::{NvmeConfig, NvmeError, NvmeImage};
use self::controller::{Controller, Effect};
use self::direct::Direct;
use self::flight::Flight;
pub use self::image::{EngineKind, ImageError};
use self::image::{Image, Operation};
use self::migration::Session;
use self::work::Step;

/// Time that a reset waits for operations on the image, before it keeps the image locked until they have ended.
const RESET_TIMEOUT: Duration = Duration::from_secs(1);
/// Time after which the worker looks for operations that have ended, should it have missed the call of their thread.
const MISSED_WAKE: Duration = Duration::from_millis(5);

/// An NVM Express controller.
#[derive(Debug)]
pub struct Nvme {
    config: NvmeConfig,
    function: Function,
    controller: Controller,
    flight: Flight,
    image: Image,
    direct: Direct,
    session: Session,
    step: Step,
    /// The access that waits for the memory's owner, until the core takes it.
    waits_for: Option<DmaAccess>,
    /// Changes when the controller forgets the access in flight.
    attempt: u64,
    /// Memory for entries of the queues.
    entry: Vec<u8>,
    /// The time of the current call.
    now: Duration,
    /// The queue whose command was fetched last.
    last_fetched: u16,
    /// The vectors to signal, one bit each.
    to_signal: u128,
    /// The flush that ends a shutdown.
    shutdown_flush: Option<u64>,
    /// The image was changed since it was last flushed by the device itself.
    is_unflushed: bool,
    /// The image is to be unlocked once its operations have ended.
    is_leaving_image: bool,
    /// Interrupts may have been lost in a migration.
    signal_again: bool,
}

impl Nvme {
    /// Returns a controller in its power-on state, with an engine that accesses the image.
    pub fn new(config: NvmeConfig, image: NvmeImage, bus: Bus) -> Result<Nvme, NvmeError> {
        let notify = {
            let bus = bus.clone();
            move || bus.notify_work()
        };
        let image = Image::new(image.file, config.engine, notify)?;
        Ok(Nvme::with_image(config, image, bus))
    }

    fn with_image(config: NvmeConfig, image: Image, bus: Bus) -> Nvme {
        Nvme {
            function: Function::new(config::pci_config(config.queues), bus).permissive(),
            controller: Controller::new(config.limits(image.blocks())),
            flight: Flight::default(),
            image,
            direct: Direct::default(),
            session: Session::None,
            step: Step::Begin,
            waits_for: None,
            attempt: 0,
            entry: Vec::new(),
            now: Duration::ZERO,
            last_fetched: 0,
            to_signal: 0,
            shutdown_flush: None,
            is_unflushed: false,
            is_leaving_image: false,
            signal_again: false,
            config,
        }
    }

    /// Brings the controller to its power-on state. It keeps its identity, which may be that of a loaded state.
    fn start_over(&mut self) {
        self.drop_commands();
        self.controller = Controller::new(self.controller.limits.clone());
        self.signal_again = false;
        self.function.set_line(false);
    }

    /// Locks the image, unless it is locked. EBUSY if it belongs to another device.
    fn own_image(&mut self) -> Result<(), Errno> {
        self.is_leaving_image = false;
        self.image.own()
    }

    /// Unlocks the image, as soon as its operations have ended.
    fn leave_image(&mut self) {
        let deadline = Instant::now() + RESET_TIMEOUT;
        loop {
            self.collect();
            if self.image.disown() {
                self.is_leaving_image = false;
                return;
            }
            if !self.image.wait(deadline) {
                tracing::warn!("operations on the image have not ended: it stays locked until then");
                self.is_leaving_image = true;
                return;
            }
        }
    }

    fn write_registers(&mut self, context: &Context, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if !context.state().is_running() {
            return Err(Errno::EBUSY);
        }
        self.now = context.now();
        for write in registers::writes(offset, data) {
            match self.controller.write(write, self.now) {
                Effect::None => {}
                Effect::Reset => self.drop_commands(),
                Effect::Flush => self.flush_for_shutdown(),
            }
        }
        self.function.set_line(self.controller.asserts_line());
        Ok(())
    }

    fn flush_for_shutdown(&mut self) {
        if self.image.is_owned() {
            self.shutdown_flush = Some(self.image.submit(Operation::Flush));
        } else {
            self.controller.shut_down();
        }
    }

    /// Fails the controller if the host has sent no command for too long.
    fn check_keep_alive(&mut self) {
        if self.controller.keep_alive_deadline().is_some_and(|deadline| deadline <= self.now) {
            tracing::warn!(
                "the host's keep-alive timeout has expired: the controller has failed until its next reset"
            );
            self.controller.fail();
            self.drop_commands();
        }
    }
}

/// Returns whether the controller starts DMA in this state.
fn starts_dma(state: State) -> bool {
    matches!(state, State::Running | State::PreCopy)
}

impl Driver for Nvme {
    /// Ends the device's DMA, which only a failed reset has left on: the memory of the next user is not that of this one.
    fn close_device(&mut self, _: &Context) {
        self.start_over();
        self.leave_image();
    }

    fn info(&self) -> Info {
        self.function.info()
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        Ok(self.function.region(index))
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        Ok(self.function.irq(index))
    }

    fn read_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        if let Access::Served(_) = self.function.read_region(index, offset, data)? {
            return Ok(data.len());
        }
        if context.state() == State::Resuming {
            return Err(Errno::EBUSY);
        }
        self.controller.registers.read(offset, data);
        Ok(data.len())
    }

    fn write_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        match (self.function.write_region(index, offset, data)?, index) {
            (Access::Served(_), _) => {}
            (_, VFIO_PCI_BAR0_REGION_INDEX) => self.write_registers(context, offset, data)?,
            _ => return Err(Errno::EINVAL),
        }
        Ok(data.len())
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        self.session = Session::None;
        self.start_over();
        self.function.reset();
        self.leave_image();
        Ok(())
    }

    fn can_reset_in_precopy(&self) -> bool {
        true
    }

    /// Nothing that was read in pre-copy can change.
    fn reset_in_precopy(&mut self, _: &Context) -> Result<(), Errno> {
        self.start_over();
        self.function.reset_in_precopy();
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(&mut self.function)
    }

    fn async_dma(&mut self) -> Option<&mut dyn AsyncDma> {
        Some(self)
    }

    fn advance(&mut self, context: &Context) -> Next {
        self.now = context.now();
        self.collect();
        if self.is_leaving_image && self.image.disown() {
            self.is_leaving_image = false;
        }
        if std::mem::take(&mut self.signal_again) {
            self.signal_queues();
        }
        self.check_keep_alive();
        // Operations begin after the work that has asked for them, and some end at once.
        if starts_dma(context.state()) && self.work() | self.collect() {
            return Next::Now;
        }
        let missed = (!self.image.is_idle()).then(|| self.now + MISSED_WAKE);
        self.controller.keep_alive_deadline().into_iter().chain(missed).min().map_or(Next::Idle, Next::At)
    }

    fn has_work(&self) -> bool {
        self.signal_again || !self.image.is_idle() || self.can_work()
    }
}
