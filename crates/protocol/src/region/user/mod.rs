//! The user half: which access to a migration region comes next, and what the answers mean.

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
/// A request ([`User::set_phase`], [`User::save`], ...) is begun, and then carried out access by access:
/// [`User::next_access`] says which, and [`User::read_done`] or [`User::write_done`] takes the answer, until
/// there is an [`Outcome`]. [`drive`] does the round for a caller that has nothing else to do meanwhile.
///
/// Everything the device says is checked before it is used. A request can be left at any access, by beginning
/// another: a buffer that was opened and not read to its end is then gone on with by the next [`User::save`],
/// since asking for `pending_bytes` would give it up.
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
    /// What the device was last heard to be doing.
    phase: Option<Phase>,
    /// The last answer of `pending_bytes`.
    pending: u64,
    buffer: Buffer,
    /// A transaction was not taken.
    not_whole: bool,
    /// The access of the present step has been handed out.
    asked: bool,
    step: Step,
    /// The value that a write of a field carries.
    value: [u8; 8],
}

/// The buffer of device data that the user has in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buffer {
    /// None, or it was read to its end.
    Closed,
    /// Opened by the request under way, after `pending_bytes` announced it.
    Announced,
    /// Opened by an earlier request, which was left or failed.
    Left,
}

/// What its owner has chosen.
#[derive(Clone, Copy, Debug)]
struct Rules {
    most: u64,
    split: bool,
}

/// The access that comes next, or the end of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Read `length` bytes from `offset` of the region, in one piece.
    Read {
        /// Bytes from the start of the region.
        offset: u64,
        /// Bytes; at most 8 where they are trapped.
        length: usize,
        /// How.
        way: Way,
    },
    /// Write `data` at `offset` of the region, in one piece.
    Write {
        /// Bytes from the start of the region.
        offset: u64,
        /// What to write.
        data: &'a [u8],
        /// How.
        way: Way,
    },
    /// The request is over.
    Finished(Result<Outcome, UserError>),
    /// No request has begun.
    Idle,
}

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The device is doing this.
    Phase(Phase),
    /// So many bytes are still to be saved; 0 is all for now in pre-copy, and all in stop-and-copy.
    Pending(u64),
    /// One transaction; to be loaded as it is, in this order. `None`: there is none now in pre-copy, and no
    /// more in stop-and-copy.
    Saved(Option<Vec<u8>>),
    /// The transaction was taken.
    Loaded,
    /// Dirty pages.
    Dirty(DirtyAnswer),
}

/// The pages that the draft's region is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyPages {
    /// The first page: its IOVA divided by the page size.
    pub start_pfn: u64,
    /// Bytes.
    pub page_size: u64,
    /// How many pages.
    pub total_pfns: u64,
}

/// What the draft's region answers of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirtyAnswer {
    /// None of them was written.
    None,
    /// All are to be taken as written.
    All,
    /// This speaks of the first so many of them, at least one. The rest is to be asked about next.
    Bitmap(PageBitmap),
}

impl User {
    /// The most bytes that a transaction or a bitmap may have, unless [`User::with_limit`] says otherwise: 1
    /// GiB.
    pub const MOST: u64 = 1 << 30;

    /// A user of a region whose device it has just opened.
    pub fn new(view: View) -> User {
        User {
            view,
            rules: Rules { most: User::MOST, split: false },
            phase: None,
            pending: 0,
            buffer: Buffer::Closed,
            not_whole: false,
            asked: false,
            step: Step::Idle,
            value: [0; 8],
        }
    }

    /// Takes transactions and bitmaps of at most `most` bytes.
    #[must_use]
    pub fn with_limit(mut self, most: u64) -> User {
        self.rules.most = most;
        self
    }

    /// Cuts a transaction that does not fit the data section, as QEMU 7.2 does, instead of refusing it. The
    /// text says that a transaction has the size it had at the source: only for devices that are known not to
    /// mind.
    #[must_use]
    pub fn with_splitting(mut self) -> User {
        self.rules.split = true;
        self
    }

