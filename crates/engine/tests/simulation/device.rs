//! A simulated device: its migration states, its content, which changes while it runs, and its data session.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastrand::Rng;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::{MigrationFlags, State, fsm};

/// A part of a device's state: a number, and its size on the wire.
pub(crate) type Block = u32;

/// The content of a device that has no state of a migration in it.
const BLANK: Block = u32::MAX;

/// What is fixed about a device.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) flags: MigrationFlags,
    pub(crate) blocks: usize,
    pub(crate) block_bytes: u64,
    /// The first blocks are its initial data.
    pub(crate) initial: usize,
    /// The last blocks are read once it has stopped, never before.
    pub(crate) last: usize,
    /// Whether it asks for its initial data again, now and then.
    pub(crate) rearms: bool,
    /// Changes of its state, and writes to memory, in a second.
    pub(crate) rate: f64,
    /// Whether it logs what it writes to memory.
    pub(crate) has_log: bool,
    /// Whether it is a disk, such as the model nvme: it runs only while it owns the image that both sides reach.
    pub(crate) is_disk: bool,
}

/// One side's way to an image, which has one owner: 0 for nobody, else the number of a side, from 1.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    owner: Arc<AtomicUsize>,
    side: usize,
}

impl Image {
    /// The ways of both sides to a new image.
    pub(crate) fn shared() -> [Image; 2] {
        let owner = Arc::new(AtomicUsize::new(0));
        [1, 2].map(|side| Image { owner: owner.clone(), side })
    }

    /// Returns whether this side owns it now.
    fn take(&self) -> bool {
        let taken = self.owner.compare_exchange(0, self.side, Ordering::Relaxed, Ordering::Relaxed);
        taken.is_ok() || taken == Err(self.side)
    }

