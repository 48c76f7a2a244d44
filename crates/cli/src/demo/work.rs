//! The program that gives the device work and checks every result: the guest's driver, in a machine without a CPU.
//!
//! All of its variables are in guest memory, so that it migrates with the memory and continues at the destination. The
//! jobs and their expected results follow from their numbers alone: job by job it fills a block,
//! copies it, has the copy summed, and changes a piece of the device's own state.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use whimbrel_engine::Ram;
use whimbrel_models::accel::guest::{GuestDriver, GuestError, Platform, Progress, Rings};
use whimbrel_models::accel::{
    Completion, INTERRUPT_COMPLETION, OPERATION_CHECKSUM, REGISTER_COMPLETED, REGISTER_STATE_BYTES,
};
use whimbrel_uapi::pci::{VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX};
use whimbrel_user::Device;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::jobs::{FIRST_JOBS, JOBS, Layout, PLACES, RING_ENTRIES, filled, job};
use super::machine::{Machine, Memory};
use super::messages::{Books, Finished};
use crate::failure::Failure;

const VARIABLES: GuestAddress = GuestAddress(0x1000);
const RINGS: Rings = Rings::new(0x10000, 0x20000, RING_ENTRIES as u32);

/// Interval at which the program polls without an interrupt.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
/// Timeout for the last jobs.
const DRAINING: Duration = Duration::from_secs(10);

/// The program's variables, in guest memory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Variables {
    progress: Progress,
    misplaced: u64,
    wrong: u64,
}

/// The machine's device and memory, for the guest's driver.
struct Seat {
    device: Box<dyn Device>,
    memory: Arc<Memory>,
}

