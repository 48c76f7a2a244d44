//! Execution of the queue's jobs, one slice at a time.
//!
//! A job begins when its descriptor is read and ends when its completion is written. In between it is part of
//! the device's state and migrates with it.
//!
//! Memory may have to be asked for from its owner. The job then waits for one access at a time, which the core makes
//! while the device serves requests ([`AsyncDma`]).

use std::mem::offset_of;

use crc_fast::{CrcAlgorithm, Digest};
use whimbrel_device::dma::{DmaAccess, DmaFault};
use whimbrel_device::{AsyncDma, Context};
use zerocopy::{FromBytes, IntoBytes};

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

    /// Returns the bytes of the next slice.
    fn slice_bytes(&self) -> u64 {
        SLICE_BYTES.min(self.descriptor.length - self.done)
    }

    /// Returns the IOVA of the next slice's data to read.
    fn source(&self) -> u64 {
        self.descriptor.source + self.done
    }

    /// Returns the IOVA of the next slice's data to write.
    fn destination(&self) -> u64 {
        self.descriptor.destination + self.done
    }
}

impl AsyncDma for Accel {
    fn next_access(&mut self, _: &Context) -> Option<DmaAccess> {
        self.waits_for.take()
    }

    fn access_done(&mut self, _: &Context, access: DmaAccess, result: Result<(), DmaFault>) {
        if access.tag == self.attempt {
            self.accessed(access, result.is_ok());
            self.show_line();
        }
    }
}

/// The next access to memory. It is no part of the device's state: a device that forgets it begins the slice again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// None yet: a job or one of its slices begins.
    Begin,
    /// Reads the descriptor.
    Fetch,
    /// Reads the data of the job's slice.
    Read,
    /// Writes the data of the job's slice.
    Write,
    /// Writes a completion but for its sequence number.
    Record(Completion),
    /// Writes its sequence number, at an IOVA.
    Sequence(Completion, u64),
}

impl Accel {
    /// Executes about [`SLICE_BYTES`] of work, if the function may start DMA, up to an access that waits for the
    /// memory's owner. Returns whether work remains.
    pub(super) fn work(&mut self) -> bool {
        // One that waits is already made of its step.
        if self.function.dma().is_none() || self.waits_for.is_some() {
            return false;
        }
        let mut budget = SLICE_BYTES;
        while self.step != Step::Begin || budget > 0 && self.machine.registers.has_work() {
            if self.step == Step::Begin {
                budget = budget.saturating_sub(self.begin());
            }
            let Some(mut access) = self.access() else { continue };
            let Some(result) = self.function.dma().and_then(|dma| dma.access_now(&mut access)) else {
                self.waits_for = Some(access);
                break;
            };
            self.accessed(access, result.is_ok());
        }
        self.show_line();
        self.machine.registers.has_work()
    }

    /// Forgets the access in flight, and what was done of the slice.
    pub(super) fn forget_access(&mut self) {
        self.step = Step::Begin;
        self.waits_for = None;
        self.attempt = self.attempt.wrapping_add(1);
    }

    /// Begins a job or the next slice, and returns its size in bytes.
    fn begin(&mut self) -> u64 {
        let Some(job) = self.machine.job else {
            self.step = Step::Fetch;
            return size_of::<Descriptor>() as u64;
        };
        let count = job.slice_bytes();
        match job.operation {
            Operation::Copy { .. } | Operation::Checksum { .. } => self.step = Step::Read,
            Operation::Fill { pattern, .. } => {
                self.buffer.resize(count as usize, 0);
                repeat(pattern, &mut self.buffer);
                self.step = Step::Write;
            }
            Operation::Scramble { offset, seed } => {
                let mut data = std::mem::take(&mut self.buffer);
                data.resize(count as usize, 0);
                scramble(seed, offset + job.done, &mut data);
                self.change(offset + job.done, &data);
                self.buffer = data;
                self.slice_done(job);
            }
        }
        count
    }