    /// From now on as [`User::with_splitting`], or no more.
    pub const fn set_splitting(&mut self, split: bool) {
        self.rules.split = split;
    }

    /// The region.
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// What the device was last heard to be doing.
    pub const fn phase(&self) -> Option<Phase> {
        self.phase
    }

    /// Begins: brings the device to a phase. Ends with [`Outcome::Phase`].
    ///
    /// After a write that fails, v1's device is asked what state it is in, and the error says it.
    pub fn set_phase(&mut self, to: Phase) {
        self.begin(Step::State { to: Some(to), at: StateStep::Read });
    }

    /// Begins: asks what the device is doing. Ends with [`Outcome::Phase`].
    pub fn get_phase(&mut self) {
        self.begin(Step::State { to: None, at: StateStep::Read });
    }

    /// Begins: asks how much is to be saved. Ends with [`Outcome::Pending`].
    ///
    /// To ask gives up the buffer that was read last. While one is open, the last answer is given again
    /// instead.
    pub fn pending(&mut self) {
        self.leave();
        self.step = match self.buffer {
            Buffer::Closed => Step::Pending { save: false },
            Buffer::Announced | Buffer::Left => Step::Finished(Ok(Outcome::Pending(self.pending))),
        };
    }

    /// Begins: reads the next transaction. Ends with [`Outcome::Saved`].
    pub fn save(&mut self) {
        self.leave();
        self.step = match self.buffer {
            Buffer::Closed => Step::Pending { save: true },
            Buffer::Announced | Buffer::Left => Step::Save(SaveStep::Offset { announced: false }),
        };
    }

    /// Begins: writes one transaction, as it was saved. Ends with [`Outcome::Loaded`].
    pub fn load(&mut self, transaction: Vec<u8>) {
        self.leave();
        self.step = if self.not_whole {
            Step::Finished(Err(UserError::NotWhole))
        } else if transaction.is_empty() {
            // Nothing was given at the source.
            Step::Finished(Ok(Outcome::Loaded))
        } else {
            Step::Load { data: transaction, done: 0, at: LoadStep::Offset }
        };
    }

    /// Begins: asks the draft's region which pages were written, while SAVING is set. Ends with
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

    /// Leaves the request that is under way, if one is.
    pub fn leave(&mut self) {
        self.begin(Step::Idle);
    }

    /// The device has been reset: it is running.
    pub fn reset(&mut self) {
        self.begin(Step::Idle);
        self.enter(Phase::Running);
    }

    fn begin(&mut self, step: Step) {
        if self.asked {
            // Nobody will hear how the access ends.
            match &self.step {
                Step::State { at: StateStep::Write, .. } => self.phase = None,
                Step::Load { at: LoadStep::Size { .. }, .. } => self.not_whole = true,
                Step::Save(SaveStep::Offset { .. }) => self.buffer = Buffer::Left,
                _ => {}
            }
        }
        if let Step::Finished(Ok(Outcome::Saved(Some(_)))) = &self.step {
            // Nobody has heard the outcome; the device has not been told that the data was read.
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

    /// What to do next. Asking again before the answer gives the same.
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

    /// How the read that [`User::next_access`] asked for ended.
    pub fn read_done(&mut self, result: Result<&[u8], Errno>) {
        let Some(access) = self.access() else { return };
        self.asked = false;
        let (field, length) = match access {
            Access::ReadField(field) => (field.name(), field.width()),
            Access::ReadData { length, .. } => (SECTION, length),
            // A caller that answers what was not asked.
            Access::WriteField(_) | Access::WriteData { .. } => return,
        };
        if let Step::Save(SaveStep::Offset { announced }) = self.step {
            // Also if the read fails: the device may have opened it.
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

    /// How the write that [`User::next_access`] asked for ended.
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

/// What errors call the part of the region that is no field.
const SECTION: &str = "the data section";
