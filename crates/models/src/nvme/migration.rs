//! The controller's migration: its arcs, the image's lock, and the data session.

use std::time::Instant;

use whimbrel_device::{
    ArcError, Compatibility, Context, Errno, Migration, MigrationFlags, PrecopyReport, State,
};
use whimbrel_protocol::session::{self, Direction, Effect};

use super::image::Operation;
use super::stream::{self, Loader, Machine};
use super::work::Step;
use super::{Nvme, starts_dma};
use crate::saved::Saved;

/// The data session.
#[derive(Debug)]
pub(super) enum Session {
    None,
    Saving(Saved),
    Resuming(Box<Loader>),
}

impl Migration for Nvme {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::all()
    }

    fn compatibility(&mut self) -> Option<Compatibility> {
        let limits = &self.controller.limits;
        let settings = format!(
            "blocks={} queues={} readonly={} {}",
            limits.blocks,
            limits.queues,
            limits.is_read_only,
            crate::BYTE_ORDER
        );
        Some(Compatibility::new("nvme", stream::VERSION).data(settings))
    }

    fn arc(&mut self, context: &Context, from: State, to: State) -> Result<(), ArcError> {
        self.now = context.now();
        match (from.is_running(), to.is_running()) {
            (true, false) => self.stop()?,
            (false, true) => {
                self.own_image().inspect_err(|errno| {
                    tracing::warn!(%errno, image = %self.config.image.display(),
                        "the device cannot run: its image belongs to another device");
                })?;
                self.controller.start_clocks(self.now);
            }
            _ => {}
        }
        match session::effect(from, to) {
            Effect::Opens(Direction::Saving) => {
                self.session = Session::Saving(Saved::new(stream::opening(&self.controller.limits)));
                if to == State::PreCopy && self.image.is_owned() && self.is_unflushed {
                    // What it does now is not left for the stop. Its end is waited for there.
                    self.image.submit(Operation::Flush);
                }
            }
            Effect::Opens(Direction::Resuming) => {
                self.start_over();
                self.session = Session::Resuming(Box::new(Loader::new(self.controller.limits.clone())));
            }
            Effect::Ends => {
                if let Session::Resuming(loader) = &self.session {
                    let machine = loader.finish().ok_or(Errno::EINVAL)?.clone();
                    self.load(machine);
                }
                self.session = Session::None;
            }
            Effect::None | Effect::Continues => {}
        }
        if to == State::StopCopy {
            let machine = self.machine();
            if let Session::Saving(saved) = &mut self.session {
                stream::close(saved.stream_mut(), &machine);
            }
        }
        if !starts_dma(to) {
            self.forget_access();
        }
        self.function.enter(to);
        Ok(())
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        if let Session::Saving(saved) = &self.session
            && stream::is_closed(saved.stream())
        {
            return Ok(saved.left_bytes() as u64);
        }
        let mut whole = stream::opening(&self.controller.limits);
        stream::close(&mut whole, &self.machine());
        Ok(whole.len() as u64)
    }

    fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        let Session::Saving(saved) = &mut self.session else { return Err(Errno::ENODEV) };
        Ok(saved.read(buffer))
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        let Session::Resuming(loader) = &mut self.session else { return Err(Errno::ENODEV) };
        loader.write(data)
    }

    fn precopy(&mut self, _: &Context) -> Result<PrecopyReport, Errno> {
        let Session::Saving(saved) = &self.session else { return Err(Errno::ENODEV) };
        Ok(PrecopyReport::new(saved.left_bytes() as u64, 0))
    }
}

impl Nvme {
    /// Ends the operations on the image, flushes it, and gives it up. The commands in flight begin again when the device
    /// runs, here or elsewhere.
    ///
    /// EBUSY if the operations do not end in time: a write that is in flight cannot be taken back.
    fn stop(&mut self) -> Result<(), Errno> {
        let deadline = Instant::now() + self.config.drain_timeout;
        self.forget_access();
        self.flight.hold_back();
        self.drain(deadline)?;
        if self.image.is_owned() && std::mem::take(&mut self.is_unflushed) {
            let flush = self.image.submit(Operation::Flush);
            let flushed = self.await_flush(flush, deadline);
            self.is_unflushed = flushed.is_err();
            flushed?;
        }
        self.flight.begin_all_again();
        self.image.disown();
        self.controller.stop_clocks(self.now);
        Ok(())
    }

    fn drain(&mut self, deadline: Instant) -> Result<(), Errno> {
        loop {
            self.collect();
            if self.image.is_idle() {
                return Ok(());
            }
            if !self.image.wait(deadline) {
                return Err(self.not_drained());
            }
        }
    }

    fn await_flush(&mut self, flush: u64, deadline: Instant) -> Result<(), Errno> {
        loop {
            let mut done = self.image.collect();
            let ended = done.drain(..).find(|ended| ended.tag == flush);
            self.image.recycle(done);
            if let Some(ended) = ended {
                return ended.result.inspect_err(|errno| {
                    tracing::error!(%errno, image = %self.config.image.display(),
                        "the device cannot stop: its image cannot be flushed");
                });
            }
            if !self.image.wait(deadline) {
                return Err(self.not_drained());
            }
        }
    }

    fn not_drained(&self) -> Errno {
        tracing::warn!(timeout = ?self.config.drain_timeout, image = %self.config.image.display(),
            "the device cannot stop: operations on its image have not ended in time");
        Errno::EBUSY
    }

    /// Returns the state to save.
    fn machine(&self) -> Machine {
        let flight = &self.flight;
        let mut completions = flight.completions.clone();
        // One that was begun to be written, as seen while the device runs.
        if let Step::Post(completion) | Step::PostPhase { completion, is_counted: false } = self.step {
            completions.push_front(completion);
        }
        Machine {
            controller: self.controller.clone(),
            commands: flight.commands.values().map(|command| (command.sq, command.entry)).collect(),
            completions: completions.into(),
        }
    }

    /// Replaces the controller by a loaded one.
    fn load(&mut self, machine: Machine) {
        let Machine { controller, commands, completions, .. } = machine;
        self.drop_commands();
        self.controller = controller;
        for (sq, entry) in commands {
            if let Some(queue) = self.controller.submissions.get(&sq) {
                self.flight.add(sq, queue.completion_queue, entry);
            }
        }
        self.flight.begin_all_again();
        self.flight.push_completions(completions);
        self.signal_again = true;
    }

    /// Signals every queue with entries that the host has not taken out: their interrupts may have been lost.
    pub(super) fn signal_queues(&mut self) {
        let queues = self.controller.completions.values().filter(|queue| queue.interrupts());
        for vector in queues.filter_map(|queue| queue.vector) {
            self.to_signal |= 1 << vector;
        }
        self.signal();
    }
}
