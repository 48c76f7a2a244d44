//! The state of a client and its device, as it is sent from one process to another. Descriptors are numbers in a
//! [`Pool`], which is sent before the records that use them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use whimbrel_device::{InUse, InterruptsInUse, IoeventfdWrite, WriteWidth};

use crate::capabilities::Capabilities;
use crate::descriptor_kind::DescriptorKind;
use crate::descriptors::DescriptorError;
use crate::eventfd::only_eventfd;

/// Maximum mappings in one message.
pub(super) const MAX_MAPPINGS: usize = 4096;

/// The number of a descriptor.
pub(super) type Number = u32;

/// The interrupts in use.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct InUseRecord {
    active: ActiveRecord,
    /// By index.
    singles: Vec<(u32, Number)>,
    /// The low power state that the user has entered.
    pub(super) low_power: Option<LowPowerRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ActiveRecord {
    None,
    Line { trigger: Option<Number>, masked: bool, unmask: Option<Number> },
    Messages { index: u32, allocated: u32, eventfds: Vec<(u32, Number)> },
}

/// The low power state that a user has entered.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LowPowerRecord {
    pub(super) wakeup: Option<Number>,
}

/// An ioeventfd in use.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct IoeventfdRecord {
    region: u32,
    offset: u64,
    /// Bytes.
    width: u8,
    data: u64,
    pub(super) eventfd: Number,
}

/// A client.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ClientRecord {
    /// The command socket.
    pub(super) commands: Number,
    /// The socket of the server's requests, if it is a separate one.
    pub(super) twin: Option<Number>,
    /// The agreed version, if the client has sent one.
    pub(super) agreed: Option<Capabilities>,
    /// The id of the server's next request.
    pub(super) next_id: u16,
}

/// A mapping.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MappingRecord {
    pub(super) iova: u64,
    pub(super) size: u64,
    pub(super) rights: u32,
    /// The file, and the offset in it; `None` for memory that the client is asked for.
    pub(super) file: Option<(Number, u64)>,
    /// True if it is read and written, and not mapped.
    #[serde(default)]
    pub(super) file_io: bool,
}

/// A dirty log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LogRecord {
    pub(super) page_size: u64,
    pub(super) ranges: Vec<(u64, u64)>,
    pub(super) is_everything: bool,
    /// True if the device itself keeps it. A reset may have ended it, which the client knows.
    pub(super) runs: bool,
}

/// Dirty pages.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct DirtyRecord {
    /// Address of the first bit.
    pub(super) iova: u64,
    /// Bytes per bit.
    pub(super) page_size: u64,
}

/// Data that was read from a socket and not processed; the bytes are the data of the message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UnreadRecord {
    /// True for the twin socket, false for the command socket.
    pub(super) twin: bool,
    pub(super) descriptors: Vec<BatchRecord>,
}

/// Descriptors received with some of these bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BatchRecord {
    /// Position of the last of the bytes, counted from the first.
    pub(super) last: u64,
    pub(super) numbers: Vec<Number>,
    pub(super) problem: Option<ProblemRecord>,
}

/// A command that was read and not executed; its payload is the data of the message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WaitingRecord {
    pub(super) id: u16,
    pub(super) command: u16,
    pub(super) no_reply: bool,
    pub(super) numbers: Vec<Number>,
    pub(super) problem: Option<ProblemRecord>,
}

/// The reason why descriptors could not be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ProblemRecord {
    TooMany,
    Lost,
    Kind,
}

impl From<DescriptorError> for ProblemRecord {
    fn from(error: DescriptorError) -> ProblemRecord {
        match error {
            DescriptorError::TooMany => ProblemRecord::TooMany,
            DescriptorError::Lost => ProblemRecord::Lost,
            DescriptorError::Kind => ProblemRecord::Kind,
        }
    }
}

impl From<ProblemRecord> for DescriptorError {
    fn from(record: ProblemRecord) -> DescriptorError {
        match record {
            ProblemRecord::TooMany => DescriptorError::TooMany,
            ProblemRecord::Lost => DescriptorError::Lost,
            ProblemRecord::Kind => DescriptorError::Kind,
        }
    }
}

/// A number without a descriptor, or whose descriptor was already taken or has another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("descriptor {0} is missing or has the wrong type")]
pub(super) struct NoDescriptor(pub(super) Number);

/// The received descriptors, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Pool(Vec<Slot>);

#[derive(Debug)]
enum Slot {
    Whole(OwnedFd),
    /// A file that is mapped, possibly many times.
    File(Arc<File>),
    Taken,
}

