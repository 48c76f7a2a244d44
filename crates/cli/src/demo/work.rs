//! The program that gives the device work and checks every result: the guest's driver, in a machine without a CPU.
//!
//! Everything it knows lies in guest memory, so that it moves with the memory and goes on at the destination where it
//! was at the source. The jobs and their right results follow from their numbers alone: job by job it fills a block,
//! copies it, has the copy summed, and changes a piece of the device's own state.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crc_fast::CrcAlgorithm;
use parking_lot::{Condvar, Mutex};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::poll::PollContext;
use whimbrel_engine::Ram;
use whimbrel_models::accel::{
    CONTROL_ENABLE, Completion, Descriptor, INTERRUPT_COMPLETION, OPERATION_CHECKSUM, OPERATION_COPY,
    OPERATION_FILL, OPERATION_SCRAMBLE, REGISTER_COMPLETED, REGISTER_COMPLETION_BASE, REGISTER_CONTROL,
    REGISTER_INTERRUPT_ENABLE, REGISTER_INTERRUPT_STATUS, REGISTER_QUEUE_BASE, REGISTER_QUEUE_SIZE,
    REGISTER_STATE_BYTES, REGISTER_TAIL, STATUS_DONE,
};
use whimbrel_uapi::pci::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX};
use whimbrel_user::Device;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::machine::{Machine, Memory};
use super::messages::{Books, Finished};
use crate::failure::Failure;

const VARIABLES: GuestAddress = GuestAddress(0x1000);
const SUBMISSION_RING: u64 = 0x10000;
const COMPLETION_RING: u64 = 0x20000;
const RING_ENTRIES: u64 = 256;
/// Where the blocks begin.
const BLOCKS: u64 = 1 << 20;
/// Places for blocks. Twice as many as can be under way, so that a block is checked before it is written again.
const PLACES: u64 = 256;
const MAX_BLOCK_BYTES: u64 = 64 << 10;
/// Bytes of the device's own state that one job changes.
const SCRAMBLE_BYTES: u64 = 4096;
/// Jobs that belong together: fill, copy, checksum, scramble.
const JOBS: u64 = 4;
/// Jobs before all others, which give all of the device's own state something to hold.
const FIRST_JOBS: u64 = 64;

/// How often the program looks for itself, without an interrupt.
const TICK: Duration = Duration::from_millis(2);
/// How long the last jobs may take.
const DRAINING: Duration = Duration::from_secs(10);

/// What the program knows, as it lies in guest memory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Variables {
    submitted: u64,
    completed: u64,
    misplaced: u64,
    wrong: u64,
}

/// What job `number` (from 0) is.
fn job(number: u64, layout: Layout) -> Descriptor {
    let tag = number + 1;
    let Some(number) = number.checked_sub(FIRST_JOBS) else {
        let (destination, length) = layout.first_scrambled(number);
        let operation = OPERATION_SCRAMBLE;
        return Descriptor {
            operation,
            tag,
            destination,
            length,
            pattern: pattern(number),
            ..Descriptor::default()
        };
    };
    let group = number / JOBS;
    let (first, second) = layout.blocks(group);
    let length = layout.block_bytes;
    match number % JOBS {
        0 => Descriptor {
            operation: OPERATION_FILL,
            tag,
            destination: first,
            length,
            pattern: pattern(group),
            ..Descriptor::default()
        },
        1 => Descriptor {
            operation: OPERATION_COPY,
            tag,
            source: first,
            destination: second,
            length,
            ..Descriptor::default()
        },
        2 => {
            Descriptor { operation: OPERATION_CHECKSUM, tag, source: second, length, ..Descriptor::default() }
        }
        _ => Descriptor {
            operation: OPERATION_SCRAMBLE,
            tag,
            destination: layout.scrambled(group),
            length: layout.scramble_bytes,
            pattern: pattern(group),
            ..Descriptor::default()
        },
    }
}

/// What a group of jobs fills its block with: different for each, and never zero.
fn pattern(group: u64) -> u64 {
    let mut mixed = group.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed ^ mixed >> 32) | 1
}

/// Where things lie in this machine.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// From one place to the next, in bytes.
    stride: u64,
    block_bytes: u64,
    state_bytes: u64,
    scramble_bytes: u64,
}

