//! The user half: the next access to a migration region, and the meaning of each answer.

mod drive;
mod error;
mod steps;
mod view;

pub use self::drive::{RegionAccess, drive, report_dirty};
pub use self::error::UserError;
pub use self::view::{View, ViewError, Way};

use self::steps::{Access, DirtyStep, LoadStep, SaveStep, StateStep, Step};
use super::{Phase, Version};
use crate::Errno;
use crate::dirty::PageBitmap;

/// The user side of a migration region.
///
/// A request ([`User::set_phase`], [`User::save`], ...) is carried out access by access:
/// [`User::next_access`] gives the access, and [`User::read_done`] or [`User::write_done`] takes the answer,
/// until the request ends with an [`Outcome`]. [`drive`] runs this loop for a caller that can block.
///
/// Every answer of the device is checked before use. A caller can abandon a request at any access by
/// beginning another. The next [`User::save`] then continues with a buffer that was opened and not read to
/// its end, because asking for `pending_bytes` would release it.
///
/// ```
/// use whimbrel_protocol::region::{Layout, Next, Outcome, Phase, User, Version, View};
///
/// let region = Layout::trapped(Version::V1, 4096)?.region();
/// let mut user = User::new(View::new(Version::V1, &region)?);
/// user.set_phase(Phase::PreCopy);
/// // Read, modify, write: the reserved bits are the device's.
/// assert!(matches!(user.next_access(), Next::Read { offset: 0, length: 4, .. }));
/// user.read_done(Ok(&0x8000_0001u32.to_ne_bytes()));
/// match user.next_access() {
///     Next::Write { offset: 0, data, .. } => assert_eq!(data, 0x8000_0003u32.to_ne_bytes()),
///     other => panic!("{other:?}"),
/// }
/// user.write_done(Ok(()));
/// assert_eq!(user.next_access(), Next::Finished(Ok(Outcome::Phase(Phase::PreCopy))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct User {
    view: View,
    rules: Rules,
    /// The last known phase of the device.
    phase: Option<Phase>,
    /// The last answer of `pending_bytes`.
    pending: u64,
    buffer: Buffer,
    /// The device did not accept a transaction.
    not_whole: bool,
    /// The access of the current step has been handed out.
    asked: bool,
    step: Step,
    /// The value of a field to write.
    value: [u8; 8],
}

/// The buffer of device data in the data section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buffer {
    /// No buffer, or one that was read to its end.
    Closed,
    /// Opened by the current request, after `pending_bytes` announced it.
    Announced,
    /// Opened by an earlier request, which was abandoned or failed.
    Left,
}

/// The owner's settings.
#[derive(Clone, Copy, Debug)]
struct Rules {
    most: u64,
    split: bool,
}

/// The next access, or the end of a request.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a caller must make every access")]
pub enum Next<'a> {
    /// Read `length` bytes from `offset` of the region, in one piece.
    Read {
        /// Bytes from the start of the region.
        offset: u64,
        /// Length in bytes; at most 8 for a trapped access.
        length: usize,
        /// The way to access the region.
        way: Way,
    },
    /// Write `data` at `offset` of the region, in one piece.
    Write {
        /// Bytes from the start of the region.
        offset: u64,
        /// The bytes to write.
        data: &'a [u8],
        /// The way to access the region.
        way: Way,
    },
    /// The request has ended.
    Finished(Result<Outcome, UserError>),
    /// No request is in progress.
    Idle,
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a caller must know how each request ends")]
pub enum Outcome {
    /// The device is in this phase.
    Phase(Phase),
    /// Number of bytes still to be saved; 0 means no more for now in pre-copy, and no more at all in
    /// stop-and-copy.
    Pending(u64),
    /// One transaction, to be loaded unchanged and in this order. `None` means no more for now in pre-copy,
    /// and no more at all in stop-and-copy.
    Saved(Option<Vec<u8>>),
    /// The device accepted the transaction.
    Loaded,
    /// Dirty pages.
    Dirty(DirtyAnswer),
}

/// The pages that a query of the draft's region asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the three registers of the draft")]
pub struct DirtyPages {
    /// The first page: its IOVA divided by the page size.
    pub start_pfn: u64,
    /// Bytes.
    pub page_size: u64,
    /// Number of pages.
    pub total_pfns: u64,
}

/// The answer of the draft's region to a query of dirty pages.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the draft is of the past and does not grow")]
pub enum DirtyAnswer {
    /// No page was written.
    None,
    /// All pages must be treated as written.
    All,
    /// A bitmap of the first pages, at least one. The next query asks about the rest.
    Bitmap(PageBitmap),
}

