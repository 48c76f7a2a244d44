//! The order of a source's frames on several connections, and the marks that hold these together.
//!
//! Before a message of the control connection that everything else has to precede, the source sends a mark on every other lane.
//! The message is processed once all lanes have reached their marks. A lane that has reached its mark is not read until then.

use std::collections::{BTreeSet, VecDeque};

use super::control::{Control, Table};
use super::frame::Kind;
use super::intake::{Intake, Misplaced, misplaced};
use super::lanes::Share;
use super::negotiate::Feature;

/// The record of what a source has sent on all connections. Lane 0 is the control connection.
#[derive(Debug, Default)]
pub struct LaneIntake {
    intake: Intake,
    lanes: Vec<Lane>,
    /// The number of marks that all lanes have reached, and whose message was processed.
    passed: u32,
    /// Messages that wait for the marks of the lanes.
    held: VecDeque<Control>,
    /// Set once all lanes have reached the last mark: none but the control connection carries anything after it.
    is_last: bool,
}

/// The marks and bytes that have arrived on a connection.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    marks: u32,
    bytes: u64,
}

impl LaneIntake {
    /// Returns a record in which nothing has arrived.
    pub fn new() -> LaneIntake {
        LaneIntake::default()
    }

    /// Confirms state after so many bytes: see [`Intake::confirms_after`].
    #[must_use]
    pub fn confirms_after(self, bytes: u64) -> LaneIntake {
        LaneIntake { intake: self.intake.confirms_after(bytes), ..self }
    }

    /// Accepts the contents of an accepted table from here on, with the features and the number of connections in use.
    pub fn open(&mut self, table: &Table, features: &BTreeSet<Feature>, channels: u32) {
        self.intake.open(table, features);
        self.lanes = vec![Lane::default(); channels.max(1) as usize];
    }

    /// Takes in `length` bytes of memory at `address`, and returns the share of the lane.
    pub fn memory(&mut self, lane: u32, address: u64, length: u64) -> Result<Share, Misplaced> {
        self.check_data(lane, "MEMORY")?;
        let share = self.share(lane);
        if !share.has_memory(address, length) {
            return misplaced(format!("{length} bytes of memory at {address:#x} on lane {lane}"));
        }
        self.intake.memory(address, length)?;
        self.count(lane, length);
        Ok(share)
    }

    /// Checks that data may come compressed: see [`Intake::compressed`].
    pub fn compressed(&self, kind: Kind) -> Result<(), Misplaced> {
        self.intake.compressed(kind)
    }

    /// Takes in bytes of a device's state: see [`Intake::state`].
    pub fn state(
        &mut self,
        lane: u32,
        device: u32,
        bytes: usize,
        ends: bool,
    ) -> Result<Option<bool>, Misplaced> {
        self.check_device(lane, device, "DEVICE_STATE")?;
        let ends = self.intake.state(device, bytes, ends)?;
        self.count(lane, bytes as u64);
        Ok(ends)
    }

    /// Returns the devices whose state is to be confirmed: see [`Intake::unconfirmed`].
    pub fn unconfirmed(&mut self) -> Vec<(u32, u64)> {
        self.intake.unconfirmed()
    }

    /// Continues on other connections, whose marks begin again: see [`Intake::resume`]. Messages that waited for marks of the
    /// lost ones are dropped: they count as not sent.
    pub fn resume(&mut self) -> Vec<u64> {
        self.held.clear();
        self.passed = 0;
        self.lanes.iter_mut().for_each(|lane| lane.marks = 0);
        self.intake.resume()
    }

    /// Takes in the setup of a device.
    pub fn setup(&mut self, lane: u32, device: u32) -> Result<(), Misplaced> {
        self.check_device(lane, device, "SETUP")?;
        self.intake.setup(device)
    }

    /// Takes in bytes of a blob.
    pub fn blob(
        &mut self,
        lane: u32,
        name: &str,
        version: u32,
        last: bool,
        bytes: usize,
    ) -> Result<(), Misplaced> {
        self.check_data(lane, "BLOB")?;
        if lane != 0 {
            return misplaced(format!("BLOB on lane {lane}"));
        }
        self.intake.blob(name, version, last, bytes)
    }

    /// Takes in padding.
    pub fn padding(&mut self, lane: u32) -> Result<(), Misplaced> {
        self.check_data(lane, "PADDING")?;
        self.intake.padding()
    }

