//! The state of one device that runs while it is sent.

use std::io::Write;

use whimbrel_protocol::precopy::Progress;
use whimbrel_user::{DataFile, SavingRead};

use crate::archive::writer::Writer;
use crate::error::Error;
use crate::proto::message::Message;

/// The state of one device, as far as it was sent.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) data: Option<DataFile>,
    pub(super) has_precopy: bool,
    pub(super) precopy: Progress,
    pub(super) sent: u64,
}

impl Stream {
    /// Returns whether all initial data has been sent. A device without pre-copy has none.
    pub(super) fn initial_is_sent(&self) -> bool {
        !self.has_precopy || self.precopy.initial_done()
    }

    /// Sends up to `most` bytes, or up to a temporary end, and returns how many were sent.
    pub(super) fn send(
        &mut self,
        writer: &mut Writer<impl Write>,
        device: u32,
        most: u64,
        chunk: &mut [u8],
    ) -> Result<u64, Error> {
        let Some(data) = self.data.as_mut().filter(|_| self.has_precopy) else { return Ok(0) };
        let mut sent = 0;
        while sent < most {
            let room = usize::try_from(most - sent).unwrap_or(usize::MAX).min(chunk.len());
            let SavingRead::Data(count) = data.read(&mut chunk[..room])? else { break };
            let ends = data.ends_transaction();
            writer.write(Message::DeviceState { device, ends, data: &chunk[..count] })?;
            self.precopy.read(count as u64);
            sent += count as u64;
        }
        self.sent += sent;
        Ok(sent)
    }
}