impl Layout {
    fn new(memory_bytes: u64, state_bytes: u64) -> Layout {
        let stride = (memory_bytes - BLOCKS) / PLACES / 4096 * 4096;
        let block_bytes = (stride / 2 / 4096 * 4096).min(MAX_BLOCK_BYTES);
        let scramble_bytes = SCRAMBLE_BYTES.min(state_bytes) / 8 * 8;
        Layout { stride, block_bytes, state_bytes, scramble_bytes }
    }

    /// The two blocks of a group: a place, and where in its two halves, so that in time all of it is written.
    fn blocks(&self, group: u64) -> (u64, u64) {
        let place = BLOCKS + group % PLACES * self.stride;
        let half = self.stride / 2;
        let spots = half / self.block_bytes;
        let offset = group / PLACES % spots * self.block_bytes;
        (place + offset, place + half + offset)
    }

    /// The part of the state, as offset and length, that one of the first jobs changes: together they change all of it,
    /// but for a rest that is no multiple of 8 bytes. A state too small for so many parts is changed again and again.
    fn first_scrambled(&self, number: u64) -> (u64, u64) {
        let whole = self.state_bytes / 8;
        let part = whole.div_ceil(FIRST_JOBS).max(1);
        let start = (number * part) % whole;
        (start * 8, part.min(whole - start) * 8)
    }

    fn scrambled(&self, group: u64) -> u64 {
        let spots = (self.state_bytes / self.scramble_bytes).max(1);
        // A stride that is coprime to any power of two spreads the writes over all of the state.
        group.wrapping_mul(0x9e37_79b1) % spots * self.scramble_bytes
    }
}

/// What a block holds after it was filled.
fn filled(group: u64, bytes: u64) -> Vec<u8> {
    pattern(group).to_le_bytes().repeat(bytes as usize / 8)
}

/// The program, seated at a machine.
struct Program {
    device: Box<dyn Device>,
    memory: Memory,
    layout: Layout,
    variables: Variables,
    interrupt: EventFd,
    waiting: PollContext<()>,
    /// Bytes the device may still be made to write, from the rate and the time gone by.
    allowance: f64,
    rate: f64,
    last: Instant,
    block: Vec<u8>,
}

/// Prepares memory and device for the program: once, at the source.
pub(super) fn set_up(machine: &Machine<'_>) -> Result<(), Failure> {
    let memory = &machine.memory;
    fill_with_noise(memory)?;
    let mut device = machine.device()?;
    let mut set =
        |register: u64, bytes: &[u8]| device.write_region(VFIO_PCI_BAR0_REGION_INDEX, register, bytes);
    set(REGISTER_QUEUE_SIZE, &(RING_ENTRIES as u32).to_le_bytes())?;
    set(REGISTER_QUEUE_BASE, &SUBMISSION_RING.to_le_bytes())?;
    set(REGISTER_COMPLETION_BASE, &COMPLETION_RING.to_le_bytes())?;
    set(REGISTER_INTERRUPT_ENABLE, &INTERRUPT_COMPLETION.to_le_bytes())?;
    set(REGISTER_CONTROL, &CONTROL_ENABLE.to_le_bytes())?;
    store(memory, VARIABLES, &Variables::new_zeroed())
}

/// Memory that is all zeros would be no burden to move.
fn fill_with_noise(memory: &Memory) -> Result<(), Failure> {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut piece = vec![0u64; 128 << 10];
    for region in Ram::regions(memory) {
        let mut at = 0;
        while at < region.size {
            for word in &mut piece {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                *word = seed;
            }
            let count = (region.size - at).min(size_of_val(piece.as_slice()) as u64);
            Ram::write(memory, region.start + at, &piece.as_bytes()[..count as usize])
                .map_err(|error| Failure::from_error(&error))?;
            at += count;
        }
    }
    // The rings begin empty.
    for ring in [SUBMISSION_RING, COMPLETION_RING] {
        Ram::clear(memory, ring, RING_ENTRIES * size_of::<Descriptor>() as u64)
            .map_err(|error| Failure::from_error(&error))?;
    }
    Ok(())
}

fn load<T: FromBytes + IntoBytes + FromZeros>(memory: &Memory, at: GuestAddress) -> Result<T, Failure> {
    let mut value = T::new_zeroed();
    memory.read_slice(value.as_mut_bytes(), at).map_err(|error| Failure::from_error(&error))?;
    Ok(value)
}

