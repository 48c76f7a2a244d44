//! The vendor driver's half: the effect and the answer of each access to a migration region.

mod dirty;
mod saving;
mod transition;

use whimbrel_uapi::region_draft::StateDraft;
use whimbrel_uapi::region_v1::StateV1;

use self::dirty::DirtyQuery;
use self::saving::Saving;
use super::layout::{Field, Place};
use super::{Backend, Layout, Phase, SectionMemory, Version, draft, v1};
use crate::{Errno, MigrationFlags, State};

/// The driver side of a migration region.
///
/// It answers the trapped accesses, and `M` holds the memory that the user accesses through a mapping. Each
/// access is one call, which takes the device behind the region; an error is the errno of the read or write
/// system call.
///
/// # Answers
///
/// | access | in | answer |
/// |---|---|---|
/// | not a whole field at its place | | EINVAL |
/// | `device_state`, read | | the phase, or ERROR (EIO in the draft); reserved bits are 0 |
/// | `device_state`, written | | see below; reserved bits are ignored |
/// | `reserved` | | 0; writes are ignored |
/// | `pending_bytes`, read | SAVING | the buffer shown counts as read; 0 if no data can be had now |
/// | | else | 0 |
/// | `data_offset`, read | SAVING | puts the next buffer in place, unless one is shown |
/// | | else | where data is to be written; never 0 |
/// | `data_size`, read | SAVING | bytes of the buffer shown, 0 if none is |
/// | | else | 0 |
/// | `data_size`, written | RESUMING | hands over one transaction; EINVAL if it is too large |
/// | data section, read | SAVING | bytes of what is shown; EINVAL outside of it |
/// | data section, written | RESUMING | staged until `data_size` is written |
/// | any other write, or read of a write-only field | | EINVAL |
/// | all but `device_state` and `reserved` | ERROR | EIO |
///
/// The draft describes its four fields at `copied_pfns`; they can be used while SAVING is set.
///
/// # Writes of the state
///
/// An invalid or unreachable state is answered with EINVAL. If the device fails, the answer is its errno; the
/// device is brought back, and the user reads the previous state. If the data session has ended by then, the
/// user still reads the previous state, but reads and writes of data answer EIO until the user leaves SAVING
/// or RESUMING, so that nobody takes the beginning of a second stream for the rest of the first. If the
/// device cannot be brought back, the state is ERROR until [`Vendor::reset`].
///
/// ```
/// use whimbrel_protocol::arc::ArcError;
/// use whimbrel_protocol::region::{Backend, Layout, Vendor, Version};
/// use whimbrel_protocol::{Errno, MigrationFlags, State};
///
/// /// A device whose state is a text.
/// struct Text(&'static [u8]);
///
/// impl Backend for Text {
///     fn arc(&mut self, _from: State, _to: State) -> Result<(), ArcError> {
///         Ok(())
///     }
///     fn save(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
///         let count = buffer.len().min(self.0.len());
///         let (now, later) = self.0.split_at(count);
///         buffer[..count].copy_from_slice(now);
///         self.0 = later;
///         Ok(count)
///     }
///     fn load(&mut self, _transaction: &[u8]) -> Result<(), Errno> {
///         Err(Errno::EINVAL)
///     }
///     fn remaining(&mut self) -> Result<u64, Errno> {
///         Ok(self.0.len() as u64)
///     }
/// }
///
/// let mut device = Text(b"state");
/// let layout = Layout::trapped(Version::V1, 4)?;
/// let memory = vec![0; layout.size() as usize];
/// let mut vendor = Vendor::new(layout, MigrationFlags::STOP_COPY, memory)?;
///
/// vendor.write(&mut device, 0, &2u32.to_ne_bytes())?; // SAVING: stop-and-copy
/// let mut field = |vendor: &mut Vendor, offset| {
///     let mut value = [0; 8];
///     vendor.read(&mut device, offset, &mut value).map(|()| u64::from_ne_bytes(value))
/// };
/// assert_eq!(field(&mut vendor, 8)?, 5); // pending_bytes
/// assert_eq!(field(&mut vendor, 16)?, 32); // data_offset
/// assert_eq!(field(&mut vendor, 24)?, 4); // data_size
/// let mut data = [0; 4];
/// vendor.read(&mut device, 32, &mut data)?;
/// assert_eq!(&data, b"stat");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Vendor<M = Vec<u8>> {
    layout: Layout,
    flags: MigrationFlags,
    /// The phase; `None` if the device is broken until reset.
    phase: Option<Phase>,
    /// State of the device behind the region, which differs from the phase's state only after a failure.
    behind: State,
    /// The session of this phase has ended; this errno answers data accesses.
    lost: Option<Errno>,
    /// A transaction was not accepted: the device's state is incomplete.
    load_failed: Option<Errno>,
    saving: Saving,
    dirty: DirtyQuery,
    /// Buffer for one transaction on its way to the device.
    buffer: Vec<u8>,
    memory: M,
}