    /// Returns the next access to memory; `None` if a slice begins.
    fn access(&mut self) -> Option<DmaAccess> {
        let access = match (self.step, self.machine.job) {
            (Step::Fetch, _) => {
                let mut descriptor = std::mem::take(&mut self.entry);
                descriptor.resize(size_of::<Descriptor>(), 0);
                DmaAccess::read(self.machine.registers.descriptor_iova(), descriptor)
            }
            (Step::Read, Some(job)) => {
                let mut data = std::mem::take(&mut self.buffer);
                data.resize(job.slice_bytes() as usize, 0);
                DmaAccess::read(job.source(), data)
            }
            (Step::Write, Some(job)) => DmaAccess::write(job.destination(), std::mem::take(&mut self.buffer)),
            (Step::Record(record), _) => {
                let bytes = &record.as_bytes()[..offset_of!(Completion, sequence)];
                DmaAccess::write(self.machine.registers.completion_iova(), self.entry(bytes))
            }
            (Step::Sequence(record, iova), _) => {
                self.count(&record);
                // A guest that polls the ring must not see the sequence number before the rest of the record.
                std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
                DmaAccess::write(iova, self.entry(record.sequence.as_bytes()))
            }
            (Step::Begin | Step::Read | Step::Write, _) => return None,
        };
        Some(access.tag(self.attempt))
    }

    /// Returns bytes of a ring's entry, in memory that was used before.
    fn entry(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut entry = std::mem::take(&mut self.entry);
        entry.clear();
        entry.extend_from_slice(bytes);
        entry
    }

    /// Continues after the access of the current step.
    fn accessed(&mut self, access: DmaAccess, is_ok: bool) {
        match (self.step, self.machine.job) {
            (Step::Fetch, _) => {
                let descriptor = Descriptor::read_from_bytes(&access.data).ok().filter(|_| is_ok);
                self.entry = access.data;
                self.fetched(descriptor);
            }
            (Step::Read | Step::Write, Some(job)) => {
                self.buffer = access.data;
                self.slice_accessed(job, is_ok);
            }
            (Step::Record(record), _) => {
                self.entry = access.data;
                if is_ok {
                    let iova = access.iova + offset_of!(Completion, sequence) as u64;
                    self.step = Step::Sequence(record, iova);
                } else {
                    self.count(&record);
                    self.completed(&record, false);
                }
            }
            (Step::Sequence(record, _), _) => {
                self.entry = access.data;
                self.completed(&record, is_ok);
            }
            (Step::Begin | Step::Read | Step::Write, _) => {}
        }
    }

    fn fetched(&mut self, descriptor: Option<Descriptor>) {
        let Some(descriptor) = descriptor else {
            self.complete(0, STATUS_FETCH_FAULT, 0);
            return;
        };
        self.machine.job = Job::begin(descriptor, self.config.state_bytes);
        self.step = Step::Begin;
        if self.machine.job.is_none() {
            self.complete(descriptor.tag, STATUS_INVALID, 0);
        }
    }

    fn slice_accessed(&mut self, mut job: Job, is_ok: bool) {
        if !is_ok {
            self.complete(job.descriptor.tag, STATUS_DATA_FAULT, job.done);
            return;
        }
        match (self.step, job.operation) {
            (Step::Read, Operation::Copy { .. }) => self.step = Step::Write,
            (Step::Read, _) => {
                job.checksum = extend_checksum(job.checksum, &self.buffer);
                self.slice_done(job);
            }
            _ => self.slice_done(job),
        }
    }

    fn slice_done(&mut self, mut job: Job) {
        job.done += job.slice_bytes();
        if job.done < job.descriptor.length {
            self.machine.job = Some(job);
            self.step = Step::Begin;
        } else {
            let is_checksum = matches!(job.operation, Operation::Checksum { .. });
            let result = if is_checksum { u64::from(job.checksum) } else { job.done };
            self.complete(job.descriptor.tag, STATUS_DONE, result);
        }
    }

    /// Begins to write a job's completion.
    fn complete(&mut self, tag: u64, status: u32, result: u64) {
        let registers = &self.machine.registers;
        let sequence = registers.completed.wrapping_add(1);
        self.step = Step::Record(Completion { tag, result, status, index: registers.head, sequence });
    }

    /// Counts a job as completed, right before its sequence number is written. A guest that sees the number in the ring
    /// may use the entry at once, before the device learns that it was written. Not earlier: a device that is stopped
    /// before the number is asked for writes it at its destination.
    fn count(&mut self, record: &Completion) {
        let registers = &mut self.machine.registers;
        registers.completed = record.sequence;
        registers.digest = fold_digest(registers.digest, record.tag, record.status, record.result);
        registers.head = registers.head.wrapping_add(1);
        self.machine.job = None;
        self.note_in_state();
    }

    /// Ends a job whose completion was written, or cannot be.
    fn completed(&mut self, record: &Completion, is_written: bool) {
        self.step = Step::Begin;
        let registers = &mut self.machine.registers;
        let mut interrupt = registers.raise(INTERRUPT_COMPLETION);
        for failed in [record.status != STATUS_DONE, !is_written] {
            interrupt |= failed && registers.error();
        }
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
