//! A test's hold on a device: what it is asked, and what goes wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use whimbrel_device::{ArcError, Errno, State};

/// A request that the driver gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Arc(State, State),
    /// In the state the device is in.
    Read(State),
    Write,
    DataSize,
    Precopy,
    LogStart,
    LogReport,
    LogStop,
    Reset,
    /// Of the configuration space, of a device that has one.
    ReadConfig,
    WriteConfig,
    /// Any access to the migration region, of a device that has one.
    Region,
}

/// A request as the devices of one side saw it, in the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) device: usize,
    pub(crate) at: At,
    /// Whether the driver has done it. Otherwise it has just been asked.
    pub(crate) is_done: bool,
}

/// What the devices of one side were asked.
#[derive(Clone, Default)]
pub(crate) struct History(Arc<Mutex<Vec<Moment>>>);

impl History {
    pub(crate) fn list(&self) -> Vec<Moment> {
        self.0.lock().clone()
    }
}

/// Holds those who come until it is dropped.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn wait(&self) {
        let (is_open, opened) = &*self.0;
        let mut is_open = is_open.lock();
        while !*is_open {
            opened.wait(&mut is_open);
        }
    }

    pub(crate) fn open(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_all();
    }
}

/// Where a number of threads meet, each of which waits for the others.
#[derive(Clone)]
pub(crate) struct Rendezvous(Arc<Meeting>);

struct Meeting {
    expected: usize,
    come: Mutex<usize>,
    one_came: Condvar,
    was_missed: AtomicBool,
}

impl Rendezvous {
    /// Longer than any takes that comes at the same time as another.
    const PATIENCE: Duration = Duration::from_secs(10);

    pub(crate) fn of(expected: usize) -> Rendezvous {
        let (come, one_came) = (Mutex::new(0), Condvar::new());
        Rendezvous(Arc::new(Meeting { expected, come, one_came, was_missed: AtomicBool::new(false) }))
    }

    /// Waits for the others, but not for ever.
    pub(crate) fn meet(&self) {
        let meeting = &*self.0;
        let deadline = Instant::now() + Rendezvous::PATIENCE;
        let mut come = meeting.come.lock();
        *come += 1;
        meeting.one_came.notify_all();
        while *come < meeting.expected {
            if meeting.one_came.wait_until(&mut come, deadline).timed_out() {
                return meeting.was_missed.store(true, Ordering::Release);
            }
        }
    }

    /// Whether all came, and each of them met the others.
    pub(crate) fn was_met(&self) -> bool {
        *self.0.come.lock() == self.0.expected && !self.0.was_missed.load(Ordering::Acquire)
    }
}

/// Opens its gate at the end of a test, however that ends: a driver must not hang for ever.
pub(crate) struct Hung(Gate);

impl Drop for Hung {
    fn drop(&mut self) {
        self.0.open();
    }
}

enum Fault {
    Fails(ArcError),
    Does(Box<dyn FnOnce() + Send>),
}

/// A test's hold on the driver.
#[derive(Clone)]
pub(crate) struct Control(Arc<Mutex<Inner>>);

struct Inner {
    device: usize,
    history: History,
    faults: Vec<(At, u32, Fault)>,
    state: Vec<u8>,
    logging: bool,
    written: u64,
}

impl Control {
    /// Of the device of this number, among those that share a history.
    pub(super) fn new(size: usize, device: usize, history: &History) -> Control {
        Control(Arc::new(Mutex::new(Inner {
            device,
            history: history.clone(),
            faults: Vec::new(),
            state: vec![0; size],
            logging: false,
            written: 0,
        })))
    }

    /// Makes the request after `passes` of its kind fail, once.
    pub(crate) fn fail(&self, at: At, passes: u32, error: ArcError) {
        self.0.lock().faults.push((at, passes, Fault::Fails(error)));
    }

    /// Does something when the request after `passes` of its kind arrives, which then goes well.
    pub(crate) fn when(&self, at: At, passes: u32, action: impl FnOnce() + Send + 'static) {
        self.0.lock().faults.push((at, passes, Fault::Does(Box::new(action))));
    }

    /// Makes the driver hang in the request after `passes` of its kind, until what is returned is dropped.
    pub(crate) fn hang(&self, at: At, passes: u32) -> Hung {
        let gate = Gate::default();
        let its = gate.clone();
        self.when(at, passes, move || its.wait());
        Hung(gate)
    }

    pub(crate) fn set_state(&self, state: &[u8]) {
        self.0.lock().state = state.to_vec();
    }

    pub(crate) fn state(&self) -> Vec<u8> {
        self.0.lock().state.clone()
    }

    pub(crate) fn is_fresh(&self) -> bool {
        self.0.lock().state.iter().all(|byte| *byte == 0)
    }

    pub(crate) fn is_logging(&self) -> bool {
        self.0.lock().logging
    }

    pub(super) fn set_logging(&self, logging: bool) {
        self.0.lock().logging = logging;
    }

    /// Number of pages written through DMA.
    pub(crate) fn written(&self) -> u64 {
        self.0.lock().written
    }

    /// Takes in a page that was written, which also changes the state.
    pub(super) fn wrote(&self, value: u8) {
        let mut inner = self.0.lock();
        inner.written += 1;
        inner.state[0] = value;
    }

    /// What the device was asked, in order.
    pub(crate) fn requests(&self) -> Vec<At> {
        let (device, history) = {
            let inner = self.0.lock();
            (inner.device, inner.history.clone())
        };
        let list = history.list();
        list.iter()
            .filter(|moment| moment.device == device && !moment.is_done)
            .map(|moment| moment.at)
            .collect()
    }

    pub(crate) fn has_faults_left(&self) -> bool {
        !self.0.lock().faults.is_empty()
    }

    pub(crate) fn forget_faults(&self) {
        self.0.lock().faults.clear();
    }

    fn note(&self, at: At, is_done: bool) {
        let inner = self.0.lock();
        inner.history.0.lock().push(Moment { device: inner.device, at, is_done });
    }

    pub(super) fn pass(&self, at: At) -> Result<(), ArcError> {
        self.note(at, false);
        let fault = {
            let mut inner = self.0.lock();
            let Some(index) = inner.faults.iter().position(|(of, ..)| *of == at) else { return Ok(()) };
            if inner.faults[index].1 > 0 {
                inner.faults[index].1 -= 1;
                return Ok(());
            }
            inner.faults.remove(index).2
        };
        match fault {
            Fault::Fails(error) => Err(error),
            // Without the lock: the test looks at the device meanwhile.
            Fault::Does(action) => {
                action();
                Ok(())
            }
        }
    }

    pub(super) fn pass_request(&self, at: At) -> Result<(), Errno> {
        self.pass(at).map_err(ArcError::errno)
    }

    /// Takes in that the driver has done what it was asked.
    pub(super) fn done(&self, at: At) {
        self.note(at, true);
    }
}
