//! The user's end of a data session.

use std::os::fd::BorrowedFd;

use whimbrel_protocol::Errno;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::session::{self, Direction, SavingRead};

use crate::error::{Error, Result};
use crate::operation::Operation;
use crate::raw::RawData;
use crate::session_state::SessionState;

/// The transport of a session's data. Results are the driver's, with its errnos.
pub trait StateFile: Send {
    /// Reads the next bytes of the state.
    fn read(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Errno>;

    /// Writes the next bytes of a state and returns the number taken.
    fn write(&mut self, data: &[u8]) -> std::result::Result<usize, Errno>;

    /// VFIO_MIG_GET_PRECOPY_INFO.
    fn precopy_info(&mut self) -> std::result::Result<PrecopyReport, Errno>;

    /// Returns whether the last read ended a transaction.
    fn ends_transaction(&self) -> bool {
        false
    }

    /// Writes like [`StateFile::write`], for bytes of one transaction; `ends` marks its last bytes.
    fn write_piece(&mut self, data: &[u8], ends: bool) -> std::result::Result<usize, Errno> {
        let _ = ends;
        self.write(data)
    }

    /// Takes the last error, if it holds more than an errno.
    fn take_failure(&mut self) -> Option<Error> {
        None
    }

    /// Returns the descriptor, if any, to wait on. Do not read from it directly.
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Returns the file's requests as bytes. `None`, the default, for a file without them.
    fn raw(&mut self) -> Option<&mut dyn RawData> {
        None
    }
}

/// One data session of a device. Dropping it closes the file; the device stays in its state.
pub struct DataFile {
    device: String,
    direction: Direction,
    state: SessionState,
    file: Box<dyn StateFile>,
}

impl DataFile {
    /// Takes over the file of a session that has just been opened on `device`, whose state is kept in `state`.
    pub fn new(
        device: impl Into<String>,
        direction: Direction,
        state: SessionState,
        file: Box<dyn StateFile>,
    ) -> DataFile {
        DataFile { device: device.into(), direction, state, file }
    }

    /// Returns the parts that [`DataFile::new`] takes.
    pub(crate) fn into_parts(self) -> (String, Direction, SessionState, Box<dyn StateFile>) {
        (self.device, self.direction, self.state, self.file)
    }

    /// Returns the transport, with the driver side's own results: nothing is retried or interpreted.
    pub fn file_mut(&mut self) -> &mut dyn StateFile {
        &mut *self.file
    }

    /// Returns the direction of the data.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Reads the next bytes of the device's state. An empty read is a temporary end in a pre-copy state, and the final
    /// end in STOP_COPY. The state is the last known one of this file's device: if another handle changes it, query it
    /// with [`Migratable::state`](crate::Migratable::state).
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<SavingRead> {
        loop {
            // Before the read: what a device has to give in PRE_COPY says nothing of the end in STOP_COPY.
            let state = self.state.get();
            let result = self.file.read(buffer).map(|count| count.min(buffer.len()));
            match session::saving_read(state, result) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.failed(Operation::ReadData, errno)),
                Ok(read) => return Ok(read),
            }
        }
    }

    /// Writes all of `data`, in as many pieces as the driver needs.
    ///
    /// A device with a migration region gets it in transactions as large as its data section. For data with
    /// transactions use [`DataFile::write_piece`].
    pub fn write_all(&mut self, data: &[u8]) -> Result<()> {
        self.write_with(data, |file, data| file.write(data))
    }

    /// Returns whether the last read ended a transaction. Always `false` without transactions: only a migration region
    /// has them.
    pub fn ends_transaction(&self) -> bool {
        self.file.ends_transaction()
    }

    /// Writes all of `data`, bytes of one transaction of the source; `ends` marks its last bytes.
    ///
    /// A device with a v1 region gets the transaction once it is complete; it is an error if the transaction does not
    /// fit the device's data section. Any other device gets the bytes as they arrive.
    pub fn write_piece(&mut self, data: &[u8], ends: bool) -> Result<()> {
        self.write_with(data, |file, data| file.write_piece(data, ends))
    }

    fn write_with(
        &mut self,
        mut data: &[u8],
        mut write: impl FnMut(&mut dyn StateFile, &[u8]) -> std::result::Result<usize, Errno>,
    ) -> Result<()> {
        while !data.is_empty() {
            match write(&mut *self.file, data) {
                Ok(0) => {
                    let what = format!("no progress: 0 of {} bytes written", data.len());
                    return Err(Error::answer(&self.device, Operation::WriteData, what));
                }
                Ok(count) => data = &data[count.min(data.len())..],
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.failed(Operation::WriteData, errno)),
            }
        }
        Ok(())
    }

    fn failed(&mut self, request: Operation, errno: Errno) -> Error {
        self.file.take_failure().unwrap_or_else(|| Error::request(&self.device, request, errno))
    }

    /// Returns the amount of data that can be read now, in PRE_COPY and PRE_COPY_P2P.
    pub fn precopy_info(&mut self) -> Result<PrecopyReport> {
        self.file.precopy_info().map_err(|errno| self.failed(Operation::PrecopyInfo, errno))
    }

    /// Returns the descriptor, if any, to wait on.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_fd()
    }
}

impl std::fmt::Debug for DataFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataFile")
            .field("device", &self.device)
            .field("direction", &self.direction)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use whimbrel_protocol::State;

    use super::*;

    /// Plays back results.
    struct Script(VecDeque<std::result::Result<usize, Errno>>);

    impl StateFile for Script {
        fn read(&mut self, _: &mut [u8]) -> std::result::Result<usize, Errno> {
            self.0.pop_front().expect("one more read than the script has")
        }
        fn write(&mut self, _: &[u8]) -> std::result::Result<usize, Errno> {
            self.0.pop_front().expect("one more write than the script has")
        }
        fn precopy_info(&mut self) -> std::result::Result<PrecopyReport, Errno> {
            Err(Errno::ENOTTY)
        }
    }

    fn file(script: impl Into<VecDeque<std::result::Result<usize, Errno>>>) -> DataFile {
        let state = SessionState::new(State::StopCopy);
        DataFile::new("test", Direction::Saving, state, Box::new(Script(script.into())))
    }

    #[test]
    fn an_interrupted_read_or_write_goes_on() {
        let mut data = file([Err(Errno::EINTR), Ok(3)]);
        assert_eq!(data.read(&mut [0; 8]).unwrap(), SavingRead::Data(3));
        file([Ok(2), Err(Errno::EINTR), Ok(1)]).write_all(&[0; 3]).unwrap();
    }

    #[test]
    fn a_driver_that_takes_nothing_is_an_error_and_not_a_loop() {
        let error = file([Ok(0)]).write_all(&[0; 3]).unwrap_err();
        assert!(matches!(error, Error::Answer { .. }), "{error}");
    }

    #[test]
    fn a_driver_that_claims_more_than_it_was_given_is_taken_at_the_size_of_the_buffer() {
        let mut data = file([Ok(1000)]);
        assert_eq!(data.read(&mut [0; 8]).unwrap(), SavingRead::Data(8));
        file([Ok(1000)]).write_all(&[0; 3]).unwrap();
    }

    #[test]
    fn errors_name_device_request_and_errno() {
        let error = file([Err(Errno::EIO)]).read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.to_string(), "test: read of data_fd: EIO: Input/output error");
    }
}