impl User {
    /// Default limit for the size of a transaction or bitmap: 1 GiB. [`User::with_limit`] changes it.
    pub const MAX_BYTES: u64 = 1 << 30;

    /// Returns a user of the region of a newly opened device.
    pub fn new(view: View) -> User {
        User {
            view,
            rules: Rules { most: User::MAX_BYTES, split: false },
            phase: None,
            pending: 0,
            buffer: Buffer::Closed,
            not_whole: false,
            asked: false,
            step: Step::Idle,
            value: [0; 8],
        }
    }

    /// Accepts transactions and bitmaps of at most `most` bytes.
    #[must_use]
    pub fn with_limit(mut self, most: u64) -> User {
        self.rules.most = most;
        self
    }

    /// Splits a transaction that does not fit the data section, as QEMU 7.2 does, instead of refusing it. The
    /// specification requires that a transaction keeps the size it had at the source, so use this only for
    /// devices that are known to accept it.
    #[must_use]
    pub fn with_splitting(mut self) -> User {
        self.rules.split = true;
        self
    }

    /// Turns the splitting of [`User::with_splitting`] on or off.
    pub const fn set_splitting(&mut self, split: bool) {
        self.rules.split = split;
    }

    /// Returns the region.
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// Returns the last known phase of the device.
    pub const fn phase(&self) -> Option<Phase> {
        self.phase
    }

    /// Begins a request to bring the device to a phase. It ends with [`Outcome::Phase`].
    ///
    /// If the write fails, the state of a v1 device is read, and the error reports it.
    pub fn set_phase(&mut self, to: Phase) {
        self.begin(Step::State { to: Some(to), at: StateStep::Read });
    }

    /// Begins a request for the device's phase. It ends with [`Outcome::Phase`].
    pub fn get_phase(&mut self) {
        self.begin(Step::State { to: None, at: StateStep::Read });
    }

    /// Begins a request for the amount of data to be saved. It ends with [`Outcome::Pending`].
    ///
    /// The request releases the buffer that was read last. While a buffer is open, the last answer is
    /// repeated instead.
    pub fn pending(&mut self) {
        self.leave();
        self.step = match self.buffer {
            Buffer::Closed => Step::Pending { save: false },
            Buffer::Announced | Buffer::Left => Step::Finished(Ok(Outcome::Pending(self.pending))),
        };
    }

    /// Begins to read the next transaction. The request ends with [`Outcome::Saved`].
    pub fn save(&mut self) {
        self.leave();
        self.step = match self.buffer {
            Buffer::Closed => Step::Pending { save: true },
            Buffer::Announced | Buffer::Left => Step::Save(SaveStep::Offset { announced: false }),
        };
    }

    /// Begins to write one transaction, as it was saved. The request ends with [`Outcome::Loaded`].
    pub fn load(&mut self, transaction: Vec<u8>) {
        self.leave();
        self.step = if self.not_whole {
            Step::Finished(Err(UserError::NotWhole))
        } else if transaction.is_empty() {
            // The source gave an empty transaction.
            Step::Finished(Ok(Outcome::Loaded))
        } else {
            Step::Load { data: transaction, done: 0, at: LoadStep::Offset }
        };
    }

    /// Begins a query of the draft's region for dirty pages, while SAVING is set. It ends with
    /// [`Outcome::Dirty`].
    pub fn dirty(&mut self, pages: DirtyPages) {
        self.leave();
        self.step = if self.view.version() == Version::V1 {
            Step::Finished(Err(UserError::NoDirtyPages))
        } else if self.buffer != Buffer::Closed {
            Step::Finished(Err(UserError::BufferOpen))
        } else if pages.total_pfns == 0 {
            Step::Finished(Ok(Outcome::Dirty(DirtyAnswer::None)))
        } else {
            self.value = pages.start_pfn.to_ne_bytes();
            Step::Dirty { pages, at: DirtyStep::Start }
        };
    }

    /// Abandons the current request, if any.
    pub fn leave(&mut self) {
        self.begin(Step::Idle);
    }

    /// Takes in that the device has been reset: it is running.
    pub fn reset(&mut self) {
        self.begin(Step::Idle);
        self.enter(Phase::Running);
    }