fn store<T: IntoBytes + Immutable>(memory: &Memory, at: GuestAddress, value: &T) -> Result<(), Failure> {
    memory.write_slice(value.as_bytes(), at).map_err(|error| Failure::from_error(&error))
}

/// The program's books, as memory holds them.
pub(super) fn books(memory: &Memory) -> Result<Books, Failure> {
    let Variables { submitted, completed, misplaced, wrong } = load(memory, VARIABLES)?;
    Ok(Books { submitted, completed, misplaced, wrong })
}

/// Whether the device's own state holds something everywhere.
pub(super) fn has_begun(memory: &Memory) -> Result<bool, Failure> {
    Ok(books(memory)?.completed >= FIRST_JOBS)
}

/// How many jobs the device says it has completed.
pub(super) fn completed_by_device(device: &mut dyn Device) -> Result<u64, Failure> {
    read_u64(device, REGISTER_COMPLETED)
}

fn read_u64(device: &mut dyn Device, register: u64) -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    device.read_region(VFIO_PCI_BAR0_REGION_INDEX, register, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

impl Program {
    fn new(machine: &Machine<'_>, rate: u64) -> Result<Program, Failure> {
        let mut device = machine.device()?;
        let interrupt =
            EventFd::new(EFD_NONBLOCK).map_err(|error| Failure::from_io("cannot make an eventfd", &error))?;
        let waiting = PollContext::new()
            .and_then(|waiting| waiting.add(&interrupt, ()).map(|()| waiting))
            .map_err(|error| Failure::new(format!("cannot wait for an eventfd: {error}")))?;
        device.set_irq_triggers(VFIO_PCI_MSI_IRQ_INDEX, 0, &[Some(&interrupt)])?;
        let state_bytes = read_u64(&mut *device, REGISTER_STATE_BYTES)?;
        let memory_bytes = machine.memory.iter().map(vm_memory::GuestMemoryRegion::len).sum();
        Ok(Program {
            device,
            memory: machine.memory.clone(),
            layout: Layout::new(memory_bytes, state_bytes),
            variables: load(&machine.memory, VARIABLES)?,
            interrupt,
            waiting,
            allowance: 0.0,
            rate: rate as f64,
            last: Instant::now(),
            block: Vec::new(),
        })
    }

    /// Waits for an interrupt, or a little.
    fn wait(&self) {
        // Whatever wakes it, the program looks at everything.
        let _ = self.waiting.wait_timeout(TICK);
        let _ = self.interrupt.read();
    }

    /// Sees what is complete, and gives new work if `more`.
    fn step(&mut self, more: bool) -> Result<(), Failure> {
        let acknowledge = INTERRUPT_COMPLETION.to_le_bytes();
        self.device.write_region(VFIO_PCI_BAR0_REGION_INDEX, REGISTER_INTERRUPT_STATUS, &acknowledge)?;
        while self.variables.completed < self.variables.submitted && self.take_completion()? {}
        let now = Instant::now();
        self.allowance += self.rate * (now - self.last).as_secs_f64();
        // A program that was held up makes up for a twentieth of a second at most, and a slow one saves up for a group.
        self.allowance = self.allowance.min((self.rate / 20.0).max(self.layout.block_bytes as f64 * 2.0));
        self.last = now;
        if more {
            self.submit()?;
        }
        store(&self.memory, VARIABLES, &self.variables)
    }

    /// Takes the next completion, if it is there.
    fn take_completion(&mut self) -> Result<bool, Failure> {
        let number = self.variables.completed;
        let at = COMPLETION_RING + number % RING_ENTRIES * size_of::<Completion>() as u64;
        let completion: Completion = load(&self.memory, GuestAddress(at))?;
        // The sequence number is written last: an older one, or none, says that the job is not complete.
        let expected = number + 1;
        if completion.sequence == expected.wrapping_sub(RING_ENTRIES) || completion.sequence == 0 {
            return Ok(false);
        }
        if completion.sequence != expected || completion.tag != expected {
            self.variables.misplaced += 1;
        } else if !self.is_right(number, &completion)? {
            self.variables.wrong += 1;
        }
        self.variables.completed += 1;
        Ok(true)
    }

    fn is_right(&mut self, number: u64, completion: &Completion) -> Result<bool, Failure> {
        let Some(number) = number.checked_sub(FIRST_JOBS) else {
            let (_, length) = self.layout.first_scrambled(number);
            return Ok(completion.status == STATUS_DONE && completion.result == length);
        };
        let group = number / JOBS;
        let (_, copy) = self.layout.blocks(group);
        let result = match number % JOBS {
            2 => {
                let expected = filled(group, self.layout.block_bytes);
                if !self.holds(copy, &expected)? {
                    return Ok(false);
                }
                crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, &expected)
            }
            3 => self.layout.scramble_bytes,
            _ => self.layout.block_bytes,
        };
        Ok(completion.status == STATUS_DONE && completion.result == result)
    }

    fn holds(&mut self, address: u64, expected: &[u8]) -> Result<bool, Failure> {
        self.block.resize(expected.len(), 0);
        self.memory
            .read_slice(&mut self.block, GuestAddress(address))
            .map_err(|error| Failure::from_error(&error))?;
        Ok(self.block == expected)
    }

    /// Gives the first jobs at once, then as many whole groups of jobs as the rate allows and the ring holds.
    fn submit(&mut self) -> Result<(), Failure> {
        let writes = (self.layout.block_bytes * 2) as f64;
        let before = self.variables.submitted;
        while self.variables.submitted < FIRST_JOBS {
            self.submit_one()?;
        }
        while self.allowance >= writes
            && self.variables.submitted + JOBS - self.variables.completed <= RING_ENTRIES
        {
            for _ in 0..JOBS {
                self.submit_one()?;
            }
            self.allowance -= writes;
        }
        if self.variables.submitted != before {
            let tail = (self.variables.submitted as u32).to_le_bytes();
            self.device.write_region(VFIO_PCI_BAR0_REGION_INDEX, REGISTER_TAIL, &tail)?;
        }
        Ok(())
    }

    fn submit_one(&mut self) -> Result<(), Failure> {
        let number = self.variables.submitted;
        let at = SUBMISSION_RING + number % RING_ENTRIES * size_of::<Descriptor>() as u64;
        store(&self.memory, GuestAddress(at), &job(number, self.layout))?;
        self.variables.submitted += 1;
        Ok(())
    }

    /// Gives no more work, sees the last of it, and looks at every block again that the last jobs wrote.
    fn finish(&mut self) -> Result<Finished, Failure> {
        let until = Instant::now() + DRAINING;
        while self.variables.completed < self.variables.submitted && Instant::now() < until {
            self.wait();
            self.step(false)?;
        }
        let groups = self.variables.completed.saturating_sub(FIRST_JOBS) / JOBS;
        let (mut blocks_checked, mut blocks_wrong) = (0, 0);
        for group in groups.saturating_sub(PLACES)..groups {
            let (first, second) = self.layout.blocks(group);
            let expected = filled(group, self.layout.block_bytes);
            for block in [first, second] {
                blocks_checked += 1;
                blocks_wrong += u64::from(!self.holds(block, &expected)?);
            }
        }
        Ok(Finished {
            program: books(&self.memory)?,
            completed_by_device: completed_by_device(&mut *self.device)?,
            blocks_checked,
            blocks_wrong,
        })
    }
}