impl Pool {
    pub(super) fn add(&mut self, descriptors: Vec<OwnedFd>) {
        self.0.extend(descriptors.into_iter().map(Slot::Whole));
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn slot(&mut self, number: Number) -> Result<&mut Slot, NoDescriptor> {
        usize::try_from(number).ok().and_then(|at| self.0.get_mut(at)).ok_or(NoDescriptor(number))
    }

    /// Takes a descriptor, which is possible once.
    pub(super) fn take(&mut self, number: Number) -> Result<OwnedFd, NoDescriptor> {
        match std::mem::replace(self.slot(number)?, Slot::Taken) {
            Slot::Whole(fd) => Ok(fd),
            other => {
                *self.slot(number)? = other;
                Err(NoDescriptor(number))
            }
        }
    }

    /// Takes several descriptors.
    pub(super) fn take_all(&mut self, numbers: Vec<Number>) -> Result<Vec<OwnedFd>, NoDescriptor> {
        numbers.into_iter().map(|number| self.take(number)).collect()
    }

    pub(super) fn eventfd(&mut self, number: Number) -> Result<OwnedFd, NoDescriptor> {
        only_eventfd(self.take(number)?).map_err(|_| NoDescriptor(number))
    }

    /// Returns whether a descriptor is a file in memory.
    pub(super) fn is_memory(&mut self, number: Number) -> bool {
        match self.slot(number) {
            Ok(Slot::Whole(fd)) => DescriptorKind::of(fd) == DescriptorKind::Memory,
            Ok(Slot::File(file)) => DescriptorKind::of(&**file) == DescriptorKind::Memory,
            Ok(Slot::Taken) | Err(_) => false,
        }
    }

    /// Returns a file, for one mapping of it.
    pub(super) fn file(&mut self, number: Number) -> Result<Arc<File>, NoDescriptor> {
        let slot = self.slot(number)?;
        let file = match std::mem::replace(slot, Slot::Taken) {
            Slot::Whole(fd) => Arc::new(File::from(fd)),
            Slot::File(file) => file,
            Slot::Taken => return Err(NoDescriptor(number)),
        };
        *slot = Slot::File(file.clone());
        Ok(file)
    }
}

impl InUseRecord {
    /// Passes each eventfd to `give`, which numbers it.
    pub(super) fn of(
        in_use: InterruptsInUse,
        low_power: Option<LowPowerRecord>,
        mut give: impl FnMut(OwnedFd) -> Number,
    ) -> InUseRecord {
        let active = match in_use.active {
            InUse::None => ActiveRecord::None,
            InUse::Line { trigger, masked, unmask } => {
                ActiveRecord::Line { trigger: trigger.map(&mut give), masked, unmask: unmask.map(&mut give) }
            }
            InUse::Messages { index, allocated, eventfds } => {
                let eventfds = eventfds.into_iter().map(|(of, eventfd)| (of, give(eventfd))).collect();
                ActiveRecord::Messages { index, allocated, eventfds }
            }
        };
        let singles = in_use.singles.into_iter().map(|(index, eventfd)| (index, give(eventfd))).collect();
        InUseRecord { active, singles, low_power }
    }

    pub(super) fn take(self, pool: &mut Pool) -> Result<InterruptsInUse, NoDescriptor> {
        let mut all = |list: Vec<(u32, Number)>| {
            list.into_iter()
                .map(|(of, number)| Ok((of, pool.eventfd(number)?)))
                .collect::<Result<Vec<_>, _>>()
        };
        let singles = all(self.singles)?;
        let active = match self.active {
            ActiveRecord::None => InUse::None,
            ActiveRecord::Line { trigger, masked, unmask } => InUse::Line {
                trigger: trigger.map(|number| pool.eventfd(number)).transpose()?,
                masked,
                unmask: unmask.map(|number| pool.eventfd(number)).transpose()?,
            },
            ActiveRecord::Messages { index, allocated, eventfds } => {
                InUse::Messages { index, allocated, eventfds: all(eventfds)? }
            }
        };
        Ok(InterruptsInUse::new(active, singles))
    }
}

impl IoeventfdRecord {
    pub(super) fn of(write: IoeventfdWrite, eventfd: Number) -> IoeventfdRecord {
        let IoeventfdWrite { region, offset, width, data, .. } = write;
        IoeventfdRecord { region, offset, width: width.bytes() as u8, data, eventfd }
    }

    /// Returns `None` for an invalid width.
    pub(super) fn write(&self) -> Option<IoeventfdWrite> {
        let width = match self.width {
            1 => WriteWidth::One,
            2 => WriteWidth::Two,
            4 => WriteWidth::Four,
            8 => WriteWidth::Eight,
            _ => return None,
        };
        Some(IoeventfdWrite::new(self.region, self.offset, width, self.data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        File::open("/dev/null").expect("it exists").into()
    }

    #[test]
    fn a_descriptor_is_taken_once_and_a_file_as_often_as_it_is_mapped() {
        let mut pool = Pool::default();
        pool.add(vec![null(), null()]);
        pool.take(0).unwrap();
        assert_eq!(pool.take(0).unwrap_err(), NoDescriptor(0));
        assert_eq!(pool.file(0).unwrap_err(), NoDescriptor(0));
        let (first, second) = (pool.file(1).unwrap(), pool.file(1).unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(pool.take(1).unwrap_err(), NoDescriptor(1));
        assert_eq!(pool.take(2).unwrap_err(), NoDescriptor(2));
        assert_eq!(pool.file(u32::MAX).unwrap_err(), NoDescriptor(u32::MAX));
    }

    #[test]
    fn what_is_no_eventfd_is_not_taken_for_one() {
        let mut pool = Pool::default();
        pool.add(vec![null()]);
        assert_eq!(pool.eventfd(0).unwrap_err(), NoDescriptor(0));
    }
}
