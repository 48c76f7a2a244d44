//! What goes wrong, when it does.

use std::time::Duration;

use whimbrel_engine::proto::operation::Event;

use super::coverage::{Blow, Side};
use super::happening::Happening;
use super::host::{Fate, Machine};
use super::plan::Fault;
use super::world::World;

impl World {
    /// Breaks all connections.
    pub(crate) fn cut(&mut self, silent: bool) {
        self.down_until = self.now + self.plan.outage;
        for connection in 0..self.connections() {
            for side in Side::BOTH {
                for lane in self.lane_numbers(side) {
                    self.lane_at(connection, side, lane).break_off(silent);
                    if lane > 0 && !silent {
                        self.tell_of_lane(connection, lane);
                    }
                }
            }
        }
        for side in Side::BOTH {
            if !silent {
                let delay = Duration::from_micros(self.rng.u64(..2000));
                if let Some(connection) = self.host(side).hears {
                    self.after(delay, Happening::Lost { side, connection });
                }
                self.wake(side);
            }
        }
    }

    /// Breaks the source's control connection alone.
    fn cut_control(&mut self, silent: bool) {
        let connection = self.host(Side::Source).connection;
        for side in Side::BOTH {
            self.link_of(connection, side).break_off(silent);
        }
        for side in Side::BOTH {
            if !silent {
                let delay = Duration::from_micros(self.rng.u64(..2000));
                self.after(delay, Happening::Lost { side, connection });
                self.wake(side);
            }
        }
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        self.say(|_| format!("FAULT {fault:?}"));
        match fault {
            Fault::Cancel(side) => {
                if self.host(side).is_active() {
                    let row = self.host(side).machine.as_ref().map_or(0, Machine::row);
                    self.coverage.hit(side, row, Blow::Cancelled);
                    self.input(side, Event::Cancel("an operator".into()), false);
                }
            }
            Fault::Cut { silent } => {
                for side in Side::BOTH {
                    if self.host(side).is_active() {
                        let row = self.host(side).machine.as_ref().map_or(0, Machine::row);
                        self.coverage.hit(side, row, Blow::Cut);
                    }
                }
                self.cut(silent);
            }
            Fault::CutControl { silent } => self.cut_control(silent),
            Fault::Stall(time) => {
                self.flow(0.0);
                self.after(time, Happening::Flow);
            }
            Fault::Trickle(bandwidth) => self.flow(bandwidth),
            Fault::Crash { side, silent } => self.crash(side, silent),
            Fault::Intruder => self.intrude(),
            Fault::Fail(side) => self.host(side).armed.push_back(Fate::Fails),
            Fault::Hang(side) => {
                let took_effect = self.rng.bool();
                self.host(side).armed.push_back(Fate::Hangs { took_effect });
            }
            Fault::Slow(side) => self.host(side).is_slow = true,
            Fault::FailArcs(side, count) => self.host(side).failing_arcs = count,
            Fault::CutLane { lane, silent } => self.cut_lane(lane, silent),
            Fault::Stranger(stranger) => self.meet(stranger),
        }
    }
}