    fn begin(&mut self, step: Step) {
        if self.asked {
            // Nobody will take the result of the access.
            match &self.step {
                Step::State { at: StateStep::Write, .. } => self.phase = None,
                Step::Load { at: LoadStep::Size { .. }, .. } => self.not_whole = true,
                Step::Save(SaveStep::Offset { .. }) => self.buffer = Buffer::Left,
                _ => {}
            }
        }
        if let Step::Finished(Ok(Outcome::Saved(Some(_)))) = &self.step {
            // Nobody has taken the outcome, and the device does not know that the data was read.
            self.buffer = Buffer::Left;
        }
        self.asked = false;
        self.step = step;
    }

    fn enter(&mut self, phase: Phase) {
        let saving = self.phase.is_none_or(Phase::is_saving) && phase.is_saving();
        if !saving {
            self.buffer = Buffer::Closed;
            self.pending = 0;
        }
        if phase != Phase::Resuming {
            self.not_whole = false;
        }
        self.phase = Some(phase);
    }

    /// Returns the next access. A repeated call before the answer returns the same.
    pub fn next_access(&mut self) -> Next<'_> {
        let Some(access) = self.access() else {
            return match std::mem::replace(&mut self.step, Step::Idle) {
                Step::Finished(result) => Next::Finished(result),
                _ => Next::Idle,
            };
        };
        self.asked = true;
        match access {
            Access::ReadField(field) => {
                Next::Read { offset: field.offset(), length: field.width(), way: Way::Trapped }
            }
            Access::WriteField(field) => {
                Next::Write { offset: field.offset(), data: &self.value[..field.width()], way: Way::Trapped }
            }
            Access::ReadData { offset, length, way } => Next::Read { offset, length, way },
            Access::WriteData { offset, length, way } => {
                let data = match &self.step {
                    Step::Load { data, done, at: LoadStep::Data { sent, .. } } => {
                        &data[done + sent..done + sent + length]
                    }
                    _ => &[],
                };
                Next::Write { offset, data, way }
            }
        }
    }

    /// Takes the result of the read that [`User::next_access`] asked for.
    pub fn read_done(&mut self, result: Result<&[u8], Errno>) {
        let Some(access) = self.access() else { return };
        self.asked = false;
        let (field, length) = match access {
            Access::ReadField(field) => (field.name(), field.width()),
            Access::ReadData { length, .. } => (SECTION, length),
            // The caller answers a request that was not made.
            Access::WriteField(_) | Access::WriteData { .. } => return,
        };
        if let Step::Save(SaveStep::Offset { announced }) = self.step {
            // Also if the read fails, because the device may have opened the buffer.
            self.buffer = if announced { Buffer::Announced } else { Buffer::Left };
        }
        let step = std::mem::replace(&mut self.step, Step::Idle);
        let next = match (step, result) {
            (Step::State { to: Some(to), at: StateStep::ReadAgain(errno) }, Err(reading)) => {
                self.phase = None;
                Err(UserError::Unknown { to, errno, reading })
            }
            (_, Err(errno)) => Err(UserError::Access { access: "read", field, errno }),
            (_, Ok(bytes)) if bytes.len() != length => {
                Err(UserError::Answer { asked: length, got: bytes.len() })
            }
            (step, Ok(bytes)) => self.after_read(step, bytes),
        };
        self.step = next.unwrap_or_else(|error| Step::Finished(Err(error)));
    }

    /// Takes the result of the write that [`User::next_access`] asked for.
    pub fn write_done(&mut self, result: Result<(), Errno>) {
        let Some(access) = self.access() else { return };
        self.asked = false;
        let (field, length) = match access {
            Access::WriteField(field) => (field.name(), field.width()),
            Access::WriteData { length, .. } => (SECTION, length),
            Access::ReadField(_) | Access::ReadData { .. } => return,
        };
        let step = std::mem::replace(&mut self.step, Step::Idle);
        let next = match (step, result) {
            (Step::State { to: Some(to), .. }, Err(errno)) => {
                self.phase = None;
                match self.view.version() {
                    Version::V1 => Ok(Step::State { to: Some(to), at: StateStep::ReadAgain(errno) }),
                    Version::Draft => Err(UserError::Refused { to, errno, now: None }),
                }
            }
            (step, Err(errno)) => {
                self.not_whole |= matches!(step, Step::Load { at: LoadStep::Size { .. }, .. });
                Err(UserError::Access { access: "write", field, errno })
            }
            (step, Ok(())) => Ok(self.after_write(step, length)),
        };
        self.step = next.unwrap_or_else(|error| Step::Finished(Err(error)));
    }
}

/// The name of the data section in errors.
const SECTION: &str = "the data section";
