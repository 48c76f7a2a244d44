//! The steps of a request: the access each makes, the meaning of the answer, and the next step.

use whimbrel_uapi::region_draft::{VFIO_DEVICE_DIRTY_PFNS_ALL, VFIO_DEVICE_DIRTY_PFNS_NONE};

use super::super::layout::Field;
use super::super::{PAGE_SIZE, Phase, Version, draft, v1};
use super::{Buffer, DirtyAnswer, DirtyPages, Outcome, User, UserError, Way};
use crate::Errno;
use crate::dirty::PageBitmap;

#[derive(Debug)]
pub(super) enum Step {
    Idle,
    Finished(Result<Outcome, UserError>),
    State { to: Option<Phase>, at: StateStep },
    Pending { save: bool },
    Save(SaveStep),
    Load { data: Vec<u8>, done: usize, at: LoadStep },
    Dirty { pages: DirtyPages, at: DirtyStep },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum StateStep {
    Read,
    Write,
    /// The write failed.
    ReadAgain(Errno),
}

#[derive(Debug)]
pub(super) enum SaveStep {
    /// `announced`: `pending_bytes` has just reported data.
    Offset {
        announced: bool,
    },
    Size {
        offset: u64,
    },
    OffsetAgain {
        offset: u64,
        bytes: u64,
    },
    Data {
        offset: u64,
        bytes: u64,
        got: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum LoadStep {
    Offset,
    /// `part` bytes go to `offset`; `sent` of them have.
    Data {
        offset: u64,
        part: usize,
        sent: usize,
    },
    Size {
        part: usize,
    },
}

#[derive(Debug)]
pub(super) enum DirtyStep {
    Start,
    PageSize,
    Total,
    Copied,
    Offset { copied: u64 },
    Bitmap { copied: u64, offset: u64, got: Vec<u8> },
}

/// The access of one step.
pub(super) enum Access {
    ReadField(Field),
    WriteField(Field),
    ReadData { offset: u64, length: usize, way: Way },
    WriteData { offset: u64, length: usize, way: Way },
}

impl User {
    /// Returns the access of the current step.
    pub(super) fn access(&self) -> Option<Access> {
        Some(match &self.step {
            Step::Idle | Step::Finished(_) => return None,
            Step::State { at: StateStep::Read | StateStep::ReadAgain(_), .. } => {
                Access::ReadField(Field::DeviceState)
            }
            Step::State { at: StateStep::Write, .. } => Access::WriteField(Field::DeviceState),
            Step::Pending { .. } => Access::ReadField(Field::PendingBytes),
            Step::Save(SaveStep::Offset { .. } | SaveStep::OffsetAgain { .. })
            | Step::Load { at: LoadStep::Offset, .. }
            | Step::Dirty { at: DirtyStep::Offset { .. }, .. } => Access::ReadField(Field::DataOffset),
            Step::Save(SaveStep::Size { .. }) => Access::ReadField(Field::DataSize),
            Step::Save(SaveStep::Data { offset, bytes, got }) => self.data(*offset, *bytes, got.len()),
            Step::Load { at: LoadStep::Data { offset, part, sent }, .. } => {
                let at = offset + *sent as u64;
                let (length, way) = self.view.piece(at, (part - sent) as u64);
                Access::WriteData { offset: at, length, way }
            }
            Step::Load { at: LoadStep::Size { .. }, .. } => Access::WriteField(Field::DataSize),
            Step::Dirty { at: DirtyStep::Start, .. } => Access::WriteField(Field::StartPfn),
            Step::Dirty { at: DirtyStep::PageSize, .. } => Access::WriteField(Field::PageSize),
            Step::Dirty { at: DirtyStep::Total, .. } => Access::WriteField(Field::TotalPfns),
            Step::Dirty { at: DirtyStep::Copied, .. } => Access::ReadField(Field::CopiedPfns),
            Step::Dirty { at: DirtyStep::Bitmap { copied, offset, got }, .. } => {
                self.data(*offset, bitmap_bytes(*copied), got.len())
            }
        })
    }

    /// Returns the next piece of `bytes` bytes at `offset`, of which `got` have been read. The caller has
    /// checked that they lie in the region.
    fn data(&self, offset: u64, bytes: u64, got: usize) -> Access {
        let at = offset + got as u64;
        let (length, way) = self.view.piece(at, bytes - got as u64);
        Access::ReadData { offset: at, length, way }
    }

    pub(super) fn after_read(&mut self, step: Step, bytes: &[u8]) -> Result<Step, UserError> {
        // Fields are 4 or 8 bytes; the steps that read data take it from `bytes`.
        let narrow = bytes.try_into().map(|bytes| u64::from(u32::from_ne_bytes(bytes)));
        let value = bytes.try_into().map_or(narrow.unwrap_or(0), u64::from_ne_bytes);
        match step {
            Step::State { to, at } => self.state_read(to, at, value as u32),
            Step::Pending { save } => {
                self.pending = value;
                if !save {
                    return Ok(Step::Finished(Ok(Outcome::Pending(value))));
                }
                Ok(match value {
                    0 => Step::Finished(Ok(Outcome::Saved(None))),
                    _ => Step::Save(SaveStep::Offset { announced: true }),
                })
            }
            Step::Save(at) => self.save_read(at, value, bytes),
            Step::Load { data, done, at: LoadStep::Offset } => {
                self.check_offset(value)?;
                let left = data.len() - done;
                let room = self.view.size() - value;
                if left as u64 > room && !self.rules.split {
                    return Err(UserError::NoRoom { bytes: data.len() as u64, room });
                }
                let part = usize::try_from(room).map_or(left, |room| room.min(left));
                Ok(Step::Load { data, done, at: LoadStep::Data { offset: value, part, sent: 0 } })
            }
            Step::Dirty { pages, at } => self.dirty_read(pages, at, value, bytes),
            other => Ok(other),
        }
    }

    fn state_read(&mut self, to: Option<Phase>, at: StateStep, register: u32) -> Result<Step, UserError> {
        let errno = match at {
            StateStep::ReadAgain(errno) => Some(errno),
            StateStep::Read | StateStep::Write => None,
        };
        let now = match self.view.version() {
            Version::V1 => match v1::DeviceState::from_register(register) {
                Ok(v1::DeviceState::Valid(phase)) => Some(phase),
                Ok(v1::DeviceState::Error) => {
                    self.phase = None;
                    return Err(UserError::NeedsReset { errno });
                }
                Err(_) => None,
            },
            Version::Draft => match draft::DeviceState::from_register(register) {
                Ok(draft::DeviceState::Valid(phase)) => Some(phase),
                Ok(draft::DeviceState::RunningAndResuming) | Err(_) => None,
            },
        };
        let now = now.ok_or(UserError::State(register))?;
        self.enter(now);
        match (to, errno) {
            (Some(to), Some(errno)) => Err(UserError::Refused { to, errno, now: Some(now) }),
            (Some(to), None) if to != now => {
                let register = match self.view.version() {
                    Version::V1 => v1::DeviceState::Valid(to).to_register(register),
                    Version::Draft => draft::DeviceState::Valid(to).to_register(register),
                };
                self.value[..4].copy_from_slice(&register.to_ne_bytes());
                Ok(Step::State { to: Some(to), at: StateStep::Write })
            }
            _ => Ok(Step::Finished(Ok(Outcome::Phase(now)))),
        }
    }

    fn save_read(&mut self, at: SaveStep, value: u64, bytes: &[u8]) -> Result<Step, UserError> {
        Ok(match at {
            SaveStep::Offset { .. } => {
                self.check_offset(value)?;
                Step::Save(SaveStep::Size { offset: value })
            }
            SaveStep::Size { offset } => {
                self.check_size(offset, value)?;
                match self.view.version() {
                    // v1 guarantees the same answer until `pending_bytes` is read; the draft might stage
                    // another buffer.
                    Version::V1 => Step::Save(SaveStep::OffsetAgain { offset, bytes: value }),
                    Version::Draft => self.data_from(offset, value)?,
                }
            }
            SaveStep::OffsetAgain { offset, bytes } if offset == value => self.data_from(offset, bytes)?,
            SaveStep::OffsetAgain { offset, .. } => {
                return Err(UserError::Moved { first: offset, second: value });
            }
            SaveStep::Data { offset, bytes: size, mut got } => {
                got.extend_from_slice(bytes);
                if (got.len() as u64) < size {
                    return Ok(Step::Save(SaveStep::Data { offset, bytes: size, got }));
                }
                self.buffer = Buffer::Closed;
                Step::Finished(Ok(Outcome::Saved(Some(got))))
            }
        })
    }

    /// Takes in that a buffer of `bytes` bytes is open at `offset`.
    fn data_from(&mut self, offset: u64, bytes: u64) -> Result<Step, UserError> {
        if bytes > 0 {
            return Ok(Step::Save(SaveStep::Data { offset, bytes, got: Vec::new() }));
        }
        if std::mem::replace(&mut self.buffer, Buffer::Closed) == Buffer::Left {
            // It was opened before, and it is empty.
            return Ok(Step::Pending { save: true });
        }
        if self.phase == Some(Phase::StopAndCopy) {
            return Err(UserError::Stalled(self.pending));
        }
        Ok(Step::Finished(Ok(Outcome::Saved(None))))
    }

    fn dirty_read(
        &mut self,
        pages: DirtyPages,
        at: DirtyStep,
        value: u64,
        bytes: &[u8],
    ) -> Result<Step, UserError> {
        let answer = |answer| Ok(Step::Finished(Ok(Outcome::Dirty(answer))));
        let at = match at {
            DirtyStep::Copied => match value {
                VFIO_DEVICE_DIRTY_PFNS_NONE => return answer(DirtyAnswer::None),
                VFIO_DEVICE_DIRTY_PFNS_ALL => return answer(DirtyAnswer::All),
                copied if copied > pages.total_pfns => {
                    return Err(UserError::Copied { copied, total: pages.total_pfns });
                }
                copied => DirtyStep::Offset { copied },
            },
            DirtyStep::Offset { copied } => {
                self.check_offset(value)?;
                self.check_size(value, bitmap_bytes(copied))?;
                DirtyStep::Bitmap { copied, offset: value, got: Vec::new() }
            }
            DirtyStep::Bitmap { copied, offset, mut got } => {
                got.extend_from_slice(bytes);
                if (got.len() as u64) < bitmap_bytes(copied) {
                    DirtyStep::Bitmap { copied, offset, got }
                } else {
                    // As many pages as bits were just read.
                    let mut bitmap = PageBitmap::new(copied as usize);
                    let words: Vec<u64> =
                        got.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
                    bitmap.merge(&words);
                    return answer(DirtyAnswer::Bitmap(bitmap));
                }
            }
            DirtyStep::Start | DirtyStep::PageSize | DirtyStep::Total => at,
        };
        Ok(Step::Dirty { pages, at })
    }

    pub(super) fn after_write(&mut self, step: Step, length: usize) -> Step {
        match step {
            Step::State { to: Some(to), at: StateStep::Write } => {
                self.enter(to);
                Step::Finished(Ok(Outcome::Phase(to)))
            }
            Step::Load { data, done, at: LoadStep::Data { offset, part, sent } } => {
                let sent = sent + length;
                let at = if sent < part {
                    LoadStep::Data { offset, part, sent }
                } else {
                    self.value = (part as u64).to_ne_bytes();
                    LoadStep::Size { part }
                };
                Step::Load { data, done, at }
            }
            Step::Load { data, done, at: LoadStep::Size { part } } => {
                if done + part < data.len() {
                    Step::Load { data, done: done + part, at: LoadStep::Offset }
                } else {
                    Step::Finished(Ok(Outcome::Loaded))
                }
            }
            Step::Dirty { pages, at } => {
                let (at, value) = match at {
                    DirtyStep::Start => (DirtyStep::PageSize, pages.page_size),
                    DirtyStep::PageSize => (DirtyStep::Total, pages.total_pfns),
                    _ => (DirtyStep::Copied, 0),
                };
                self.value = value.to_ne_bytes();
                Step::Dirty { pages, at }
            }
            other => other,
        }
    }

    fn check_offset(&self, offset: u64) -> Result<(), UserError> {
        if !self.view.holds(offset, 1) {
            return Err(UserError::Outside { offset, bytes: 0, size: self.view.size() });
        }
        // The draft only recommends it.
        if self.view.version() == Version::V1
            && self.view.is_mapped(offset)
            && !offset.is_multiple_of(PAGE_SIZE)
        {
            return Err(UserError::Unaligned(offset));
        }
        Ok(())
    }

    fn check_size(&self, offset: u64, bytes: u64) -> Result<(), UserError> {
        if !self.view.holds(offset, bytes) {
            return Err(UserError::Outside { offset, bytes, size: self.view.size() });
        }
        if bytes > self.rules.most {
            return Err(UserError::TooLarge { bytes, most: self.rules.most });
        }
        Ok(())
    }
}

/// Returns the size of a bitmap in bytes: whole u64s.
const fn bitmap_bytes(pages: u64) -> u64 {
    pages.div_ceil(64) * 8
}
