//! What arrives at a side.

use whimbrel_engine::Error;
use whimbrel_engine::proto::operation::{Event, Place};

use super::coverage::Side;
use super::host::Item;
use super::link::Frame;
use super::oracle::Oracle;
use super::world::World;

impl World {
    /// A frame arrives.
    pub(crate) fn arrive(&mut self, side: Side, frame: Frame) {
        self.say(|_| format!("{side:?} receives {frame:?}"));
        let page_bytes = self.plan.page_bytes;
        let now = self.now;
        let host = self.host(side);
        if host.is_told_lost || !host.is_active() {
            return;
        }
        host.last_arrival = now;
        let checked = match &frame {
            _ if side == Side::Source => Ok(()),
            Frame::Control(control) => host.intake.control(control),
            Frame::Memory { page, .. } => host.intake.memory(*page as u64 * page_bytes, page_bytes),
            Frame::State { device, bytes, .. } => {
                host.intake.state(*device as u32, *bytes as usize, false).map(drop)
            }
            Frame::Setup { device, .. } => host.intake.setup(*device as u32),
            Frame::Blob { .. } => host.intake.blob("cpu", 1, true, 4),
            Frame::Padding => host.intake.padding(),
            Frame::Fin => Ok(()),
        };
        if let Err(misplaced) = checked {
            return self.lost(side, Error::Protocol(misplaced.to_string()));
        }
        match frame {
            Frame::Control(control) if side == Side::Source => {
                Oracle::receives(self, &control);
                self.input(side, Event::Received(control), false);
            }
            Frame::Control(control) => self.input(side, Event::Received(control), false),
            Frame::Memory { page, value } => host.memory[page] = value,
            Frame::State { device, block, value, .. } => {
                let place = Place::Device(device);
                if let Some(worker) = host.workers.get_mut(&place) {
                    worker.queue.push_back(Item::State { block, value });
                }
                self.begin(side, place);
            }
            Frame::Setup { device, value } => {
                let place = Place::Device(device);
                if let Some(worker) = host.workers.get_mut(&place) {
                    worker.queue.push_back(Item::Setup { value });
                }
                self.begin(side, place);
            }
            Frame::Blob { value } => host.blob = Some(value),
            Frame::Padding => {}
            Frame::Fin => self.lost(side, Error::Lost { side: "peer" }),
        }
    }
}
