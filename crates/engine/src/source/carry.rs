//! Memory and device state on their way out, a chunk at a time.

use std::time::Instant;

use whimbrel_user::SavingRead;

use super::Sending;
use crate::error::Error;
use crate::memory::{PAGE, Ram, stretches};
use crate::stream::{CHUNK, Message};

impl Sending<'_> {
    /// Sends all marked memory; returns how many bytes that was.
    pub(super) fn send_memory(&mut self) -> Result<u64, Error> {
        let (Some(dirty), Some(ram)) = (&mut self.dirty, self.source.ram) else { return Ok(0) };
        let bitmaps = dirty.take();
        let regions = dirty.regions().to_vec();
        let mut total = 0;
        for (region, bitmap) in regions.iter().zip(&bitmaps) {
            for run in bitmap.runs() {
                let mut offset = run.first as u64 * PAGE;
                let end = (offset + run.count as u64 * PAGE).min(region.size);
                while offset < end {
                    let count = (end - offset).min(CHUNK as u64) as usize;
                    let mut chunk = std::mem::take(&mut self.chunk);
                    let sent = self.send_piece(ram, region.start + offset, &mut chunk[..count]);
                    self.chunk = chunk;
                    sent?;
                    offset += count as u64;
                    total += count as u64;
                    self.moved(count as u64);
                }
            }
        }
        self.report.memory_bytes += total;
        Ok(total)
    }

    pub(super) fn send_piece(&mut self, ram: &dyn Ram, address: u64, chunk: &mut [u8]) -> Result<(), Error> {
        let started = Instant::now();
        ram.read(address, chunk)?;
        for (at, length, zero) in stretches(chunk) {
            if zero && length == chunk.len() {
                self.scanning += started.elapsed();
            }
            let address = address + at as u64;
            if zero {
                self.report.zero_bytes += length as u64;
                self.send(&Message::MemoryZero { address, length: length as u64 })?;
            } else {
                self.send(&Message::Memory { address, data: &chunk[at..at + length] })?;
            }
        }
        Ok(())
    }

    /// Sends the device's state as far as it was there when the round began, so that a device that changes as fast as
    /// it is read does not hold the round for ever.
    pub(super) fn send_precopy(&mut self, there: u64) -> Result<u64, Error> {
        let mut sent = 0;
        while let Some(count) = self.send_state_chunk()? {
            sent += count;
            self.precopy.read(count);
            if sent >= there {
                break;
            }
        }
        Ok(sent)
    }

    pub(super) fn send_stop_copy(&mut self) -> Result<u64, Error> {
        let mut sent = 0;
        while let Some(count) = self.send_state_chunk()? {
            sent += count;
        }
        Ok(sent)
    }

    /// Sends one chunk of device state; `None` at the end, for now or for good.
    pub(super) fn send_state_chunk(&mut self) -> Result<Option<u64>, Error> {
        let Some(data) = &mut self.data else { return Ok(None) };
        let mut chunk = std::mem::take(&mut self.chunk);
        let read = data.read(&mut chunk);
        let ends = data.ends_transaction();
        let sent = match read {
            Ok(SavingRead::Data(count)) => self
                .send(&Message::DeviceState { device: 0, ends, data: &chunk[..count] })
                .map(|()| Some(count as u64)),
            Ok(SavingRead::TemporaryEnd | SavingRead::End) => Ok(None),
            Err(error) => Err(error.into()),
        };
        self.chunk = chunk;
        if let Ok(Some(count)) = sent {
            self.report.device_bytes += count;
            self.moved(count);
        }
        sent
    }
}