impl Platform for Seat {
    type Error = Failure;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Failure> {
        Ok(self.device.read_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data)?)
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        Ok(self.device.write_region(VFIO_PCI_BAR0_REGION_INDEX, offset, data)?)
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Failure> {
        self.memory.read_slice(data, GuestAddress(address)).map_err(|error| Failure::from_error(&error))
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Failure> {
        self.memory.write_slice(data, GuestAddress(address)).map_err(|error| Failure::from_error(&error))
    }
}

fn failure(error: GuestError<Failure>) -> Failure {
    match error {
        GuestError::Access(failure) => failure,
        other => Failure::new(other.to_string()),
    }
}

/// The program at a machine.
struct Program {
    driver: GuestDriver<Seat>,
    layout: Layout,
    variables: Variables,
    interrupt: OwnedFd,
    /// Bytes that the device may still write, according to the rate and the elapsed time.
    allowance: f64,
    rate: f64,
    last: Instant,
    block: Vec<u8>,
}

/// Prepares memory and device for the program: once, at the source.
pub(super) fn set_up(machine: &Machine) -> Result<(), Failure> {
    let memory = &machine.memory;
    fill_with_noise(memory)?;
    let seat = Seat { device: machine.device()?, memory: memory.clone() };
    let mut driver = GuestDriver::start(seat, RINGS).map_err(failure)?;
    driver.enable_interrupts(INTERRUPT_COMPLETION).map_err(failure)?;
    store(memory, VARIABLES, &Variables { progress: driver.progress(), misplaced: 0, wrong: 0 })
}

/// Fills memory: all zeros would be too easy to migrate.
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

/// Returns the program's books from memory.
pub(super) fn books(memory: &Memory) -> Result<Books, Failure> {
    let Variables { progress, misplaced, wrong } = load(memory, VARIABLES)?;
    Ok(Books { submitted: progress.submitted, completed: progress.completed, misplaced, wrong })
}

/// Returns whether all of the device's own state has been filled.
pub(super) fn has_begun(memory: &Memory) -> Result<bool, Failure> {
    Ok(books(memory)?.completed >= FIRST_JOBS)
}

/// Returns the device's counter of completed jobs.
pub(super) fn completed_by_device(device: &mut dyn Device) -> Result<u64, Failure> {
    read_u64(device, REGISTER_COMPLETED)
}

fn read_u64(device: &mut dyn Device, register: u64) -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    device.read_region(VFIO_PCI_BAR0_REGION_INDEX, register, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

impl Program {
    fn new(machine: &Machine, rate: u64) -> Result<Program, Failure> {
        let mut seat = Seat { device: machine.device()?, memory: machine.memory.clone() };
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Failure::from_io("cannot make an eventfd", &error.into()))?;
        seat.device.set_irq_triggers(VFIO_PCI_MSI_IRQ_INDEX, 0, &[Some(interrupt.as_fd())])?;
        let state_bytes = read_u64(&mut *seat.device, REGISTER_STATE_BYTES)?;
        let variables: Variables = load(&machine.memory, VARIABLES)?;
        let memory_bytes = machine.memory.iter().map(vm_memory::GuestMemoryRegion::len).sum();
        Ok(Program {
            driver: GuestDriver::resume(seat, RINGS, variables.progress),
            layout: Layout::new(memory_bytes, state_bytes),
            variables,
            interrupt,
            allowance: 0.0,
            rate: rate as f64,
            last: Instant::now(),
            block: Vec::new(),
        })
    }

    /// Waits briefly for an interrupt.
    fn wait(&self) {
        // Whatever wakes it, the program checks everything.
        let _ = poll(&mut [PollFd::new(&self.interrupt, PollFlags::IN)], Some(&TICK));
        let _ = rustix::io::read(&self.interrupt, &mut [0; 8]);
    }

    /// Takes all completions, and submits new work if `more`.
    fn step(&mut self, more: bool) -> Result<(), Failure> {
        self.driver.acknowledge(INTERRUPT_COMPLETION).map_err(failure)?;
        while self.driver.progress().pending() > 0 && self.take_completion()? {}
        let now = Instant::now();
        self.allowance += self.rate * (now - self.last).as_secs_f64();
        // After a delay, at most a twentieth of a second is made up for; at a low rate, enough is saved for a group.
        self.allowance = self.allowance.min((self.rate / 20.0).max(self.layout.block_bytes as f64 * 2.0));
        self.last = now;
        if more {
            self.submit()?;
        }
        self.variables.progress = self.driver.progress();
        store(&self.driver.platform().memory, VARIABLES, &self.variables)
    }

    /// Takes the next completion, if any.
    fn take_completion(&mut self) -> Result<bool, Failure> {
        let number = self.driver.progress().completed;
        match self.driver.take_completion() {
            Ok(None) => return Ok(false),
            Ok(Some(completion)) => self.variables.wrong += u64::from(!self.is_right(number, &completion)?),
            Err(GuestError::Misplaced { .. }) => self.variables.misplaced += 1,
            Err(error) => return Err(failure(error)),
        }
        Ok(true)
    }

    fn is_right(&mut self, number: u64, completion: &Completion) -> Result<bool, Failure> {
        let job = job(number, self.layout);
        if job.operation != OPERATION_CHECKSUM {
            return Ok(completion.is_success_of(&job));
        }
        // The last job of its group on memory: both blocks are final.
        let expected = filled((number - FIRST_JOBS) / JOBS, self.layout.block_bytes);
        Ok(self.holds(job.source, &expected)? && self.driver.verify(&job, completion).map_err(failure)?)
    }

    fn holds(&mut self, address: u64, expected: &[u8]) -> Result<bool, Failure> {
        self.block.resize(expected.len(), 0);
        self.driver.platform().read_memory(address, &mut self.block)?;
        Ok(self.block == expected)
    }

    /// Submits the first jobs at once, then as many whole groups of jobs as the rate allows and the ring holds.
    fn submit(&mut self) -> Result<(), Failure> {
        let writes = (self.layout.block_bytes * 2) as f64;
        let before = self.driver.progress().submitted;
        while self.driver.progress().submitted < FIRST_JOBS {
            self.submit_one()?;
        }
        while self.allowance >= writes && self.driver.room() >= JOBS {
            for _ in 0..JOBS {
                self.submit_one()?;
            }
            self.allowance -= writes;
        }
        if self.driver.progress().submitted != before {
            self.driver.ring().map_err(failure)?;
        }
        Ok(())
    }

    fn submit_one(&mut self) -> Result<(), Failure> {
        let job = job(self.driver.progress().submitted, self.layout);
        self.driver.put(&job).map_err(failure)
    }

    /// Takes the last completions without new work, and checks every block again that the last jobs wrote.
    fn finish(&mut self) -> Result<Finished, Failure> {
        let until = Instant::now() + DRAINING;
        while self.driver.progress().pending() > 0 && Instant::now() < until {
            self.wait();
            self.step(false)?;
        }
        let groups = self.driver.progress().completed.saturating_sub(FIRST_JOBS) / JOBS;
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
            program: books(&self.driver.platform().memory)?,
            completed_by_device: completed_by_device(&mut *self.driver.platform().device)?,
            blocks_checked,
            blocks_wrong,
        })
    }
}

/// The requested activity of the program's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Work,
    Pause,
    End,
}

/// The actual activity of the program's thread.
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
    /// Continues from the books in memory. `rate` is in bytes of memory per second.
    pub(super) fn start(machine: &Machine, rate: u64) -> Result<Work, Failure> {
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

    /// Waits until the program no longer accesses memory or device.
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

    /// Resumes a paused program.
    pub(super) fn resume(&self) {
        self.wish(Wish::Work);
    }

    /// Ends the work: without new jobs, the last ones are completed and checked.
    pub(super) fn finish(mut self) -> Result<Finished, Failure> {
        self.wish(Wish::End);
        let program = self.thread.take().and_then(|thread| thread.join().ok());
        if let Doing::Failed(why) = &self.shared.0.lock().1 {
            return Err(Failure::new(why.clone()));
        }
        program.ok_or_else(|| Failure::new("the program's thread panicked"))?.finish()
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
                // The time of the pause does not count as work.
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
