//! Execution of the queue's jobs, one slice at a time.
//!
//! A job begins when its descriptor is read and ends when its completion is written. In between it is part of
//! the device's state and migrates with it.

use crc_fast::{CrcAlgorithm, Digest};
use zerocopy::{FromZeros, IntoBytes};

use super::Accel;
use super::queue::{
    Completion, Descriptor, Operation, SLICE_BYTES, STATUS_DATA_FAULT, STATUS_DONE, STATUS_FETCH_FAULT,
    STATUS_INVALID,
};
use super::registers::{INTERRUPT_COMPLETION, fold_digest};

/// A job in progress.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Job {
    descriptor: Descriptor,
    operation: Operation,
    /// Bytes done: a multiple of [`SLICE_BYTES`], less than the length.
    done: u64,
    /// The checksum of these bytes for [`Operation::Checksum`], else 0.
    checksum: u32,
}

impl Job {
    /// Starts a job; `None` for an invalid descriptor.
    fn begin(descriptor: Descriptor, state_bytes: u64) -> Option<Job> {
        let operation = descriptor.operation(state_bytes)?;
        Some(Job { descriptor, operation, done: 0, checksum: 0 })
    }

    /// Restores a job that another engine started; `None` if no engine can have such a job.
    pub(super) fn resume(descriptor: Descriptor, done: u64, checksum: u32, state_bytes: u64) -> Option<Job> {
        let job = Job { done, checksum, ..Job::begin(descriptor, state_bytes)? };
        let can_be_there = done < descriptor.length && done.is_multiple_of(SLICE_BYTES);
        let has_checksum = matches!(job.operation, Operation::Checksum { .. }) && done > 0;
        (can_be_there && (has_checksum || checksum == 0)).then_some(job)
    }

    pub(super) fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    pub(super) fn done(&self) -> u64 {
        self.done
    }

    pub(super) fn checksum(&self) -> u32 {
        self.checksum
    }
}

impl Accel {
    /// Executes about [`SLICE_BYTES`] of work, if the function may start DMA. Returns whether work remains.
    pub(super) fn work(&mut self) -> bool {
        if self.function.dma().is_none() {
            return false;
        }
        let mut budget = SLICE_BYTES;
        while budget > 0 && self.machine.registers.has_work() {
            let moved = match self.machine.job {
                None => {
                    self.fetch();
                    size_of::<Descriptor>() as u64
                }
                Some(job) => self.slice(job),
            };
            budget = budget.saturating_sub(moved);
        }
        self.show_line();
        self.machine.registers.has_work()
    }

    fn fetch(&mut self) {
        let mut descriptor = Descriptor::new_zeroed();
        let iova = self.machine.registers.descriptor_iova();
        let read = self.function.dma().map(|dma| dma.read(iova, descriptor.as_mut_bytes()));
        if !matches!(read, Some(Ok(()))) {
            self.complete(0, STATUS_FETCH_FAULT, 0);
            return;
        }
        self.machine.job = Job::begin(descriptor, self.config.state_bytes);
        if self.machine.job.is_none() {
            self.complete(descriptor.tag, STATUS_INVALID, 0);
        }
    }

    /// Executes one slice of `job` and returns its size in bytes.
    fn slice(&mut self, mut job: Job) -> u64 {
        let count = SLICE_BYTES.min(job.descriptor.length - job.done);
        let Some(dma) = self.function.dma() else { return count };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(SLICE_BYTES as usize, 0);
        let data = &mut buffer[..count as usize];
        let outcome = match job.operation {
            Operation::Copy { source, destination } => {
                dma.read(source + job.done, data).and_then(|()| dma.write(destination + job.done, data))
            }
            Operation::Fill { destination, pattern } => {
                repeat(pattern, data);
                dma.write(destination + job.done, data)
            }
            Operation::Checksum { source } => dma.read(source + job.done, data).map(|()| {
                job.checksum = extend_checksum(job.checksum, data);
            }),
            Operation::Scramble { offset, seed } => {
                scramble(seed, offset + job.done, data);
                self.change(offset + job.done, data);
                Ok(())
            }
        };
        self.buffer = buffer;
        if outcome.is_err() {
            self.complete(job.descriptor.tag, STATUS_DATA_FAULT, job.done);
            return count;
        }
        job.done += count;
        if job.done < job.descriptor.length {
            self.machine.job = Some(job);
        } else {
            let is_checksum = matches!(job.operation, Operation::Checksum { .. });
            let result = if is_checksum { u64::from(job.checksum) } else { job.done };
            self.complete(job.descriptor.tag, STATUS_DONE, result);
        }
        count
    }

