//! Raw requests on vfio-pci's devices: result, errno, bytes out and the eventfds that were signalled.
//!
//! What the lists leave out, and why, is in `docs/differences.md`.

mod device;
pub mod devices;
mod groups;
pub mod list;
mod own_files;
mod real;

use std::fmt::Write as _;

use whimbrel_uapi::Errno;

use self::groups::through_groups;
use self::list::{ARGUMENT, DATA, EVENTS, PAGE, Probe, Step};
use self::own_files::through_own_files;
pub(crate) use self::real::Real;

/// How devices are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Through groups in a container.
    Groups,
    /// Through their own files and an iommufd.
    OwnFiles,
}

impl Mode {
    pub(crate) fn steps(self) -> Vec<Step> {
        match self {
            Mode::Groups => through_groups(),
            Mode::OwnFiles => through_own_files(),
        }
    }
}

/// A kernel, or what stands for one.
pub trait Side {
    /// Puts bytes into the page that they begin in.
    fn put(&mut self, address: u64, bytes: &[u8]);
    /// Reads bytes of the page that they begin in.
    fn get(&self, address: u64, bytes: &mut [u8]);
    /// Makes a request. A descriptor that it answers goes to the probe's slot.
    fn ioctl(&mut self, probe: &Probe) -> Result<i32, Errno>;
    /// Opens the own file of a slot's device.
    fn open(&mut self, slot: usize);
    /// Closes what is in a slot, if anything.
    fn close(&mut self, slot: usize);
    /// Gives a device the time to go to sleep, if it may.
    fn settle(&mut self, slot: usize);
    /// What the eventfds have counted since the last time.
    fn signals(&mut self) -> [u64; EVENTS];
}

/// What ends in zeros, or in anything else over and over, is told as that.
fn hex(bytes: &[u8]) -> String {
    let last = bytes.last().copied().unwrap_or(0);
    let end = bytes.iter().rposition(|byte| *byte != last).map_or(0, |at| at + 1);
    let head: String = bytes[..end].iter().map(|byte| format!("{byte:02x}")).collect();
    match bytes.len() - end {
        0 => head,
        1 => format!("{head}{last:02x}"),
        more => format!("{head}({last:02x}*{more})"),
    }
}

fn answer(side: &mut impl Side, probe: &Probe) -> String {
    let within = probe.within();
    side.put(ARGUMENT, &[0; PAGE]);
    side.put(DATA, &[0; PAGE]);
    if within > 0 {
        side.put(probe.argument, &probe.bytes[..within]);
    }
    let result = side.ioctl(probe);
    let mut out = probe.bytes.clone();
    if within > 0 {
        side.get(probe.argument, &mut out[..within]);
    }
    let result = match result {
        Ok(_) if probe.into.is_some() => String::from("fd"),
        Ok(value) => value.to_string(),
        Err(errno) => format!("{errno:?}"),
    };
    let argument = match probe.argument.checked_sub(ARGUMENT) {
        Some(offset) if offset < PAGE as u64 => format!("+{offset:x}"),
        _ => format!("{:x}", probe.argument),
    };
    let mut line =
        format!("{} {:x} {argument} {} {result}", probe.file.name(), probe.number, hex(&probe.bytes));
    if out != probe.bytes {
        line.push_str(&[" ", &hex(&out)].concat());
    }
    for (event, count) in side.signals().into_iter().enumerate().filter(|(_, count)| *count > 0) {
        write!(line, " {event}!{count}").unwrap();
    }
    line
}

/// Makes all steps, and tells each request with its answer in a line.
pub fn answers(side: &mut impl Side, mode: Mode, mut told: impl FnMut(String)) {
    for step in mode.steps() {
        match step {
            Step::Request(probe) => told(answer(side, &probe)),
            Step::Open(slot) => side.open(slot),
            Step::Close(slot) => side.close(slot),
            Step::Settle(slot) => side.settle(slot),
        }
    }
}

/// All requests, in the order of the lines that [`answers`] tells.
pub fn probes(mode: Mode) -> Vec<Probe> {
    let request = |step| match step {
        Step::Request(probe) => Some(probe),
        _ => None,
    };
    mode.steps().into_iter().filter_map(request).collect()
}
