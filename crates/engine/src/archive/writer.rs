//! Messages to a file.

use std::io::{self, IoSlice, Write};

use zerocopy::IntoBytes;

use super::cancel::unwritten;
use crate::error::Error;
use crate::proto::frame::{FrameHeader, Preamble};
use crate::proto::message::Message;

/// The size from which data is written directly; less is gathered.
const LARGE: usize = 32 << 10;
/// The size from which gathered bytes are written.
const GATHER: usize = 256 << 10;

/// A writer of messages. Small ones are gathered until [`Writer::flush`]; large ones are written at once, without a
/// copy.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    output: W,
    gathered: Vec<u8>,
    sequence: u64,
}

impl<W: Write> Writer<W> {
    /// Returns a writer to `output`, which begins with the preamble.
    pub(crate) fn new(output: W) -> Writer<W> {
        Writer { output, gathered: Preamble::CURRENT.as_bytes().to_vec(), sequence: 0 }
    }

    /// Continues with another output. What was gathered goes there.
    pub(crate) fn with<V: Write>(self, output: V) -> Writer<V> {
        Writer { output, gathered: self.gathered, sequence: self.sequence }
    }

    /// Writes one message.
    pub(crate) fn write<'a>(&mut self, message: impl Into<Message<'a>>) -> Result<(), Error> {
        let message = message.into();
        let (first, data) = message.payload();
        let header = FrameHeader::for_payload(message.kind(), self.sequence, &[&first, data]);
        self.sequence += 1;
        self.gathered.extend_from_slice(&header.to_bytes());
        self.gathered.extend_from_slice(&first);
        if data.len() >= LARGE {
            write_both(&mut self.output, &self.gathered, data).map_err(unwritten)?;
            self.gathered.clear();
        } else {
            self.gathered.extend_from_slice(data);
            if self.gathered.len() >= GATHER {
                self.write_gathered().map_err(unwritten)?;
            }
        }
        Ok(())
    }

    /// Writes all gathered bytes.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.write_gathered().and_then(|()| self.output.flush()).map_err(unwritten)
    }

    fn write_gathered(&mut self) -> io::Result<()> {
        self.output.write_all(&self.gathered)?;
        self.gathered.clear();
        Ok(())
    }
}

fn write_both(output: &mut impl Write, mut first: &[u8], mut second: &[u8]) -> io::Result<()> {
    while !first.is_empty() {
        match output.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                let of_first = count.min(first.len());
                first = &first[of_first..];
                second = &second[count - of_first..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    output.write_all(second)
}
