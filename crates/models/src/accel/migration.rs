//! The engine's migration: its arcs, its data session and its pre-copy report.

use whimbrel_device::{
    ArcError, Compatibility, Context, Errno, Migration, MigrationFlags, PrecopyReport, State,
};
use whimbrel_protocol::precopy::PrecopyBytes;
use whimbrel_protocol::session::{self, Direction, Effect};

use super::own_state::OwnState;
use super::stream::{Loader, STREAM_VERSION, Saver};
use super::{Accel, Session, starts_dma};

impl Migration for Accel {
    fn flags(&self) -> MigrationFlags {
        self.config.flags
    }

    fn compatibility(&mut self) -> Option<Compatibility> {
        Some(Compatibility::new("accel", STREAM_VERSION).data(self.settings_to_match()))
    }

    fn arc(&mut self, _: &Context, from: State, to: State) -> Result<(), ArcError> {
        match session::effect(from, to) {
            Effect::Opens(Direction::Saving) => {
                self.session = Session::Saving(Box::new(Saver::new(&self.state)));
            }
            Effect::Opens(Direction::Resuming) => {
                let state = OwnState::empty(self.config.state_bytes).map_err(|_| Errno::ENOMEM)?;
                self.start_over(state);
                self.session = Session::Resuming(Box::new(Loader::new(self.state.blocks())));
            }
            Effect::Ends => {
                if let Session::Resuming(loader) = &self.session {
                    self.machine = loader.finish().ok_or(Errno::EINVAL)?;
                    self.signal_again = self.machine.registers.interrupts();
                }
                self.session = Session::None;
            }
            Effect::None | Effect::Continues => {}
        }
        if !to.is_running() {
            self.clock.stop();
        }
        if !starts_dma(to) {
            self.forget_access();
        }
        self.function.enter(to);
        Ok(())
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(match &self.session {
            Session::Saving(saver) => saver.left_bytes(),
            Session::None | Session::Resuming(_) => Saver::whole_stream_bytes(&self.state),
        })
    }

    fn read(&mut self, context: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        let Session::Saving(saver) = &mut self.session else { return Err(Errno::ENODEV) };
        let machine = (context.state() == State::StopCopy).then_some(self.machine);
        Ok(saver.read(&self.state, machine, buffer))
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        let Session::Resuming(loader) = &mut self.session else { return Err(Errno::ENODEV) };
        loader.write(&mut self.state, data)
    }

    fn precopy(&mut self, _: &Context) -> Result<PrecopyReport, Errno> {
        let Session::Saving(saver) = &self.session else { return Err(Errno::ENODEV) };
        let bytes = PrecopyBytes { initial: saver.initial_bytes(), dirty: saver.dirty_bytes() };
        Ok(PrecopyReport::from(bytes))
    }
}
