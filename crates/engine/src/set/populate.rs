//! Populating memory ahead of the data: a thread takes the page faults, so that they do not delay the network.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::memory::{Ram, RamRegion};

/// Bytes populated in one request to the kernel.
const STEP: u64 = 256 << 10;

/// The next memory to populate, shared by the thread that receives memory ([`Arrival`](super::Arrival)) and one that
/// populates it.
///
/// ```
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
/// use whimbrel_engine::set::{Arrival, Population};
///
/// let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
/// let population = Population::new();
/// std::thread::scope(|scope| {
///     scope.spawn(|| population.run(&memory));
///     let mut arrival = Arrival::new(&memory).populated_by(&population);
///     for address in (0..4 << 20).step_by(1 << 20) {
///         arrival.write(address, &[7; 1 << 20]).unwrap();
///     }
///     // The thread ends when the arrival is dropped.
/// });
/// ```
#[derive(Debug, Default)]
pub struct Population {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The next memory to populate: start and end.
    wanted: (u64, u64),
    waits: bool,
    closed: bool,
}

impl Population {
    /// Returns a queue without requests.
    pub fn new() -> Population {
        Population::default()
    }

    /// Populates the requested memory until [`Population::close`].
    pub fn run(&self, ram: &dyn Ram) {
        while let Some(next) = self.next() {
            ram.populate(next.start, next.size);
        }
    }

    /// Ends [`Population::run`], even if it starts later.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }

    /// Requests the memory from `start` to `end`, which lies in one region. An earlier request that is not populated
    /// yet is dropped unless this one continues it: its data has arrived.
    pub(super) fn request(&self, start: u64, end: u64) {
        let mut state = self.lock();
        let done = if (state.wanted.0..=end).contains(&start) && start <= state.wanted.1 {
            // The rest of the previous request and its continuation.
            start.max(state.wanted.0)
        } else if start < state.wanted.0 && state.wanted.0 <= end {
            // Populated already up to there.
            state.wanted.0
        } else {
            start
        };
        state.wanted = (done, end);
        if state.waits && done < end {
            self.wake.notify_one();
        }
    }

    /// Waits for the next memory to populate; `None` once closed.
    fn next(&self) -> Option<RamRegion> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            let (start, end) = state.wanted;
            if start < end {
                let size = STEP.min(end - start);
                state.wanted.0 = start + size;
                return Some(RamRegion { start, size });
            }
            state.waits = true;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waits = false;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(population: &Population) -> (u64, u64) {
        let next = population.next().unwrap();
        (next.start, next.size)
    }

    #[test]
    fn a_request_that_follows_goes_on_where_the_last_one_is() {
        let population = Population::new();
        population.request(0, 2 * STEP);
        assert_eq!(take(&population), (0, STEP));
        // The data has arrived up to here, and memory up to there has been populated.
        population.request(STEP / 2, 3 * STEP);
        assert_eq!(take(&population), (STEP, STEP));
        assert_eq!(take(&population), (2 * STEP, STEP));
        // The data has passed the populated memory.
        population.request(3 * STEP, 5 * STEP);
        population.request(4 * STEP, 5 * STEP);
        assert_eq!(take(&population), (4 * STEP, STEP));
    }

    #[test]
    fn a_request_elsewhere_replaces_the_last_one() {
        let population = Population::new();
        population.request(0, 8 * STEP);
        assert_eq!(take(&population), (0, STEP));
        population.request(100 * STEP, 100 * STEP + 1);
        assert_eq!(take(&population), (100 * STEP, 1));
        population.close();
        assert!(population.next().is_none());
    }

    #[test]
    fn closing_ends_a_thread_that_waits() {
        struct Nothing;
        impl Ram for Nothing {
            fn regions(&self) -> Vec<RamRegion> {
                Vec::new()
            }
            fn read(&self, _: u64, _: &mut [u8]) -> Result<(), crate::RamError> {
                Ok(())
            }
            fn write(&self, _: u64, _: &[u8]) -> Result<(), crate::RamError> {
                Ok(())
            }
            fn clear(&self, _: u64, _: u64) -> Result<(), crate::RamError> {
                Ok(())
            }
        }
        let population = Population::new();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| population.run(&Nothing));
            population.request(0, 10 * STEP);
            population.close();
            thread.join().unwrap();
        });
    }
}