    fn complete(&mut self, tag: u64, status: u32, result: u64) {
        let registers = &mut self.machine.registers;
        registers.completed = registers.completed.wrapping_add(1);
        registers.digest = fold_digest(registers.digest, tag, status, result);
        let record = Completion { tag, result, status, index: registers.head, sequence: registers.completed };
        let iova = registers.completion_iova();
        let (rest, sequence) = record.as_bytes().split_at(std::mem::offset_of!(Completion, sequence));
        let is_written = self.function.dma().is_some_and(|dma| {
            let written = dma.write(iova, rest).and_then(|()| {
                // A guest that polls the ring must not see the sequence number before the rest of the record.
                std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
                dma.write(iova + rest.len() as u64, sequence)
            });
            written.is_ok()
        });
        registers.head = registers.head.wrapping_add(1);
        self.machine.job = None;
        let mut interrupt = registers.raise(INTERRUPT_COMPLETION);
        for failed in [status != STATUS_DONE, !is_written] {
            interrupt |= failed && registers.error();
        }
        self.note_in_state();
        if interrupt {
            self.interrupt();
        }
    }

    /// Mixes the digest, which depends on all completions so far, into the word of the own state that it selects.
    fn note_in_state(&mut self) {
        let digest = self.machine.registers.digest;
        let offset = digest % (self.config.state_bytes / 8) * 8;
        let mut word = [0; 8];
        self.state.read(offset, &mut word);
        let word = u64::from_le_bytes(word).rotate_left(9) ^ digest;
        self.change(offset, &word.to_le_bytes());
    }
}

fn repeat(pattern: u64, data: &mut [u8]) {
    for chunk in data.chunks_mut(8) {
        chunk.copy_from_slice(&pattern.to_le_bytes()[..chunk.len()]);
    }
}

/// Extends a CRC-32 (ISO-HDLC) by `data`. The CRC of no bytes is 0.
fn extend_checksum(before: u32, data: &[u8]) -> u32 {
    let state = u64::from(before ^ u32::MAX);
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32IsoHdlc, state);
    digest.update(data);
    digest.finalize() as u32
}

/// Fills a range of the own state, at a multiple of 8, with bytes generated from a seed and their offset.
pub(super) fn scramble(seed: u64, offset: u64, data: &mut [u8]) {
    for (index, chunk) in (offset / 8..).zip(data.chunks_mut(8)) {
        let mut word = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word ^= word >> 31;
        chunk.copy_from_slice(&word.to_le_bytes().as_slice()[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_in_parts_is_that_of_the_whole() {
        let data: Vec<u8> = (0..1000u32).map(|n| (n * 7) as u8).collect();
        assert_eq!(extend_checksum(0, b"123456789"), 0xcbf4_3926, "the algorithm's check value");
        for cut in [0, 1, 8, 500, 999, 1000] {
            let parts = extend_checksum(extend_checksum(0, &data[..cut]), &data[cut..]);
            assert_eq!(parts, extend_checksum(0, &data), "cut at {cut}");
        }
    }

    #[test]
    fn a_pattern_is_repeated_and_cut_at_the_end() {
        let mut data = [0; 11];
        repeat(u64::from_le_bytes(*b"whimbrel"), &mut data);
        assert_eq!(&data, b"whimbrelwhi");
    }

    #[test]
    fn scrambled_bytes_do_not_depend_on_how_they_are_cut() {
        let mut whole = [0; 64];
        scramble(3, 80, &mut whole);
        let mut parts = [0; 64];
        scramble(3, 80, &mut parts[..24]);
        scramble(3, 104, &mut parts[24..]);
        assert_eq!(whole, parts);
        assert!(whole.chunks(8).all(|word| word != [0; 8]));
    }

    #[test]
    fn a_job_can_only_be_resumed_where_one_stops() {
        let copy = Descriptor {
            operation: super::super::queue::OPERATION_COPY,
            source: 0,
            destination: 1 << 30,
            length: 3 * SLICE_BYTES,
            ..Descriptor::default()
        };
        assert!(Job::resume(copy, 2 * SLICE_BYTES, 0, 1024).is_some());
        for (done, checksum) in [(3 * SLICE_BYTES, 0), (SLICE_BYTES + 8, 0), (u64::MAX, 0), (0, 1)] {
            assert_eq!(Job::resume(copy, done, checksum, 1024), None, "{done} {checksum}");
        }
        assert_eq!(Job::resume(Descriptor { length: 0, ..copy }, 0, 0, 1024), None);
    }
}
