//! A driver's accesses to memory that the core makes for it.

use super::Context;
use crate::bus::dma::{DmaAccess, DmaFault};

/// A driver's accesses to memory that the core makes for it, one at a time.
///
/// An access to memory that is mapped without a descriptor waits for its owner, the client of a vfio-user server. A
/// driver that makes it by itself ([`DmaSpace::read`](crate::dma::DmaSpace::read)) keeps every request waiting
/// meanwhile. A client such as QEMU answers nothing while its own request waits, and both time out. The core makes the
/// access while requests are served.
///
/// ```
/// use std::time::Duration;
/// use whimbrel_device::dma::{DmaAccess, DmaFault};
/// use whimbrel_device::{ArcError, AsyncDma, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Migration};
/// use whimbrel_device::{FileOffset, MigrationFlags, Next, Region, RegionInfoFlags, State};
/// use whimbrel_uapi::type1::DmaMapFlags;
///
/// /// A card that writes a byte of its register to the address in the byte.
/// #[derive(Default)]
/// struct Stamp {
///     byte: u8,
///     /// The byte is not written yet. An access in flight changes nothing of that: it may not be taken back.
///     is_due: bool,
///     /// Changes with each write of the register. No part of the device's state.
///     writes: u64,
///     /// What is left of the state to save, or has arrived of one to load.
///     data: Vec<u8>,
/// }
///
/// impl Driver for Stamp {
///     fn info(&self) -> Info {
///         Info::new(DeviceInfoFlags::RESET).num_regions(1)
///     }
///     fn region(&self, _: u32) -> Result<Region, Errno> {
///         Ok(Region::new(RegionInfoFlags::WRITE, 1))
///     }
///     fn write_region(&mut self, _: &Context, _: u32, _: u64, data: &[u8]) -> Result<usize, Errno> {
///         (self.byte, self.is_due) = (data[0], true);
///         self.writes += 1;
///         Ok(data.len())
///     }
///     /// With the access, if there is one: it is not taken back.
///     fn reset(&mut self, _: &Context) -> Result<(), Errno> {
///         (self.byte, self.is_due) = (0, false);
///         Ok(())
///     }
///     /// The next user's memory is not this one's, also if the reset before has failed.
///     fn close_device(&mut self, _: &Context) {
///         self.is_due = false;
///     }
///     fn migration(&mut self) -> Option<&mut dyn Migration> {
///         Some(self)
///     }
///     fn async_dma(&mut self) -> Option<&mut dyn AsyncDma> {
///         Some(self)
///     }
/// }
///
/// impl AsyncDma for Stamp {
///     fn next_access(&mut self, _: &Context) -> Option<DmaAccess> {
///         let access = DmaAccess::write(self.byte.into(), vec![self.byte]);
///         self.is_due.then_some(access.tag(self.writes))
///     }
///     fn access_done(&mut self, _: &Context, access: DmaAccess, _: Result<(), DmaFault>) {
///         // The register may have been written meanwhile.
///         self.is_due &= access.tag != self.writes;
///     }
/// }
///
/// /// An access that was begun and is not taken back is begun again where the device runs next.
/// impl Migration for Stamp {
///     fn flags(&self) -> MigrationFlags {
///         MigrationFlags::STOP_COPY
///     }
///     fn arc(&mut self, _: &Context, from: State, to: State) -> Result<(), ArcError> {
///         if from == State::Resuming {
///             let [byte, is_due @ 0..=1] = self.data[..] else { return Err(Errno::EINVAL.into()) };
///             (self.byte, self.is_due) = (byte, is_due == 1);
///         }
///         self.data.clear();
///         if to == State::StopCopy {
///             self.data.extend([self.byte, self.is_due.into()]);
///         }
///         Ok(())
///     }
///     fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
///         Ok(2)
///     }
///     fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
///         let count = buffer.len().min(self.data.len());
///         buffer[..count].copy_from_slice(&self.data[..count]);
///         self.data.drain(..count);
///         Ok(count)
///     }
///     fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
///         let count = data.len().min(2 - self.data.len());
///         self.data.extend(&data[..count]);
///         if count == 0 { Err(Errno::EINVAL) } else { Ok(count) }
///     }
/// }
///
/// # let memory = std::fs::File::from(rustix::fs::memfd_create(c"doc", rustix::fs::MemfdFlags::empty())?);
/// # memory.set_len(0x1000)?;
/// let [source, destination] = ["source", "destination"].map(|name| DeviceFile::new(name, |_| Stamp::default()));
/// source.write_region(0, 0, &[7])?;
/// let saved = source.set_mig_state(State::StopCopy)?.expect("a new session");
/// let loaded = destination.set_mig_state(State::Resuming)?.expect("a new session");
/// let mut state = [0; 2];
/// assert_eq!(saved.read(&mut state)?, loaded.write(&state)?);
/// destination.set_mig_state(State::Running)?;
///
/// let dma = destination.bus().dma();
/// dma.map(0, 0x1000, DmaMapFlags::READ | DmaMapFlags::WRITE, FileOffset::new(memory, 0))?;
/// while destination.advance(Duration::ZERO) == Next::Now {}
/// let mut byte = [0];
/// dma.read(7, &mut byte)?;
/// assert_eq!(byte, [7]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait AsyncDma {
    /// Returns the next access, in the address space without a PASID; `None` if the device needs none now.
    ///
    /// Called after [`Driver::advance`](crate::Driver::advance), and so only in a state where the device runs, and only
    /// while no access is in flight. A driver that starts no DMA in RUNNING_P2P and PRE_COPY_P2P returns `None` there.
    fn next_access(&mut self, context: &Context) -> Option<DmaAccess>;

    /// Takes the access back, with its result. [`Driver::advance`](crate::Driver::advance) is called next.
    ///
    /// Meanwhile the device may have served requests that make the access pointless: tell it by
    /// [`DmaAccess::tag`]. Before a reset, and before an arc to any state but RUNNING and PRE_COPY, the core waits for
    /// the access. It is not taken back if it does not end in time, nor after the device is closed: a driver that is
    /// reset, is closed, or arrives in such a state, forgets it. If the device still needs it when it runs,
    /// [`AsyncDma::next_access`] returns it again; of a device that is closed the next user must not get it.
    fn access_done(&mut self, context: &Context, access: DmaAccess, result: Result<(), DmaFault>);
}