/// What the program's thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Work,
    Pause,
    End,
}

/// What the program's thread does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Doing {
    Working,
    Paused,
    Failed(String),
}

/// The program at work on a thread of its own.
pub(super) struct Work {
    shared: Arc<(Mutex<(Wish, Doing)>, Condvar)>,
    thread: Option<JoinHandle<Program>>,
}

impl Work {
    /// Goes on where the books in memory say. `rate` is in bytes of memory per second.
    pub(super) fn start(machine: &Machine<'_>, rate: u64) -> Result<Work, Failure> {
        let mut program = Program::new(machine, rate)?;
        let shared = Arc::new((Mutex::new((Wish::Work, Doing::Working)), Condvar::new()));
        let thread = std::thread::Builder::new()
            .name("work".into())
            .spawn({
                let shared = shared.clone();
                move || {
                    run(&mut program, &shared);
                    program
                }
            })
            .map_err(|error| Failure::from_io("cannot start a thread", &error))?;
        Ok(Work { shared, thread: Some(thread) })
    }

    /// Fails if the work has failed.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match &self.shared.0.lock().1 {
            Doing::Failed(why) => Err(Failure::new(why.clone())),
            Doing::Working | Doing::Paused => Ok(()),
        }
    }

    /// Waits until the program touches neither memory nor device any more.
    pub(super) fn pause(&self) -> Result<(), String> {
        self.wish(Wish::Pause);
        let mut state = self.shared.0.lock();
        while state.1 == Doing::Working {
            self.shared.1.wait(&mut state);
        }
        match &state.1 {
            Doing::Failed(why) => Err(why.clone()),
            Doing::Working | Doing::Paused => Ok(()),
        }
    }

    /// Lets a paused program go on.
    pub(super) fn resume(&self) {
        self.wish(Wish::Work);
    }

    /// Ends the work: no new jobs, the last ones seen and checked.
    pub(super) fn finish(mut self) -> Result<Finished, Failure> {
        self.wish(Wish::End);
        let program = self.thread.take().and_then(|thread| thread.join().ok());
        if let Doing::Failed(why) = &self.shared.0.lock().1 {
            return Err(Failure::new(why.clone()));
        }
        program.ok_or_else(|| Failure::new("the work's thread is gone"))?.finish()
    }

    fn wish(&self, wish: Wish) {
        self.shared.0.lock().0 = wish;
        self.shared.1.notify_all();
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.wish(Wish::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(program: &mut Program, (state, changed): &(Mutex<(Wish, Doing)>, Condvar)) {
    loop {
        {
            let mut state = state.lock();
            while state.0 == Wish::Pause {
                state.1 = Doing::Paused;
                changed.notify_all();
                changed.wait(&mut state);
            }
            if state.0 == Wish::End {
                return;
            }
            if state.1 == Doing::Paused {
                // Time that the program stood still is no time it worked.
                program.last = Instant::now();
            }
            state.1 = Doing::Working;
        }
        program.wait();
        if let Err(error) = program.step(true) {
            let mut state = state.lock();
            state.1 = Doing::Failed(error.message());
            changed.notify_all();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_jobs_under_way_never_meet() {
        for memory in [16 << 20, 256 << 20, 1 << 30] {
            let layout = Layout::new(memory, 1 << 20);
            assert!(layout.block_bytes >= 4096);
            for start in [0, 1000, PLACES * 7] {
                let mut spans: Vec<(u64, u64)> = (start..=start + RING_ENTRIES / JOBS)
                    .flat_map(|group| [layout.blocks(group).0, layout.blocks(group).1])
                    .map(|block| (block, block + layout.block_bytes))
                    .collect();
                spans.sort_unstable();
                assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{memory}");
                assert!(spans.iter().all(|span| span.0 >= BLOCKS && span.1 <= memory), "{memory}");
            }
        }
    }

    #[test]
    fn a_job_changes_only_state_that_the_device_has() {
        for state in [1 << 10, 3000, 64 << 20] {
            let layout = Layout::new(16 << 20, state);
            for group in [0, 1, 77, u64::MAX / JOBS] {
                let job = job(FIRST_JOBS + group.min(1 << 40) * JOBS + 3, layout);
                assert!(job.length > 0 && job.length.is_multiple_of(8));
                assert!(job.destination.is_multiple_of(8) && job.destination + job.length <= state);
            }
        }
    }

    #[test]
    fn the_first_jobs_change_all_of_the_state() {
        for state in [1 << 10, 3000, 64 << 20] {
            let layout = Layout::new(16 << 20, state);
            let mut parts: Vec<(u64, u64)> =
                (0..FIRST_JOBS).map(|number| layout.first_scrambled(number)).collect();
            parts.sort_unstable();
            let reached = parts.iter().fold(0, |reached, (start, length)| {
                assert!(*start <= reached && *length > 0 && start + length <= state, "{state}");
                reached.max(start + length)
            });
            assert_eq!(reached, state / 8 * 8);
        }
    }

    #[test]
    fn patterns_differ_from_group_to_group_and_are_never_zero() {
        let patterns: std::collections::BTreeSet<u64> = (0..10_000).map(pattern).collect();
        assert_eq!(patterns.len(), 10_000);
        assert!(!patterns.contains(&0));
    }
}