    /// Takes in a control message, and returns the messages to process now: none if it has to wait for the marks of lanes.
    pub fn control(&mut self, lane: u32, control: Control) -> Result<Vec<Control>, Misplaced> {
        match control {
            Control::Mark { number } => return self.mark(lane, number),
            control if lane != 0 => return misplaced(format!("{} on lane {lane}", control.name())),
            // It waits for nothing.
            control @ Control::Abort(_) => return Ok(vec![control]),
            control => self.held.push_back(control),
        }
        if self.held.len() > 1 {
            self.check_behind_held()?;
        }
        self.release()
    }

    /// Returns whether a lane has reached a mark that others have not: nothing more is to be read from it until then.
    pub fn is_held(&self, lane: u32) -> bool {
        lane != 0 && !self.is_last && self.lane(lane).marks > self.passed
    }

    /// Returns whether all lanes have reached the last mark: the source may close all but the control connection.
    pub fn is_over(&self) -> bool {
        self.is_last
    }

    /// Returns the bytes of memory and device state that have arrived on each connection.
    pub fn lane_bytes(&self) -> impl Iterator<Item = u64> {
        self.lanes.iter().map(|lane| lane.bytes)
    }

    /// Returns the record of all connections together.
    pub fn intake(&self) -> &Intake {
        &self.intake
    }

    fn mark(&mut self, lane: u32, number: u32) -> Result<Vec<Control>, Misplaced> {
        self.check_data(lane, "MARK")?;
        let found = match self.lanes.get_mut(lane as usize) {
            Some(found) if lane != 0 => found,
            _ => return misplaced(format!("MARK on lane {lane}")),
        };
        // One that is held is not read.
        if found.marks != self.passed || Some(number) != found.marks.checked_add(1) {
            let marks = found.marks;
            return misplaced(format!("mark {number} on lane {lane}, which has reached mark {marks}"));
        }
        found.marks = number;
        self.release()
    }

    /// Returns the messages that need not wait any more, in order, and records them.
    fn release(&mut self) -> Result<Vec<Control>, Misplaced> {
        let mut released = Vec::new();
        while let Some(next) = self.held.front() {
            if needs_marks(next) && !self.is_last {
                let number = self.passed.saturating_add(1);
                if self.lanes.iter().skip(1).any(|lane| lane.marks < number) {
                    break;
                }
                self.is_last = !matches!(next, Control::Round { .. });
                self.passed = number;
            }
            if let Some(control) = self.held.pop_front() {
                self.intake.control(&control)?;
                released.push(control);
            }
        }
        Ok(released)
    }

    /// Checks that a message may stand behind one that waits: the ends of devices and of everything do.
    fn check_behind_held(&self) -> Result<(), Misplaced> {
        let (first, last) = (self.held.front(), self.held.back());
        let (Some(first), Some(last)) = (first, last) else { return Ok(()) };
        let is_end = |control: &Control| matches!(control, Control::DeviceEnd { .. } | Control::End { .. });
        // Each device ends once.
        if is_end(first) && is_end(last) && self.held.len() <= self.intake.states().count() + 1 {
            return Ok(());
        }
        misplaced(format!("{} before the lanes have reached the mark of {}", last.name(), first.name()))
    }

    fn check_device(&self, lane: u32, device: u32, what: &str) -> Result<(), Misplaced> {
        self.check_data(lane, what)?;
        if self.share(lane).has_device(device) {
            return Ok(());
        }
        misplaced(format!("{what} of device {device} on lane {lane}"))
    }

    /// Checks that data may follow on a lane.
    fn check_data(&self, lane: u32, what: &str) -> Result<(), Misplaced> {
        if lane == 0 {
            return match self.held.front() {
                Some(held) => {
                    misplaced(format!("{what} before the lanes have reached the mark of {}", held.name()))
                }
                None => Ok(()),
            };
        }
        if lane as usize >= self.lanes.len() {
            return misplaced(format!("{what} on lane {lane}, which is not in use"));
        }
        if self.is_last {
            return misplaced(format!("{what} on lane {lane} after its last mark"));
        }
        if self.is_held(lane) {
            return misplaced(format!("{what} on lane {lane} before the other lanes have reached its mark"));
        }
        Ok(())
    }

    fn share(&self, lane: u32) -> Share {
        Share::new(lane, u32::try_from(self.lanes.len()).unwrap_or(u32::MAX))
    }

