//! A channel that records what is written to it.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use whimbrel_engine::channel::{Channel, Stream};

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Recorder {
    stream: Stream,
    written: Written,
}

/// What was written to an end. It does not keep the connection open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written(Arc<Mutex<Vec<u8>>>);

impl Recorder {
    /// Returns the end, and what is going to be written to it.
    pub(crate) fn new(stream: Stream) -> (Recorder, Written) {
        let written = Written::default();
        (Recorder { stream, written: written.clone() }, written)
    }
}

impl Written {
    /// Everything so far.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Channel for Recorder {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.try_read(buffer)
    }

    fn try_write(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut written = self.written.0.lock().unwrap();
        let mut left = self.stream.try_write(data)?;
        let count = left;
        for part in data {
            let taken = left.min(part.len());
            written.extend_from_slice(&part[..taken]);
            left -= taken;
        }
        Ok(count)
    }

    fn readiness_fd(&self) -> BorrowedFd<'_> {
        self.stream.readiness_fd()
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.stream.shutdown_write()
    }
}
