//! The sessions of a device whose calls have a timeout: their files stay on the device's thread.

use std::ops::DerefMut;
use std::sync::Arc;

use whimbrel_protocol::Errno;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::session::Direction;

use super::call_thread::{CallThread, ThreadState};
use crate::data_file::{DataFile, StateFile};
use crate::error::Error;
use crate::migratable::Migratable;
use crate::operation::Operation;
use crate::session_state::SessionState;

/// Maximum number of bytes in one call.
const MAX_PIECE: usize = 1 << 20;

/// A session whose file is on the device's thread.
pub(super) struct Opened {
    device: String,
    direction: Direction,
    state: SessionState,
    session: u64,
}

impl<D: Send + 'static> ThreadState<D> {
    /// Keeps the file of a session that was opened.
    pub(super) fn keep(&mut self, data: DataFile) -> Opened {
        let (device, direction, state, file) = data.into_parts();
        let session = self.next_session;
        self.next_session += 1;
        self.sessions.insert(session, file);
        Opened { device, direction, state, session }
    }
}

/// Returns the caller's end of a session.
pub(super) fn file<D: DerefMut<Target: Migratable> + Send + 'static>(
    thread: &Arc<CallThread<D>>,
    opened: Opened,
) -> DataFile {
    let Opened { device, direction, state, session } = opened;
    let file = TimedFile { thread: thread.clone(), session, piece: Vec::new(), ends: false, failure: None };
    DataFile::new(device, direction, state, Box::new(file))
}

/// The caller's end of a session.
struct TimedFile<D: Send + 'static> {
    thread: Arc<CallThread<D>>,
    session: u64,
    /// The bytes of a call: the driver of a call that does not return keeps them. Never shrinks.
    piece: Vec<u8>,
    /// Set if the last read ended a transaction.
    ends: bool,
    failure: Option<Error>,
}

/// The result of a call into a session.
struct Answer<T> {
    result: Result<T, Errno>,
    failure: Option<Error>,
    ends: bool,
    piece: Vec<u8>,
}

impl<D: Send + 'static> TimedFile<D> {
    /// Makes a call into the session's file, with the piece.
    fn with<T: Send + 'static>(
        &mut self,
        request: Operation,
        make: impl FnOnce(&mut dyn StateFile, &mut [u8]) -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, Errno> {
        self.failure = None;
        let session = self.session;
        let mut piece = std::mem::take(&mut self.piece);
        let answer = self.thread.call(
            request.clone(),
            move |thread| {
                let Some(file) = thread.sessions.get_mut(&session) else {
                    return Err(thread.session_closed(request));
                };
                let result = make(&mut **file, &mut piece);
                let failure = result.as_ref().err().and_then(|_| file.take_failure());
                Ok(Answer { result, failure, ends: file.ends_transaction(), piece })
            },
            |_, _| {},
        );
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) | Err(error) => return self.fail(error),
        };
        (self.piece, self.ends, self.failure) = (answer.piece, answer.ends, answer.failure);
        answer.result
    }

    fn fail<T>(&mut self, error: Error) -> Result<T, Errno> {
        self.failure = Some(error);
        Err(Errno::ETIMEDOUT)
    }

    /// Makes room for a piece, and returns its size.
    fn make_room(&mut self, bytes: usize) -> usize {
        let bytes = bytes.min(MAX_PIECE);
        if self.piece.len() < bytes {
            self.piece.resize(bytes, 0);
        }
        bytes
    }

    /// Writes the next piece with `make`, which is told whether it is all of `data`.
    fn write_with(
        &mut self,
        data: &[u8],
        make: impl FnOnce(&mut dyn StateFile, &[u8], bool) -> Result<usize, Errno> + Send + 'static,
    ) -> Result<usize, Errno> {
        let bytes = self.make_room(data.len());
        self.piece[..bytes].copy_from_slice(&data[..bytes]);
        let is_all = bytes == data.len();
        self.with(Operation::WriteData, move |file, piece| make(file, &piece[..bytes], is_all))
    }
}

impl<D: Send + 'static> StateFile for TimedFile<D> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let bytes = self.make_room(buffer.len());
        let read = self.with(Operation::ReadData, move |file, piece| file.read(&mut piece[..bytes]))?;
        let read = read.min(bytes);
        buffer[..read].copy_from_slice(&self.piece[..read]);
        Ok(read)
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, Errno> {
        self.write_with(data, |file, piece, _| file.write(piece))
    }

    fn precopy_info(&mut self) -> Result<PrecopyReport, Errno> {
        self.with(Operation::PrecopyInfo, |file, _| file.precopy_info())
    }

    fn ends_transaction(&self) -> bool {
        self.ends
    }

    fn write_piece(&mut self, data: &[u8], ends: bool) -> Result<usize, Errno> {
        self.write_with(data, move |file, piece, is_all| file.write_piece(piece, ends && is_all))
    }

    fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }
}

impl<D: Send + 'static> Drop for TimedFile<D> {
    fn drop(&mut self) {
        let session = self.session;
        self.thread.close("close of data_fd".into(), move |thread| drop(thread.sessions.remove(&session)));
    }
}