    fn lane(&self, lane: u32) -> Lane {
        self.lanes.get(lane as usize).copied().unwrap_or_default()
    }

    fn count(&mut self, lane: u32, bytes: u64) {
        if let Some(lane) = self.lanes.get_mut(lane as usize) {
            lane.bytes = lane.bytes.saturating_add(bytes);
        }
    }
}

/// Returns whether everything before it on all lanes has to be processed first.
fn needs_marks(control: &Control) -> bool {
    matches!(control, Control::Round { .. } | Control::DeviceEnd { .. } | Control::End { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::identity::DeviceIdentity;
    use crate::proto::lanes::STRIPE;
    use crate::set::RamRegion;

    const PAGE: u64 = 4096;

    /// Three lanes, two devices and three stripes of memory.
    fn intake() -> LaneIntake {
        let table = Table {
            devices: vec![DeviceIdentity::default(); 2],
            memory: vec![RamRegion::new(0, 3 * STRIPE)],
            blobs: Vec::new(),
        };
        let mut intake = LaneIntake::new();
        intake.open(&table, &BTreeSet::from(Feature::ALL), 3);
        intake
    }

    fn round(number: u32) -> Control {
        Control::Round { number, initial: true }
    }

    fn mark(number: u32) -> Control {
        Control::Mark { number }
    }

    fn end(device: u32, bytes: u64) -> Control {
        Control::DeviceEnd { device, bytes }
    }

    #[test]
    fn a_message_is_processed_once_every_lane_has_reached_its_mark() {
        let mut intake = intake();
        intake.memory(0, 0, PAGE).unwrap();
        intake.memory(1, STRIPE, PAGE).unwrap();
        assert_eq!(intake.control(1, mark(1)), Ok(vec![]));
        assert!(intake.is_held(1) && !intake.is_held(2) && !intake.is_held(0));
        assert_eq!(intake.control(0, round(1)), Ok(vec![]));
        intake.memory(2, 2 * STRIPE, PAGE).unwrap();
        assert_eq!(intake.control(2, mark(1)), Ok(vec![round(1)]));
        assert!(!intake.is_held(1) && !intake.is_held(2));
        // The marks come first this time, and the ends of the devices follow each other.
        assert_eq!(intake.state(1, 1, 5, false), Ok(None));
        for lane in [2, 1] {
            assert_eq!(intake.control(lane, mark(2)), Ok(vec![]));
        }
        assert_eq!(intake.control(0, end(0, 0)), Ok(vec![end(0, 0)]));
        assert_eq!(intake.control(0, end(1, 5)), Ok(vec![end(1, 5)]));
        let last = Control::End { memory_bytes: 3 * PAGE };
        assert_eq!(intake.control(0, last.clone()), Ok(vec![last]));
        assert!(intake.intake().is_complete());
        assert_eq!(intake.lane_bytes().collect::<Vec<_>>(), [PAGE, PAGE + 5, PAGE]);
    }

    #[test]
    fn the_ends_wait_together_and_the_totals_are_those_of_all_lanes() {
        let mut intake = intake();
        let last = Control::End { memory_bytes: PAGE };
        for control in [end(0, 0), end(1, 3), last.clone()] {
            assert_eq!(intake.control(0, control), Ok(vec![]));
        }
        assert_eq!(intake.control(2, mark(1)), Ok(vec![]));
        assert_eq!(intake.state(1, 1, 3, false), Ok(None));
        intake.memory(1, STRIPE, PAGE).unwrap();
        assert_eq!(intake.control(1, mark(1)), Ok(vec![end(0, 0), end(1, 3), last]));
    }

    #[test]
    fn what_waited_on_lost_connections_is_dropped_and_the_round_comes_again() {
        let mut intake = intake();
        intake.memory(0, 0, PAGE).unwrap();
        assert_eq!(intake.state(1, 1, 5, false), Ok(None));
        for lane in [1, 2] {
            intake.control(lane, mark(1)).unwrap();
        }
        assert_eq!(intake.control(0, round(1)), Ok(vec![round(1)]));
        intake.memory(1, STRIPE, PAGE).unwrap();
        assert_eq!(intake.state(1, 1, 3, false), Ok(None));
        intake.control(1, mark(2)).unwrap();
        assert_eq!(intake.control(0, round(2)), Ok(vec![]));
        assert_eq!(intake.resume(), [0, 8]);
        assert!(!intake.is_held(1));
        intake.memory(1, STRIPE, PAGE).unwrap();
        intake.control(1, mark(2)).unwrap_err();
        for lane in [1, 2] {
            assert_eq!(intake.control(lane, mark(1)), Ok(vec![]));
        }
        assert_eq!(intake.control(0, round(2)), Ok(vec![round(2)]));
        assert_eq!(intake.intake().memory_bytes(), 2 * PAGE, "that of the lost round counts once");
    }

    #[test]
    fn abort_waits_for_nothing() {
        let mut intake = intake();
        assert_eq!(intake.control(0, round(1)), Ok(vec![]));
        let abort = Control::Abort(crate::proto::control::Reason { reason: "no".into() });
        assert_eq!(intake.control(0, abort.clone()), Ok(vec![abort]));
    }

    #[test]
    fn one_connection_needs_no_marks() {
        let mut intake = LaneIntake::new();
        let table = Table {
            devices: vec![DeviceIdentity::default()],
            memory: vec![RamRegion::new(0, 3 * STRIPE)],
            blobs: Vec::new(),
        };
        intake.open(&table, &BTreeSet::new(), 1);
        intake.memory(0, 0, 3 * STRIPE).unwrap();
        assert_eq!(intake.control(0, round(1)), Ok(vec![round(1)]));
        assert_eq!(intake.state(0, 0, 1, false), Ok(None));
        assert_eq!(intake.control(0, end(0, 1)), Ok(vec![end(0, 1)]));
        intake.control(0, round(2)).unwrap_err();
    }

    /// A step of a source that violates the order.
    type Break = fn(&mut LaneIntake) -> Result<(), Misplaced>;

    #[test]
    fn each_breach_is_found() {
        let cases: [(&str, Break); 19] = [
            ("of memory at 0x0 on lane 1", |intake| intake.memory(1, 0, PAGE).map(drop)),
            ("of memory at 0x200000 on lane 0", |intake| intake.memory(0, STRIPE, PAGE).map(drop)),
            ("of memory at 0x1ff000 on lane 0", |intake| intake.memory(0, STRIPE - PAGE, 2 * PAGE).map(drop)),
            ("DEVICE_STATE of device 0 on lane 1", |intake| intake.state(1, 0, 1, false).map(drop)),
            ("SETUP of device 1 on lane 2", |intake| intake.setup(2, 1)),
            ("BLOB on lane 1", |intake| intake.blob(1, "cpu", 1, true, 1)),
            ("on lane 3, which is not in use", |intake| intake.padding(3)),
            ("on lane 3, which is not in use", |intake| intake.control(3, mark(1)).map(drop)),
            ("MARK on lane 0", |intake| intake.control(0, mark(1)).map(drop)),
            ("ROUND on lane 1", |intake| intake.control(1, round(1)).map(drop)),
            ("ABORT on lane 1", |intake| {
                let reason = crate::proto::control::Reason { reason: String::new() };
                intake.control(1, Control::Abort(reason)).map(drop)
            }),
            ("mark 2 on lane 1, which has reached mark 0", |intake| intake.control(1, mark(2)).map(drop)),
            ("mark 0 on lane 1", |intake| intake.control(1, mark(0)).map(drop)),
            ("before the other lanes have reached its mark", |intake| {
                intake.control(1, mark(1))?;
                intake.memory(1, STRIPE, PAGE).map(drop)
            }),
            ("before the other lanes have reached its mark", |intake| {
                intake.control(1, mark(1))?;
                intake.control(1, mark(2)).map(drop)
            }),
            ("MEMORY before the lanes have reached the mark of ROUND", |intake| {
                intake.control(0, round(1))?;
                intake.memory(0, 0, PAGE).map(drop)
            }),
            ("ROUND before the lanes have reached the mark of ROUND", |intake| {
                intake.control(0, round(1))?;
                intake.control(0, round(2)).map(drop)
            }),
            ("DEVICE_END before the lanes have reached the mark of DEVICE_END", |intake| {
                (0..4).try_for_each(|_| intake.control(0, end(0, 0)).map(drop))
            }),
            ("MEMORY on lane 1 after its last mark", |intake| {
                intake.control(1, mark(1))?;
                intake.control(2, mark(1))?;
                intake.control(0, end(0, 0))?;
                intake.memory(1, STRIPE, PAGE).map(drop)
            }),
        ];
        for (why, step) in cases {
            let error = step(&mut intake()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
