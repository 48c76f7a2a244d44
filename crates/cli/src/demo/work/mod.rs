//! The programs that keep a host's devices busy, as guests without a CPU: one for each device.
//!
//! All variables of a program are in guest memory, so that it migrates with the memory and continues at the destination.
//! Its jobs and their expected results follow from their numbers alone.

mod disk;
mod engine;
mod interrupt;
mod pace;
mod seat;
mod serial;
mod variables;

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use self::variables::Variables;
use super::attachment::Kind;
use super::jobs::FIRST_JOBS;
use super::machine::Machine;
use super::messages::{Books, Finished};
use crate::failure::Failure;

/// Completions of a serial card's first bytes.
const FIRST_BYTES: u64 = 64;
/// Completions of a disk's first commands.
const FIRST_COMMANDS: u64 = 64;

/// A program that gives one device work.
trait Program: Send {
    /// Waits briefly for the device.
    fn wait(&self);

    /// Takes all completions, and submits new work if `more`.
    fn step(&mut self, more: bool) -> Result<(), Failure>;

    /// Called after a pause, before the next step.
    fn resumed(&mut self);

    /// Takes the last completions without new work, and checks what can be checked again.
    fn finish(&mut self) -> Result<Finished, Failure>;
}

/// Prepares memory and devices for the programs: once, at the source.
pub(super) fn set_up(machine: &Machine) -> Result<(), Failure> {
    machine.fill_with_noise()?;
    for (number, attachment) in machine.attachments().iter().enumerate() {
        let (device, share) = (attachment.device()?, machine.share(number));
        match attachment.kind {
            Kind::Engine { .. } => engine::set_up(device, &machine.memory, share)?,
            Kind::Serial { ports } => serial::set_up(device, &machine.memory, share, ports)?,
            Kind::Disk => disk::set_up(device, &machine.memory, share)?,
        }
    }
    Ok(())
}

/// Returns the books of each program from memory.
pub(super) fn books(machine: &Machine) -> Result<Vec<Books>, Failure> {
    let shares = (0..machine.attachments().len()).map(|number| machine.share(number));
    shares.map(|share| Ok(Variables::load(&machine.memory, share)?.books())).collect()
}

/// Returns the number of a device that has not completed its first jobs, which fill all of an engine's own state.
pub(super) fn not_begun(machine: &Machine) -> Result<Option<usize>, Failure> {
    let first = |kind| match kind {
        Kind::Engine { .. } => FIRST_JOBS,
        Kind::Serial { .. } => FIRST_BYTES,
        Kind::Disk => FIRST_COMMANDS,
    };
    let books = books(machine)?;
    let begun =
        books.iter().zip(machine.attachments()).map(|(books, device)| books.completed >= first(device.kind));
    Ok(begun.into_iter().position(|begun| !begun))
}

/// Returns the counter of completed jobs of each device that has one.
pub(super) fn completed_by_devices(machine: &Machine) -> Result<Vec<Option<u64>>, Failure> {
    let counter = |attachment: &super::attachment::Attachment| match attachment.kind {
        Kind::Engine { .. } => engine::completed_by_device(&mut *attachment.device()?).map(Some),
        Kind::Serial { .. } | Kind::Disk => Ok(None),
    };
    machine.attachments().iter().map(counter).collect()
}

/// The requested activity of a program's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Work,
    Pause,
    End,
}

/// The actual activity of a program's thread.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Doing {
    Working,
    Paused,
    Failed(String),
}

/// A program at work on a thread of its own.
struct Worker {
    shared: Arc<(Mutex<(Wish, Doing)>, Condvar)>,
    thread: Option<JoinHandle<Box<dyn Program>>>,
}

/// The programs of all devices at work.
pub(super) struct Work {
    workers: Vec<Worker>,
}

impl Work {
    /// Continues from the books in memory. `rate` is in bytes of memory per second and device.
    pub(super) fn start(machine: &Machine, rate: u64) -> Result<Work, Failure> {
        let start = |(number, attachment): (usize, &super::attachment::Attachment)| {
            let (device, share) = (attachment.device()?, machine.share(number));
            Worker::start(match attachment.kind {
                Kind::Engine { .. } => Box::new(engine::Program::new(device, &machine.memory, share, rate)?),
                Kind::Serial { ports } => {
                    Box::new(serial::Program::new(device, &machine.memory, share, ports)?)
                }
                Kind::Disk => Box::new(disk::Program::new(device, &machine.memory, share, rate)?),
            })
        };
        let workers = machine.attachments().iter().enumerate().map(start).collect::<Result<_, _>>()?;
        Ok(Work { workers })
    }

    /// Fails if the work of a device has failed.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.workers.iter().try_for_each(|worker| worker.check().map_err(Failure::new))
    }

    /// Waits until no program accesses memory or its device any longer.
    pub(super) fn pause(&self) -> Result<(), String> {
        self.wish(Wish::Pause);
        for worker in &self.workers {
            worker.wait_while_working();
        }
        self.workers.iter().try_for_each(Worker::check)
    }

    /// Resumes paused programs.
    pub(super) fn resume(&self) {
        self.wish(Wish::Work);
    }

    /// Ends the work: without new jobs, the last ones are completed and checked.
    pub(super) fn finish(mut self) -> Result<Vec<Finished>, Failure> {
        self.wish(Wish::End);
        self.workers.iter_mut().map(Worker::finish).collect()
    }

    fn wish(&self, wish: Wish) {
        for worker in &self.workers {
            worker.wish(wish);
        }
    }
}

impl Worker {
    fn start(mut program: Box<dyn Program>) -> Result<Worker, Failure> {
        let shared = Arc::new((Mutex::new((Wish::Work, Doing::Working)), Condvar::new()));
        let thread = std::thread::Builder::new()
            .name("work".into())
            .spawn({
                let shared = shared.clone();
                move || {
                    run(&mut *program, &shared);
                    program
                }
            })
            .map_err(|error| Failure::from_io("cannot start a thread", &error))?;
        Ok(Worker { shared, thread: Some(thread) })
    }

    fn check(&self) -> Result<(), String> {
        match &self.shared.0.lock().1 {
            Doing::Failed(why) => Err(why.clone()),
            Doing::Working | Doing::Paused => Ok(()),
        }
    }

    fn wait_while_working(&self) {
        let mut state = self.shared.0.lock();
        while state.1 == Doing::Working {
            self.shared.1.wait(&mut state);
        }
    }

    fn finish(&mut self) -> Result<Finished, Failure> {
        let program = self.thread.take().and_then(|thread| thread.join().ok());
        self.check().map_err(Failure::new)?;
        program.ok_or_else(|| Failure::new("the program's thread panicked"))?.finish()
    }

    fn wish(&self, wish: Wish) {
        self.shared.0.lock().0 = wish;
        self.shared.1.notify_all();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.wish(Wish::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(program: &mut dyn Program, (state, changed): &(Mutex<(Wish, Doing)>, Condvar)) {
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
                program.resumed();
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
