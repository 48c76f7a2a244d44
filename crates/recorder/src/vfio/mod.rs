//! Raw requests on a container, a group and a device: result, errno and bytes out.
//!
//! What the list leaves out, and why, is in `docs/differences.md`.

pub mod probes;
mod real;

use whimbrel_uapi::Errno;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::ioctl::{VFIO_DEVICE_FEATURE, VFIO_GROUP_GET_DEVICE_FD};

use self::probes::{ARGUMENT, DATA, File, PAGE, Probe, Step, steps};
pub(crate) use self::real::Real;

/// A kernel, or what stands for one.
pub trait Side {
    /// Puts bytes into the page that they begin in.
    fn put(&mut self, address: u64, bytes: &[u8]);
    /// Reads bytes of the page that they begin in.
    fn get(&self, address: u64, bytes: &mut [u8]);
    /// A successful GET_DEVICE_FD makes its device the one that [`File::Device`] stands for.
    fn ioctl(&mut self, file: File, number: u32, argument: u64) -> Result<i32, Errno>;
    /// Closes a data file.
    fn close(&mut self, fd: i32);
    /// Closes the device.
    fn close_device(&mut self);
}

/// Where the number of a data file is in MIG_DEVICE_STATE, behind the head of VFIO_DEVICE_FEATURE.
const DATA_FD: std::ops::Range<usize> = 12..16;

/// The number of a new data file, if the request gave one.
fn data_file(probe: &Probe, result: Result<i32, Errno>, out: &[u8]) -> Option<i32> {
    let set = FeatureFlags::SET.bits() | u32::from(Feature::MigDeviceState.number());
    let is_set = probe.number == VFIO_DEVICE_FEATURE.number()
        && probe.file == File::Device
        && probe.bytes.get(4..8) == Some(&set.to_ne_bytes());
    let fd = i32::from_ne_bytes(out.get(DATA_FD)?.try_into().unwrap());
    (is_set && result.is_ok() && fd >= 0).then_some(fd)
}

fn answer(side: &mut impl Side, probe: &Probe) -> String {
    let within = probe.within();
    side.put(ARGUMENT, &[0; PAGE]);
    side.put(DATA, &[0; PAGE]);
    side.put(DATA, &probe.data);
    if within > 0 {
        side.put(probe.argument, &probe.bytes[..within]);
    }
    let result = side.ioctl(probe.file, probe.number, probe.argument);
    let mut out = probe.bytes.clone();
    if within > 0 {
        side.get(probe.argument, &mut out[..within]);
    }
    if let Some(fd) = data_file(probe, result, &out) {
        side.close(fd);
        out[DATA_FD].copy_from_slice(&i32::MAX.to_ne_bytes());
    }
    let mut data = [0; 64];
    side.get(DATA, &mut data);
    let opens = probe.number == VFIO_GROUP_GET_DEVICE_FD.number() && probe.file == File::Group;
    let result = match result {
        Ok(_) if opens => String::from("fd"),
        Ok(value) => value.to_string(),
        Err(errno) => format!("{errno:?}"),
    };
    let hex = |bytes: &[u8]| {
        // What ends in zeros, or in anything else over and over, is told as that.
        let last = bytes.last().copied().unwrap_or(0);
        let end = bytes.iter().rposition(|byte| *byte != last).map_or(0, |at| at + 1);
        let head: String = bytes[..end].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{head}({last:02x}*{})", bytes.len() - end)
    };
    let changed = if out == probe.bytes { String::from("=") } else { hex(&out) };
    let data = if data[..probe.data.len()] == probe.data && data[probe.data.len()..].iter().all(|b| *b == 0) {
        String::new()
    } else {
        format!(" {}", hex(&data))
    };
    let (file, number, argument) = (probe.file, probe.number, probe.argument);
    format!("{file:?} {number:x} {argument:x} {} {result} {changed}{data}", hex(&probe.bytes))
}

/// Makes all requests, and tells each with its answer in a line.
pub fn answers(side: &mut impl Side, told: impl FnMut(String)) {
    answers_to(side, steps(), told);
}

pub(crate) fn answers_to(side: &mut impl Side, steps: Vec<Step>, mut told: impl FnMut(String)) {
    for step in steps {
        match step {
            Step::Request(probe) => told(answer(side, &probe)),
            Step::CloseDevice => side.close_device(),
        }
    }
}
