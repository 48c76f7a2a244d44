//! The card's migration: its arcs, its data session, and a DMA log that stays empty.

use whimbrel_device::{
    ArcError, Compatibility, Context, DmaLogging, Errno, Migration, MigrationFlags, PrecopyReport, State,
};
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_protocol::session::{self, Direction, Effect};

use super::port::Port;
use super::{Serial, stream};
use crate::saved::Saved;

/// The data session.
#[derive(Debug)]
pub(super) enum Session {
    /// No session.
    None,
    /// An outgoing state.
    Saving(Saved),
    /// An incoming state.
    Resuming(stream::Loader),
}

impl Migration for Serial {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::all()
    }

    fn compatibility(&mut self) -> Option<Compatibility> {
        let settings = format!("ports={} {}", self.config.ports.count(), crate::BYTE_ORDER);
        Some(Compatibility::new("serial", stream::MAJOR_VERSION).data(settings))
    }

    fn arc(&mut self, _: &Context, from: State, to: State) -> Result<(), ArcError> {
        match session::effect(from, to) {
            Effect::Opens(Direction::Saving) => {
                let head = stream::head(self.config.ports).to_vec();
                self.session = Session::Saving(Saved::new(head));
            }
            Effect::Opens(Direction::Resuming) => {
                self.session = Session::Resuming(stream::Loader::new(self.config.ports));
            }
            Effect::Ends => {
                if let Session::Resuming(loader) = &self.session {
                    self.ports = loader.finish()?;
                    self.asserted = self.ports.iter().map(Port::has_cause).collect();
                    // Held by the function until the card runs.
                    self.show_line();
                }
                self.session = Session::None;
            }
            Effect::None | Effect::Continues => {}
        }
        if let (State::StopCopy, Session::Saving(saved)) = (to, &mut self.session) {
            for port in &self.ports {
                stream::append_port(saved.stream_mut(), port);
            }
        }
        self.function.enter(to);
        Ok(())
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(stream::length(self.config.ports) as u64)
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
        let initial = stream::HEAD_BYTES.saturating_sub(saved.read_bytes()) as u64;
        Ok(PrecopyReport::new(initial, 0))
    }
}

/// The card has no DMA, so nothing is logged. Like mtty, it accepts every request and reports no page.
impl DmaLogging for Serial {
    fn start(&mut self, _: &Context, ranges: &LoggingRanges) -> Result<u64, Errno> {
        Ok(ranges.page_size())
    }

    fn stop(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }

    fn report(&mut self, _: &Context, _report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        Ok(())
    }
}
