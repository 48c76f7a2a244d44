//! The system's requests that make up an operation, one after the other, and what follows from each result. No I/O.

use rustix::fs::FallocateFlags;
use whimbrel_device::Errno;

use super::{Done, Operation};

/// Punches a hole, which reads as zeros. On a block device that discards, the kernel discards blocks that then read as
/// zeros, and zeros others.
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// Zeros to write where a range cannot be zeroed otherwise.
pub(super) static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A request to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Reads at this offset of the image into the operation's data, from byte `from` of it on.
    Read { offset: u64, from: usize },
    /// Writes the operation's data from byte `from` on. If `durable`, the data is on the disk at the end.
    Write { offset: u64, from: usize, durable: bool },
    /// Writes so many of [`ZEROS`].
    WriteZeros { offset: u64, count: usize },
    /// fallocate(2).
    Allocate { flags: FallocateFlags, offset: u64, length: u64 },
    /// fdatasync(2).
    Sync,
}

/// An operation in progress.
#[derive(Debug)]
pub(super) struct Task {
    tag: u64,
    operation: Operation,
    /// Bytes of data, or of a range that takes written zeros, that were moved; or ranges that were deallocated.
    moved: usize,
    /// Ways to zero the range that the file does not support.
    refused: usize,
    is_zeroed: bool,
    is_synced: bool,
    /// The file does not support durable writes.
    lacks_durable_writes: bool,
    failure: Option<Errno>,
}

impl Task {
    pub(super) fn new(tag: u64, operation: Operation) -> Task {
        Task {
            tag,
            operation,
            moved: 0,
            refused: 0,
            is_zeroed: false,
            is_synced: false,
            lacks_durable_writes: false,
            failure: None,
        }
    }

    /// Returns the next request; `None` at the end.
    pub(super) fn next(&self) -> Option<Request> {
        if self.failure.is_some() {
            return None;
        }
        let from = self.moved;
        let sync = (!self.is_synced).then_some(Request::Sync);
        match &self.operation {
            Operation::Read { durable: true, .. } if !self.is_synced => sync,
            Operation::Read { offset, data, .. } => {
                (from < data.len()).then_some(Request::Read { offset: offset + from as u64, from })
            }
            Operation::Write { offset, data, durable } => {
                let writes_through = *durable && !self.lacks_durable_writes;
                if from < data.len() {
                    let offset = offset + from as u64;
                    return Some(Request::Write { offset, from, durable: writes_through });
                }
                if *durable && !writes_through { sync } else { None }
            }
            Operation::Zero { offset, length, deallocate, durable } => {
                if self.is_zeroed {
                    return if *durable { sync } else { None };
                }
                let ways = if *deallocate { [PUNCH, ZERO] } else { [ZERO, PUNCH] };
                if let Some(flags) = ways.get(self.refused) {
                    return Some(Request::Allocate { flags: *flags, offset: *offset, length: *length });
                }
                let count = (length - from as u64).min(ZEROS.len() as u64) as usize;
                Some(Request::WriteZeros { offset: offset + from as u64, count })
            }
            Operation::Deallocate(ranges) => ranges.get(from).map(|(offset, length)| Request::Allocate {
                flags: PUNCH,
                offset: *offset,
                length: *length,
            }),
            Operation::Flush => sync,
        }
    }

    /// Continues after a request, which has moved so many bytes, if any.
    pub(super) fn take_result(&mut self, request: Request, result: Result<usize, Errno>) {
        match (request, result) {
            // Nothing was done: a signal came, or the thread that had begun the request has ended.
            (_, Err(Errno::EINTR | Errno::ECANCELED)) => {}
            (Request::Write { durable: true, .. }, Err(Errno::EOPNOTSUPP)) => {
                self.lacks_durable_writes = true;
            }
            // A hint: what cannot be deallocated stays as it is.
            (Request::Allocate { .. }, Err(Errno::EOPNOTSUPP)) => match &self.operation {
                Operation::Deallocate(_) => self.moved += 1,
                _ => self.refused += 1,
            },
            (_, Err(errno)) => self.failure = Some(errno),
            (Request::Sync, Ok(_)) => self.is_synced = true,
            (Request::Allocate { .. }, Ok(_)) => match &self.operation {
                Operation::Deallocate(_) => self.moved += 1,
                _ => self.is_zeroed = true,
            },
            // The image has become shorter.
            (_, Ok(0)) => self.failure = Some(Errno::EIO),
            (_, Ok(count)) => {
                self.moved += count;
                if let Operation::Zero { length, .. } = self.operation {
                    self.is_zeroed = self.moved as u64 >= length;
                }
            }
        }
    }

    /// Returns the rest of the data, which begins at this byte; empty for an operation without data.
    pub(super) fn data(&self, from: usize) -> &[u8] {
        match &self.operation {
            Operation::Read { data, .. } | Operation::Write { data, .. } => data.get(from..).unwrap_or(&[]),
            _ => &[],
        }
    }

