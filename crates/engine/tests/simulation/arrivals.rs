//! What arrives at a side.

use whimbrel_engine::Error;
use whimbrel_engine::proto::control::Control;
use whimbrel_engine::proto::frame::Kind;
use whimbrel_engine::proto::operation::{Event, Place};

use super::coverage::Side;
use super::host::Item;
use super::link::Frame;
use super::oracle::Oracle;
use super::world::World;

impl World {
    /// A frame arrives. On a lane that has reached its mark it waits for the other lanes.
    pub(crate) fn arrive(&mut self, side: Side, lane: u32, frame: Frame) {
        let host = self.host(side);
        if side == Side::Destination
            && lane > 0
            && (host.intake.is_held(lane) || !host.waiting[lane as usize].is_empty())
        {
            host.waiting[lane as usize].push_back(frame);
            return;
        }
        self.take_in(side, lane, frame);
        if side == Side::Destination {
            self.go_on_reading();
        }
    }

    /// A frame is read.
    pub(crate) fn take_in(&mut self, side: Side, lane: u32, frame: Frame) {
        self.say(|_| format!("{side:?} receives {frame:?} on lane {lane}"));
        let page_bytes = self.plan.page_bytes;
        let now = self.now;
        let host = self.host(side);
        // Lanes are read until the connections are ended, whatever has become of the first one.
        if (host.is_told_lost && lane == 0) || !host.is_active() {
            return;
        }
        if matches!(frame, Frame::Fin) && lane > 0 {
            let connection = host.connection;
            return self.lane_lost(connection, lane);
        }
        host.last_arrival = now;
        let frame = match frame {
            Frame::Compressed(frame) => {
                let kind = if matches!(*frame, Frame::State { .. }) {
                    Kind::DeviceStateZstd
                } else {
                    Kind::MemoryZstd
                };
                if let Err(misplaced) = host.intake.compressed(kind) {
                    return self.lost(side, Error::Protocol(misplaced.to_string()));
                }
                *frame
            }
            other => other,
        };
        let mut released = Vec::new();
        let checked = match &frame {
            _ if side == Side::Source => Ok(()),
            Frame::Control(control) => {
                host.intake.control(lane, control.clone()).map(|controls| released = controls)
            }
            Frame::Mark { number, .. } => host
                .intake
                .control(lane, Control::Mark { number: *number })
                .map(|controls| released = controls),
            Frame::Memory { page, .. } => {
                host.intake.memory(lane, *page as u64 * page_bytes, page_bytes).map(drop)
            }
            Frame::State { device, bytes, .. } => {
                host.intake.state(lane, *device as u32, *bytes as usize, false).map(drop)
            }
            Frame::Setup { device, .. } => host.intake.setup(lane, *device as u32),
            Frame::Blob { .. } => host.intake.blob(lane, "cpu", 1, true, 4),
            Frame::Padding => host.intake.padding(lane),
            Frame::Compressed(_) | Frame::Join { .. } | Frame::Fin => Ok(()),
        };
        if let Err(misplaced) = checked {
            return self.lost(side, Error::Protocol(misplaced.to_string()));
        }
        let frame = match frame {
            Frame::Control(Control::StateTaken { device, bytes }) if side == Side::Source => {
                return self.state_taken(device, bytes);
            }
            other => other,
        };
        let host = self.host(side);
        match frame {
            Frame::Control(control) if side == Side::Source => {
                Oracle::receives(self, &control);
                self.input(side, Event::Received(control), false);
            }
            Frame::Control(_) | Frame::Mark { .. } => self.hear(released),
            Frame::Memory { page, value } => host.memory[page] = value,
            Frame::State { device, block, value, .. } => {
                let place = Place::Device(device);
                if let Some(worker) = host.workers.get_mut(&place) {
                    worker.queue.push_back(Item::State { block, value });
                }
                self.begin(side, place);
                self.confirm_state();
            }
            Frame::Setup { device, value } => {
                let place = Place::Device(device);
                if let Some(worker) = host.workers.get_mut(&place) {
                    worker.queue.push_back(Item::Setup { value });
                }
                self.begin(side, place);
            }
            Frame::Blob { value } => host.blob = Some(value),
            Frame::Padding | Frame::Compressed(_) | Frame::Join { .. } => {}
            Frame::Fin => self.lost(side, Error::Lost { side: "peer" }),
        }
    }
}
