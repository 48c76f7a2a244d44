//! A data session of the device under test, with every request recorded.

use std::os::fd::BorrowedFd;

use whimbrel_protocol::Errno;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_uapi::migration::PrecopyInfo;
use whimbrel_user::{DataFile, StateFile};

use crate::outcome::{Outcome, fail, inconclusive, skip, success};
use crate::saved::Saved;
use crate::transcript::Transcript;

/// Bytes read or written at once where a case does not say otherwise.
pub(crate) const CHUNK: usize = 1 << 20;

/// An open data session. Dropping it closes the file.
pub(crate) struct Data {
    file: DataFile,
    name: &'static str,
    transcript: Transcript,
    /// Bytes of a state that a case may hold.
    limit: u64,
    /// Bytes read so far.
    position: usize,
    /// The ends of a migration region's transactions.
    ends: Vec<usize>,
}

/// The result of pre-copy reads.
pub(crate) struct Precopied {
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
    /// The answer that ended them: 0 or ENOMSG.
    pub(crate) end: Result<usize, Errno>,
}

impl Data {
    pub(crate) fn new(file: DataFile, name: &'static str, transcript: Transcript, limit: u64) -> Data {
        Data { file, name, transcript, limit, position: 0, ends: Vec::new() }
    }

    /// Reads at most `buffer.len()` bytes. An interrupted read is repeated. Fails the case if the driver claims more.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Outcome<Result<usize, Errno>> {
        let request = format!("{}read({})", self.name, buffer.len());
        let file = self.file.file_mut();
        let result = self.transcript.record(
            request,
            || repeated(|| file.read(buffer)),
            |result| answer(result, usize::to_string),
        );
        match result {
            Ok(count) if count > buffer.len() => {
                fail(format_args!("a read of at most {} bytes", buffer.len()), format_args!("{count} bytes"))
            }
            Ok(count) if count > 0 => {
                self.position += count;
                if self.file.ends_transaction() {
                    self.ends.push(self.position);
                }
                Ok(Ok(count))
            }
            result => Ok(result),
        }
    }

    /// Reads in STOP_COPY to the end of the stream, `chunk` bytes at once.
    pub(crate) fn read_to_end(&mut self, chunk: usize) -> Outcome<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; chunk];
        loop {
            let result = self.read(&mut buffer)?;
            match success("a read in STOP_COPY", result)? {
                0 => return Ok(bytes),
                count => bytes.extend_from_slice(&buffer[..count]),
            }
            self.check_size(bytes.len() as u64)?;
        }
    }

    /// Reads the rest of the state in STOP_COPY, after the bytes `before` that the same data file gave in PRE_COPY.
    pub(crate) fn save(&mut self, before: Vec<u8>) -> Outcome<Saved> {
        let mut bytes = before;
        bytes.extend(self.read_to_end(CHUNK)?);
        Ok(Saved::new(bytes, self.ends.clone()))
    }

    /// Reads in PRE_COPY or PRE_COPY_P2P to the temporary end, or until `enough` bytes were read.
    pub(crate) fn read_precopy(&mut self, chunk: usize, enough: u64) -> Outcome<Precopied> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; chunk];
        loop {
            match self.read(&mut buffer)? {
                end @ (Ok(0) | Err(Errno::ENOMSG)) => return Ok(Precopied { bytes, end }),
                result => {
                    let count = success("a read in PRE_COPY", result)?;
                    bytes.extend_from_slice(&buffer[..count]);
                    if bytes.len() as u64 >= enough {
                        return Ok(Precopied { bytes, end: Ok(count) });
                    }
                }
            }
            self.check_size(bytes.len() as u64)?;
        }
    }

    /// Ends the case without a verdict if this many bytes are more than a case may hold.
    pub(crate) fn check_size(&self, size: u64) -> Outcome {
        if size <= self.limit {
            return Ok(());
        }
        inconclusive(format_args!("the state is larger than the limit of {} bytes", self.limit))
    }

    /// Writes once, and returns the number of bytes taken. Fails the case if the driver claims more than it was given.
    pub(crate) fn write(&mut self, data: &[u8]) -> Outcome<Result<usize, Errno>> {
        let request = format!("{}write({})", self.name, data.len());
        let file = self.file.file_mut();
        let result = self.transcript.record(
            request,
            || repeated(|| file.write(data)),
            |result| answer(result, usize::to_string),
        );
        match result {
            Ok(count) if count > data.len() => {
                fail(format_args!("a write of at most {} bytes", data.len()), format_args!("{count} bytes"))
            }
            result => Ok(result),
        }
    }

    /// Writes all of `data`, at most `chunk` bytes at once, until the driver refuses some.
    pub(crate) fn load(&mut self, data: &[u8], chunk: usize) -> Outcome<Result<(), Errno>> {
        for piece in data.chunks(chunk.max(1)) {
            let mut rest = piece;
            while !rest.is_empty() {
                match self.write(rest)? {
                    Ok(0) => return fail("a write takes at least a byte, or fails", "0 bytes"),
                    Ok(count) => rest = &rest[count..],
                    Err(errno) => return Ok(Err(errno)),
                }
            }
        }
        Ok(Ok(()))
    }

    /// Writes all of a state, in the transactions that it was saved in, until the driver refuses some.
    pub(crate) fn load_saved(&mut self, state: &Saved) -> Outcome<Result<(), Errno>> {
        let Some(transactions) = state.transactions() else { return self.load(state, CHUNK) };
        for transaction in transactions {
            let request = format!("{}write of a transaction of {} bytes", self.name, transaction.len());
            let file = self.file.file_mut();
            let result = self.transcript.record(
                request,
                || file.write_piece(transaction, true),
                |result| answer(result, usize::to_string),
            );
            if let Err(errno) = result {
                return Ok(Err(errno));
            }
        }
        Ok(Ok(()))
    }

    /// VFIO_MIG_GET_PRECOPY_INFO.
    pub(crate) fn precopy_info(&mut self) -> Result<PrecopyReport, Errno> {
        let file = self.file.file_mut();
        self.transcript.record(
            format!("{}VFIO_MIG_GET_PRECOPY_INFO", self.name),
            || file.precopy_info(),
            |result| {
                answer(result, |report| {
                    let reinit = if report.reinit { " REINIT" } else { "" };
                    format!("initial {} dirty {}{reinit}", report.bytes.initial, report.bytes.dirty)
                })
            },
        )
    }

    /// VFIO_MIG_GET_PRECOPY_INFO with `argsz` and `flags` as they are in `info`; skips the case without raw requests.
    pub(crate) fn raw_precopy_info(&mut self, info: &mut PrecopyInfo) -> Outcome<Result<(), Errno>> {
        let request =
            format!("{}VFIO_MIG_GET_PRECOPY_INFO argsz {} flags {:#x}", self.name, info.argsz, info.flags);
        let Some(raw) = self.file.file_mut().raw() else {
            return skip("the data file's requests are not available as bytes");
        };
        Ok(self.transcript.record(
            request,
            || raw.precopy_info(info),
            |result| answer(result, |()| "0".to_string()),
        ))
    }

    /// Returns another handle to the same file, for concurrent use; skips the case without it. Its requests have the same
    /// timeout, but are not recorded: their order is that of the threads.
    pub(crate) fn duplicate(&mut self) -> Outcome<Box<dyn StateFile>> {
        match self.file.file_mut().raw().map(|raw| raw.duplicate()) {
            Some(Ok(file)) => Ok(Box::new(Watched { file, transcript: self.transcript.clone() })),
            Some(Err(errno)) => inconclusive(format_args!("the data file cannot be duplicated: {errno:?}")),
            None => skip("the data file cannot be duplicated"),
        }
    }

    /// Returns the descriptor; skips the case without one.
    pub(crate) fn fd(&self) -> Outcome<BorrowedFd<'_>> {
        self.file.as_fd().map_or_else(|| skip("the data file has no descriptor"), Ok)
    }

    /// Records a system call on the descriptor.
    pub(crate) fn on_fd<T>(
        &self,
        request: &str,
        make: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>,
        told: impl FnOnce(&T) -> String,
    ) -> Outcome<Result<T, Errno>> {
        let fd = self.fd()?;
        let request = format!("{}{request}", self.name);
        Ok(self.transcript.record(request, || make(fd), |result| answer(result, told)))
    }
}

/// A data file whose requests are watched, but not recorded.
struct Watched {
    file: Box<dyn StateFile>,
    transcript: Transcript,
}

impl StateFile for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let request = format!("read({}) beside other threads", buffer.len());
        self.transcript.during(&request, || self.file.read(buffer))
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, Errno> {
        let request = format!("write({}) beside other threads", data.len());
        self.transcript.during(&request, || self.file.write(data))
    }

    fn precopy_info(&mut self) -> Result<PrecopyReport, Errno> {
        self.transcript.during("VFIO_MIG_GET_PRECOPY_INFO", || self.file.precopy_info())
    }
}

fn repeated<T>(mut request: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match request() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Formats an answer: the value, or the errno's name.
pub(crate) fn answer<T>(result: &Result<T, Errno>, told: impl FnOnce(&T) -> String) -> String {
    match result {
        Ok(value) => told(value),
        Err(errno) => format!("{errno:?}"),
    }
}
