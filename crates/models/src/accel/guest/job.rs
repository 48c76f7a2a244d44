//! The guest's jobs, and the verification of their results.

use crc_fast::{CrcAlgorithm, Digest};

use super::{GuestDriver, GuestError, Platform};
use crate::accel::queue::{
    Completion, Descriptor, OPERATION_CHECKSUM, OPERATION_COPY, OPERATION_FILL, OPERATION_SCRAMBLE,
    STATUS_DONE,
};

/// Constructors for the jobs that a guest driver submits.
impl Descriptor {
    /// A copy of `length` bytes.
    pub fn copy(tag: u64, source: u64, destination: u64, length: u64) -> Descriptor {
        Descriptor { operation: OPERATION_COPY, tag, source, destination, length, ..Descriptor::default() }
    }

    /// A fill of `length` bytes with a repeated pattern.
    pub fn fill(tag: u64, destination: u64, length: u64, pattern: u64) -> Descriptor {
        Descriptor { operation: OPERATION_FILL, tag, destination, length, pattern, ..Descriptor::default() }
    }

    /// A checksum of `length` bytes.
    pub fn checksum(tag: u64, source: u64, length: u64) -> Descriptor {
        Descriptor { operation: OPERATION_CHECKSUM, tag, source, length, ..Descriptor::default() }
    }

    /// A change of `length` bytes of the device's own state from `offset` on.
    pub fn scramble(tag: u64, offset: u64, length: u64, seed: u64) -> Descriptor {
        Descriptor {
            operation: OPERATION_SCRAMBLE,
            tag,
            destination: offset,
            length,
            pattern: seed,
            ..Descriptor::default()
        }
    }
}

impl Completion {
    /// Returns whether the whole job succeeded, by tag, status and byte count. A checksum's value is not compared.
    pub fn is_success_of(&self, job: &Descriptor) -> bool {
        let has_result = job.operation == OPERATION_CHECKSUM || self.result == job.length;
        self.tag == job.tag && self.status == STATUS_DONE && has_result
    }
}

impl<P: Platform> GuestDriver<P> {
    /// Returns whether a job's completion is correct and memory contains its results.
    ///
    /// The job's memory must be unchanged since. A scramble job is checked by its completion only.
    pub fn verify(
        &mut self,
        job: &Descriptor,
        completion: &Completion,
    ) -> Result<bool, GuestError<P::Error>> {
        if !completion.is_success_of(job) {
            return Ok(false);
        }
        let Descriptor { source, destination, length, pattern, .. } = *job;
        let mut digest = Digest::new(CrcAlgorithm::Crc32IsoHdlc);
        let (mut piece, mut other) = (Vec::new(), Vec::new());
        let mut done = 0;
        while done < length {
            let count = (length - done).min(PIECE_BYTES) as usize;
            piece.resize(count, 0);
            other.resize(count, 0);
            let right = match job.operation {
                OPERATION_COPY => {
                    self.read_memory(source + done, &mut other)?;
                    self.read_memory(destination + done, &mut piece)?;
                    piece == other
                }
                OPERATION_FILL => {
                    self.read_memory(destination + done, &mut piece)?;
                    piece.chunks(8).all(|word| *word == pattern.to_le_bytes()[..word.len()])
                }
                OPERATION_CHECKSUM => {
                    self.read_memory(source + done, &mut piece)?;
                    digest.update(&piece);
                    true
                }
                _ => true,
            };
            if !right {
                return Ok(false);
            }
            done += count as u64;
        }
        Ok(job.operation != OPERATION_CHECKSUM || digest.finalize() == completion.result)
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), GuestError<P::Error>> {
        self.platform.read_memory(address, data).map_err(GuestError::Access)
    }
}

/// Bytes verified per step, a multiple of the pattern's 8.
const PIECE_BYTES: u64 = 64 << 10;
