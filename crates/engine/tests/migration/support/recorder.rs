//! A channel that records what is written to it.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use whimbrel_engine::channel::{Channel, Stream};

/// One end of a connection. Its clones are the same end.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    stream: Arc<Stream>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    pub(crate) fn new(stream: Stream) -> Recorder {
        Recorder { stream: Arc::new(stream), written: Arc::default() }
    }

    /// Everything that was written so far.
    pub(crate) fn written(&self) -> Vec<u8> {
        self.written.lock().unwrap().clone()
    }
}

impl Channel for Recorder {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.try_read(buffer)
    }

    fn try_write(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut written = self.written.lock().unwrap();
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