    /// Like [`Task::data`], to fill.
    pub(super) fn data_mut(&mut self, from: usize) -> &mut [u8] {
        match &mut self.operation {
            Operation::Read { data, .. } | Operation::Write { data, .. } => {
                data.get_mut(from..).unwrap_or(&mut [])
            }
            _ => &mut [],
        }
    }

    /// Returns the end of the operation.
    pub(super) fn into_done(self) -> Done {
        let result = self.failure.map_or(Ok(()), Err);
        Done { tag: self.tag, operation: self.operation, result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNSUPPORTED: Result<usize, Errno> = Err(Errno::EOPNOTSUPP);

    /// Gives results to the requests of an operation, and returns the requests and the end.
    fn run(operation: Operation, results: &[Result<usize, Errno>]) -> (Vec<Request>, Result<(), Errno>) {
        let mut task = Task::new(7, operation);
        let mut requests = Vec::new();
        for result in results {
            let request = task.next().expect("a request for each result");
            requests.push(request);
            task.take_result(request, *result);
        }
        assert_eq!(task.next(), None, "after {requests:?}");
        let done = task.into_done();
        assert_eq!(done.tag, 7);
        (requests, done.result)
    }

    fn write(durable: bool) -> Operation {
        Operation::Write { offset: 512, data: vec![1; 1024], durable }
    }

    #[test]
    fn what_was_moved_in_part_is_continued() {
        let read = Operation::Read { offset: 512, data: vec![0; 1024], durable: false };
        let (requests, result) = run(read, &[Ok(1000), Err(Errno::EINTR), Ok(24)]);
        let rest = Request::Read { offset: 1512, from: 1000 };
        assert_eq!(requests, [Request::Read { offset: 512, from: 0 }, rest, rest]);
        assert_eq!(result, Ok(()));
        let (requests, _) = run(write(false), &[Ok(1), Ok(1023)]);
        assert_eq!(requests[1], Request::Write { offset: 513, from: 1, durable: false });
    }

    #[test]
    fn a_request_whose_thread_has_ended_is_made_again() {
        let (requests, result) = run(write(true), &[Err(Errno::ECANCELED), Ok(1024)]);
        assert_eq!(requests[0], requests[1]);
        assert_eq!(result, Ok(()));
    }

    #[test]
    fn an_image_that_has_become_shorter_is_an_error() {
        assert_eq!(run(write(false), &[Ok(512), Ok(0)]).1, Err(Errno::EIO));
        let read = Operation::Read { offset: 512, data: vec![0; 1024], durable: false };
        assert_eq!(run(read, &[Ok(0)]).1, Err(Errno::EIO));
    }

    #[test]
    fn a_durable_read_flushes_first_and_a_failed_flush_ends_it() {
        let read = || Operation::Read { offset: 0, data: vec![0; 512], durable: true };
        let (requests, _) = run(read(), &[Ok(0), Ok(512)]);
        assert_eq!(requests, [Request::Sync, Request::Read { offset: 0, from: 0 }]);
        assert_eq!(run(read(), &[Err(Errno::EIO)]).1, Err(Errno::EIO));
    }

    #[test]
    fn a_file_without_durable_writes_is_flushed_after_the_write() {
        let (requests, result) = run(write(true), &[UNSUPPORTED, Ok(1024), Ok(0)]);
        assert_eq!(requests[1..], [Request::Write { offset: 512, from: 0, durable: false }, Request::Sync]);
        assert_eq!(result, Ok(()));
        assert_eq!(run(write(false), &[UNSUPPORTED]).1, Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn zeros_are_written_where_no_request_makes_them() {
        let length = ZEROS.len() as u64 + 512;
        for (deallocate, ways) in [(false, [ZERO, PUNCH]), (true, [PUNCH, ZERO])] {
            let zero = || Operation::Zero { offset: 512, length, deallocate, durable: true };
            let (requests, result) = run(zero(), &[Ok(0), Ok(0)]);
            assert_eq!(requests, [Request::Allocate { flags: ways[0], offset: 512, length }, Request::Sync]);
            assert_eq!(result, Ok(()));
            let results = [UNSUPPORTED, UNSUPPORTED, Ok(ZEROS.len()), Ok(512), Ok(0)];
            let (requests, _) = run(zero(), &results);
            assert_eq!(requests[1], Request::Allocate { flags: ways[1], offset: 512, length });
            let rest = Request::WriteZeros { offset: 512 + ZEROS.len() as u64, count: 512 };
            assert_eq!(requests[3..], [rest, Request::Sync]);
        }
    }

    #[test]
    fn deallocation_passes_over_what_is_not_supported_and_ends_at_an_error() {
        let deallocate = || Operation::Deallocate(vec![(0, 512), (1024, 512)]);
        let (requests, result) = run(deallocate(), &[UNSUPPORTED, Ok(0)]);
        assert_eq!(requests[1], Request::Allocate { flags: PUNCH, offset: 1024, length: 512 });
        assert_eq!(result, Ok(()));
        assert_eq!(run(deallocate(), &[Err(Errno::EIO)]).1, Err(Errno::EIO));
    }
}