    fn leave(&self) {
        // It stays the other side's, if it is.
        let _ = self.owner.compare_exchange(self.side, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// A device of one side.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) model: Model,
    pub(crate) state: State,
    pub(crate) content: Vec<Block>,
    /// The state that it has given or taken, in order.
    pub(crate) passed: Vec<(usize, Block)>,
    /// The setup outside of its migration state.
    pub(crate) setup: u32,
    /// The setup that its owner has given it.
    pub(crate) owners_setup: u32,
    pub(crate) saved_setup: Option<u32>,
    /// Whether the setup is to be restored and could not be read.
    pub(crate) is_unread: bool,
    /// Whether its content is that of the device that migrates: always at the source.
    pub(crate) holds: bool,
    /// Whether something was done to it that a migration must undo.
    pub(crate) touched: bool,
    pub(crate) was_reset: bool,
    /// Blocks that the session has still to give, and which of them are initial data.
    pending: Vec<bool>,
    initial: Vec<bool>,
    rearmed: bool,
    reinit: bool,
    /// What the last query said of its initial data, and the initial blocks that were sent after it.
    pub(crate) initial_told: Option<u64>,
    /// A disk's image.
    pub(crate) image: Option<Image>,
    /// It was to run while its image belonged to the other side.
    pub(crate) was_barred: bool,
}

impl Device {
    /// A device that runs.
    pub(crate) fn new(model: Model, holds: bool, rng: &mut Rng) -> Device {
        let blocks = model.blocks;
        let setup = if holds { rng.u32(1..) } else { 0 };
        Device {
            state: State::Running,
            content: (0..blocks).map(|_| if holds { rng.u32(1..BLANK) } else { BLANK }).collect(),
            passed: Vec::new(),
            setup,
            owners_setup: setup,
            saved_setup: None,
            is_unread: false,
            holds,
            touched: false,
            was_reset: false,
            pending: vec![false; blocks],
            initial: vec![false; blocks],
            rearmed: false,
            reinit: false,
            initial_told: None,
            image: None,
            was_barred: false,
            model,
        }
    }

    /// Whether a copy of the device that migrates runs here.
    pub(crate) fn runs(&self) -> bool {
        self.holds && self.state.is_running()
    }

    /// The device works: blocks change.
    pub(crate) fn work(&mut self, changes: usize, rng: &mut Rng) {
        if changes > 0 && !self.owns_image() {
            return;
        }
        for _ in 0..changes {
            let block = rng.usize(..self.model.blocks);
            self.content[block] = rng.u32(1..BLANK);
            self.pending[block] |= self.state.is_precopy() && block < self.readable();
        }
        if self.model.rearms && self.reinit && self.state.is_precopy() && changes > 0 && rng.u8(..) < 8 {
            self.rearmed = true;
            for block in 0..self.model.initial {
                self.pending[block] = true;
                self.initial[block] = true;
            }
        }
    }

    /// Gives the device, which runs, an image that nobody owns.
    pub(crate) fn share_image(&mut self, image: Image) {
        self.image = Some(image);
        self.owns_image();
    }

    /// Takes the image, if it has one. Otherwise it belongs to the other side.
    fn owns_image(&mut self) -> bool {
        let owns = self.image.as_ref().is_none_or(Image::take);
        self.was_barred |= !owns;
        owns
    }

    /// Gives the image up: the device has stopped, or is gone.
    pub(crate) fn leave_image(&self) {
        self.image.iter().for_each(Image::leave);
    }

    /// What a session can give before the stop.
    fn readable(&self) -> usize {
        self.model.blocks - self.model.last
    }

    /// Takes the arcs to a state. With `fails`, one of them fails; with `breaks`, the device is in ERROR then.
    pub(crate) fn set_state(&mut self, to: State, fails: bool, breaks: bool, rng: &mut Rng) -> bool {
        self.touched = true;
        let Ok(path) = fsm::path(self.model.flags, self.state, to) else { return false };
        let steps: Vec<State> = path.collect();
        let done = if fails { rng.usize(..=steps.len().saturating_sub(1)) } else { steps.len() };
        for state in &steps[..done] {
            if state.is_running() && !self.state.is_running() && !self.owns_image() {
                return false;
            }
            self.enter(*state);
        }
        if fails && breaks {
            self.state = State::Error;
            self.leave_image();
        }
        !fails
    }

    fn enter(&mut self, state: State) {
        match state {
            State::PreCopy if !self.state.is_precopy() => {
                for block in 0..self.model.blocks {
                    self.pending[block] = block < self.readable();
                    self.initial[block] = block < self.model.initial.min(self.readable());
                }
            }
            State::StopCopy if self.state.is_precopy() => {
                for block in self.readable()..self.model.blocks {
                    self.pending[block] = true;
                }
            }
            State::StopCopy => self.pending.fill(true),
            State::Resuming => {
                self.content.fill(BLANK);
                self.holds = true;
            }
            _ => {}
        }
        if !state.is_saving() {
            self.pending.fill(false);
            self.initial.fill(false);
        }
        self.state = state;
        if !state.is_running() {
            self.leave_image();
        }
    }

    /// Opts in to REINIT.
    pub(crate) fn enable_reinit(&mut self) {
        self.reinit = true;
    }

    /// Answers VFIO_MIG_GET_PRECOPY_INFO, and the size of all data.
    pub(crate) fn query(&mut self) -> Option<(PrecopyReport, u64)> {
        if !self.state.is_precopy() {
            return None;
        }
        let count = |wanted: bool| {
            (0..self.model.blocks)
                .filter(|block| self.pending[*block] && self.initial[*block] == wanted)
                .count()
        };
        let (initial, dirty) =
            (count(true) as u64 * self.model.block_bytes, count(false) as u64 * self.model.block_bytes);
        self.initial_told = Some(initial);
        let report = PrecopyReport::new(initial, dirty).reinit(std::mem::take(&mut self.rearmed));
        Some((report, self.data_size()))
    }

    /// Bytes that stopping it would yield.
    pub(crate) fn data_size(&self) -> u64 {
        let blocks = if self.state.is_saving() {
            self.pending.iter().filter(|is| **is).count()
        } else {
            self.model.blocks
        };
        let last = if self.state.is_precopy() { self.model.last } else { 0 };
        (blocks + last) as u64 * self.model.block_bytes
    }

    /// Whether the session has ended, for now or for good.
    pub(crate) fn read(&mut self) -> Option<(usize, Block)> {
        let block = (0..self.model.blocks)
            .find(|block| self.pending[*block] && self.initial[*block])
            .or_else(|| self.pending.iter().position(|is| *is))?;
        self.pending[block] = false;
        if std::mem::take(&mut self.initial[block])
            && let Some(told) = &mut self.initial_told
        {
            *told = told.saturating_sub(self.model.block_bytes);
        }
        Some((block, self.content[block]))
    }

    /// Takes a piece of state.
    pub(crate) fn write(&mut self, block: usize, value: Block) -> bool {
        if self.state != State::Resuming || block >= self.model.blocks {
            return false;
        }
        self.content[block] = value;
        self.passed.push((block, value));
        true
    }

    /// VFIO_DEVICE_RESET.
    pub(crate) fn reset(&mut self, is_source: bool) {
        self.enter(State::Running);
        // It takes it again when it works.
        self.leave_image();
        self.content.fill(BLANK);
        self.setup = 0;
        self.holds = is_source;
        self.was_reset = true;
    }
}