impl<M: SectionMemory> Vendor<M> {
    /// Returns the region of a device in RUNNING that has these features. `memory` holds the region, at least `layout.size()` bytes;
    /// the bytes of the structure at its start are unused.
    ///
    /// EINVAL for a device without STOP_COPY, or if the memory is too small.
    pub fn new(layout: Layout, flags: MigrationFlags, memory: M) -> Result<Vendor<M>, Errno> {
        if !flags.contains(MigrationFlags::STOP_COPY) || memory.size() < layout.size() {
            return Err(Errno::EINVAL);
        }
        Ok(Vendor {
            flags,
            phase: Some(Phase::Running),
            behind: State::Running,
            lost: None,
            load_failed: None,
            saving: Saving::new(layout.capacity()),
            dirty: DirtyQuery::new(layout.bitmap().1),
            buffer: Vec::new(),
            layout,
            memory,
        })
    }

    /// Returns the layout of the region.
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the device's phase; `None` while it is broken, until a reset.
    pub const fn phase(&self) -> Option<Phase> {
        self.phase
    }

    /// Returns the v2 state of the device behind the region.
    pub const fn state_behind(&self) -> State {
        self.behind
    }

    /// Returns the memory of the region, which a user may have mapped.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Returns the memory of the region, to write to as a user does through a mapping.
    pub const fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }

    /// Takes in that the device has been reset (VFIO_DEVICE_RESET): it is running, without any earlier state.
    /// If SAVING was set, the caller ends the device's dirty log.
    pub fn reset(&mut self) {
        self.phase = Some(Phase::Running);
        self.behind = State::Running;
        self.lost = None;
        self.load_failed = None;
        self.saving.clear();
        self.dirty.clear();
    }

    /// Answers a trapped read of `data.len()` bytes from `offset` of the region. Fills all of `data`, or
    /// fails.
    pub fn read(&mut self, device: &mut dyn Backend, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match self.layout.place(offset, data.len()).ok_or(Errno::EINVAL)? {
            Place::Section => self.read_section(offset, data),
            Place::Field(Field::DeviceState) => {
                data.copy_from_slice(&self.device_state()?.to_ne_bytes());
                Ok(())
            }
            Place::Field(Field::Reserved) => {
                data.fill(0);
                Ok(())
            }
            Place::Field(field) => {
                let value = self.read_field(device, field)?;
                data.copy_from_slice(&value.to_ne_bytes());
                Ok(())
            }
        }
    }

    /// Answers a trapped write of `data` at `offset` of the region. Takes all of `data`, or fails.
    pub fn write(&mut self, device: &mut dyn Backend, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let field = match self.layout.place(offset, data.len()).ok_or(Errno::EINVAL)? {
            Place::Section => return self.write_section(offset, data),
            Place::Field(field) => field,
        };
        if field == Field::Reserved {
            return Ok(());
        }
        if field == Field::DeviceState {
            let register = <[u8; 4]>::try_from(data).map_err(|_| Errno::EINVAL)?;
            return self.write_state(device, u32::from_ne_bytes(register));
        }
        let value = u64::from_ne_bytes(<[u8; 8]>::try_from(data).map_err(|_| Errno::EINVAL)?);
        let phase = self.phase.ok_or(Errno::EIO)?;
        match field {
            Field::DataSize if phase == Phase::Resuming => self.take_transaction(device, value),
            Field::StartPfn | Field::PageSize | Field::TotalPfns if phase.is_saving() => {
                self.dirty.ask(field, value);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Returns the register as a read shows it. Reserved bits are 0.
    fn device_state(&self) -> Result<u32, Errno> {
        match (self.layout.version(), self.phase) {
            (Version::V1, Some(phase)) => Ok(v1::DeviceState::Valid(phase).to_register(0)),
            (Version::V1, None) => Ok(v1::DeviceState::Error.to_register(0)),
            (Version::Draft, Some(phase)) => Ok(draft::DeviceState::Valid(phase).to_register(0)),
            (Version::Draft, None) => Err(Errno::EIO),
        }
    }

    fn read_field(&mut self, device: &mut dyn Backend, field: Field) -> Result<u64, Errno> {
        let phase = self.phase.ok_or(Errno::EIO)?;
        let saving = phase.is_saving();
        if saving || phase == Phase::Resuming {
            // The errors that end the user's loop.
            self.lost.or(self.load_failed).map_or(Ok(()), Err)?;
        }
        match field {
            Field::PendingBytes if saving => {
                self.dirty.leave_bitmap();
                self.saving.pending_bytes(device, self.behind)
            }
            Field::DataOffset if saving => {
                if self.dirty.show_bitmap() {
                    return Ok(self.layout.bitmap().0);
                }
                let data_offset = self.layout.data_offset();
                self.saving.show(device, self.behind, data_offset, &mut self.memory)?;
                Ok(data_offset)
            }
            Field::DataOffset => Ok(self.layout.data_offset()),
            Field::DataSize if saving => Ok(self.saving.shown()),
            Field::PendingBytes | Field::DataSize => Ok(0),
            Field::CopiedPfns if saving => {
                self.dirty.copied_pfns(device, self.layout.bitmap().0, &mut self.memory)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn read_section(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        if !self.phase.ok_or(Errno::EIO)?.is_saving() {
            return Err(Errno::EINVAL);
        }
        self.lost.map_or(Ok(()), Err)?;
        let within = |start: u64, bytes: u64| {
            offset >= start && (data.len() as u64) <= bytes && offset - start <= bytes - data.len() as u64
        };
        if within(self.layout.bitmap().0, self.dirty.bitmap_bytes()) {
            self.dirty.show_bitmap();
        } else if !within(self.layout.data_offset(), self.saving.shown()) {
            return Err(Errno::EINVAL);
        }
        self.memory.read(offset, data)
    }

    fn write_section(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if self.phase.ok_or(Errno::EIO)? != Phase::Resuming {
            return Err(Errno::EINVAL);
        }
        self.lost.or(self.load_failed).map_or(Ok(()), Err)?;
        // Everything up to the end of the region is data.
        if offset < self.layout.data_offset() {
            return Err(Errno::EINVAL);
        }
        self.memory.write(offset, data)
    }

    /// Takes one transaction of `size` bytes from the section.
    fn take_transaction(&mut self, device: &mut dyn Backend, size: u64) -> Result<(), Errno> {
        self.lost.or(self.load_failed).map_or(Ok(()), Err)?;
        let size = usize::try_from(size).ok().filter(|size| *size <= self.layout.capacity());
        let size = size.ok_or(Errno::EINVAL)?;
        if size == 0 {
            return Ok(());
        }
        // A mapped section may change during a read: the device sees one copy.
        self.buffer.resize(size, 0);
        let taken = self
            .memory
            .read(self.layout.data_offset(), &mut self.buffer)
            .and_then(|()| device.load(&self.buffer));
        // The device may hold a part of it: no other transaction can complete the state.
        self.load_failed = taken.err();
        taken
    }
}

// The two registers agree on the five phases, which is why one machine serves both.
const _: () = {
    assert!(StateV1::all().bits() == StateDraft::all().bits());
    assert!(StateV1::RUNNING.bits() == StateDraft::RUNNING.bits());
    assert!(StateV1::SAVING.bits() == StateDraft::SAVING.bits());
};
