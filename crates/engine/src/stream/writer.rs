//! Frames onto a byte stream.

use std::io::{self, IoSlice, Write};

use zerocopy::IntoBytes;

use super::frame::{FrameHeader, HEADER_BYTES, Preamble};
use super::message::Message;

/// Data from this size on goes out by itself; less is gathered.
const LARGE: usize = 32 << 10;
/// Gathered bytes go out from this size on.
const GATHER: usize = 256 << 10;

/// Writes frames. Small ones are gathered until [`Writer::flush`]; large ones go out at once, without a copy.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    gathered: Vec<u8>,
    sequence: u64,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Writes to `output`, beginning with the preamble.
    pub fn new(output: W) -> Writer<W> {
        let gathered = Preamble::CURRENT.as_bytes().to_vec();
        let bytes = gathered.len() as u64;
        Writer { output, gathered, sequence: 0, bytes }
    }

    /// Bytes written so far, gathered ones included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is behind the writer.
    pub fn get_ref(&self) -> &W {
        &self.output
    }

    /// What is behind the writer. What has been gathered and not been flushed is lost.
    pub fn into_inner(self) -> W {
        self.output
    }

    /// Writes one message.
    pub fn send(&mut self, message: &Message<'_>) -> io::Result<()> {
        let (first, data) = message.payload();
        let header = FrameHeader::for_payload(message.kind(), self.sequence, &[&first, data]);
        self.sequence += 1;
        self.gathered.extend_from_slice(&header.to_bytes());
        self.gathered.extend_from_slice(&first);
        self.bytes += (HEADER_BYTES + first.len() + data.len()) as u64;
        if data.len() >= LARGE {
            write_both(&mut self.output, &self.gathered, data)?;
            self.gathered.clear();
        } else {
            self.gathered.extend_from_slice(data);
            if self.gathered.len() >= GATHER {
                self.write_gathered()?;
            }
        }
        Ok(())
    }

    /// Sends out everything.
    pub fn flush(&mut self) -> io::Result<()> {
        self.write_gathered()?;
        self.output.flush()
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
