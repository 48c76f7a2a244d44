//! Requests on displays and the region of a monitor: result, errno and bytes out.

mod real;

use whimbrel_uapi::Errno;
use whimbrel_uapi::ioctl::{Request, VFIO_DEVICE_GET_GFX_DMABUF, VFIO_DEVICE_QUERY_GFX_PLANE};

pub(crate) use self::real::Real;

/// Where structures lie: a page, and nothing after it.
pub const ARGUMENT: u64 = 0x20_0000_0000;
/// The size of a page, in bytes.
pub const PAGE: usize = 4096;
const END: u64 = ARGUMENT + PAGE as u64;

/// The displays, by the lab's names: mbochs gives its planes as files, mdpy as a region.
pub const DISPLAYS: [&str; 2] =
    ["00000000-0000-4000-8000-0000000000d1", "00000000-0000-4000-8000-0000000000d2"];
/// The place of mbochs among [`DISPLAYS`].
pub const MBOCHS: usize = 0;
/// The place of mdpy.
const MDPY: usize = 1;
/// Regions of mbochs: its registers, and the monitor's description.
pub const REGISTERS: u32 = 2;
/// See [`REGISTERS`].
pub const EDID: u32 = 9;

enum Step {
    Request {
        display: usize,
        request: Request,
        argument: u64,
        bytes: Vec<u8>,
    },
    /// A request as before that is not told: mbochs answers the first about a mode with ENOMEM, by mistake.
    Unheard(Vec<u8>),
    Read {
        region: u32,
        offset: u64,
        size: usize,
    },
    Write {
        region: u32,
        offset: u64,
        bytes: Vec<u8>,
    },
}

/// A kernel, or what stands for one.
pub trait Side {
    /// Puts bytes into the page at [`ARGUMENT`].
    fn put(&mut self, address: u64, bytes: &[u8]);
    /// Reads bytes of that page.
    fn get(&self, address: u64, bytes: &mut [u8]);
    /// Makes a request on a display. A file that is answered is closed at once.
    fn ioctl(&mut self, display: usize, request: Request, argument: u64) -> Result<i32, Errno>;
    /// Reads a region of mbochs.
    fn read(&mut self, region: u32, offset: u64, bytes: &mut [u8]) -> Result<usize, Errno>;
    /// Writes a region of mbochs.
    fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Result<usize, Errno>;
}

/// The structure up to its last field that every user gives, and what comes after it.
fn plane(argsz: u32, flags: u32, plane_type: u32, filler: u8) -> Vec<u8> {
    let mut bytes = [argsz, flags, plane_type].map(u32::to_ne_bytes).concat();
    bytes.resize(64, filler);
    bytes
}

fn queries(list: &mut Vec<Step>) {
    for display in [MBOCHS, MDPY] {
        let mut add = |argument: u64, bytes: Vec<u8>| {
            list.push(Step::Request { display, request: VFIO_DEVICE_QUERY_GFX_PLANE, argument, bytes });
        };
        for flags in (0..16).chain((4..32).map(|bit| 1 << bit)).chain([u32::MAX]) {
            for plane_type in [0, 1, 2, 3, u32::MAX] {
                add(ARGUMENT, plane(64, flags, plane_type, 0xee));
            }
        }
        for argsz in (0..=4).chain(56..=66).chain([u32::MAX]) {
            for flags in [0, 2, 3, 4, 5] {
                add(ARGUMENT, plane(argsz, flags, 1, 7));
            }
        }
        for argument in [0, u64::MAX - 4095] {
            add(argument, plane(64, 2, 1, 0));
        }
        for left in [1, 4, 12, 59, 60, 61, 63] {
            for flags in [2, 3, 4, 5] {
                add(END - left, plane(64, flags, 1, 0));
            }
        }
    }
}

/// Each file is asked for once: mbochs gives up its pages at each close of it, by mistake.
fn files(list: &mut Vec<Step>, there: &[u32]) {
    let mut add = |argument: u64, id: u32| {
        let bytes = id.to_ne_bytes().to_vec();
        list.push(Step::Request { display: MBOCHS, request: VFIO_DEVICE_GET_GFX_DMABUF, argument, bytes });
    };
    for id in [0, 255, u32::MAX].iter().chain(there) {
        add(ARGUMENT, *id);
    }
    for argument in [0, END - 1, END - 3, u64::MAX - 3] {
        add(argument, 1);
    }
    add(END - 4, 255);
    for id in [0, 1, u32::MAX] {
        let request = VFIO_DEVICE_GET_GFX_DMABUF;
        let bytes = u32::to_ne_bytes(id).to_vec();
        list.push(Step::Request { display: MDPY, request, argument: ARGUMENT, bytes });
    }
}

/// Width, height, bits of a pixel, whether it is on, virtual width, x and y of its first pixel.
fn mode(list: &mut Vec<Step>, mode: [u16; 7]) {
    for (register, value) in [1, 2, 3, 4, 6, 8, 9].into_iter().zip(mode) {
        let offset = 0x500 + 2 * register;
        list.push(Step::Write { region: REGISTERS, offset, bytes: value.to_ne_bytes().to_vec() });
    }
    list.push(Step::Unheard(plane(64, 2, 1, 0)));
    for plane_type in 0..3 {
        let bytes = plane(64, 2, plane_type, 0xff);
        let request = VFIO_DEVICE_QUERY_GFX_PLANE;
        list.push(Step::Request { display: MBOCHS, request, argument: ARGUMENT, bytes });
    }
}

fn monitor(list: &mut Vec<Step>) {
    let registers = |list: &mut Vec<Step>| {
        for offset in (0..24).step_by(4) {
            list.push(Step::Read { region: EDID, offset, size: 4 });
        }
    };
    let write = |list: &mut Vec<Step>, offset: u64, bytes: &[u8]| {
        list.push(Step::Write { region: EDID, offset, bytes: bytes.to_vec() });
    };
    registers(list);
    // Only the size and the state of the link can be written, as whole registers.
    for offset in (0..24).step_by(4) {
        write(list, offset, &0x1122_3344u32.to_ne_bytes());
        registers(list);
    }
    for offset in [8, 20] {
        for size in [1, 2] {
            for within in 0..(4 - size) {
                write(list, offset + within, &vec![0x55; size as usize]);
            }
        }
        registers(list);
    }
    for state in [0, 1, 2, 3, u32::MAX, 2] {
        write(list, 20, &state.to_ne_bytes());
        registers(list);
    }
    let blob = 2048;
    for (offset, size) in [(0, 4), (4, 4), (124, 4), (252, 4), (1020, 4), (5, 1), (6, 2), (128, 4)] {
        let byte = (offset % 251) as u8 + 1;
        write(list, blob + offset, &vec![byte; size]);
        list.push(Step::Read { region: EDID, offset: blob + offset, size });
    }
    for offset in (0..256).step_by(4) {
        list.push(Step::Read { region: EDID, offset: blob + offset, size: 4 });
    }
    for size in [128u32, 256, 0] {
        write(list, 8, &size.to_ne_bytes());
        write(list, 20, &1u32.to_ne_bytes());
        registers(list);
    }
}

fn steps() -> Vec<Step> {
    let mut list = Vec::new();
    queries(&mut list);
    files(&mut list, &[]);
    for settings in [
        [640, 480, 32, 0, 0, 0, 0],
        [640, 480, 32, 1, 0, 0, 0],
        [640, 480, 24, 1, 0, 0, 0],
        [63, 480, 32, 1, 0, 0, 0],
        [640, 63, 32, 1, 0, 0, 0],
        [64, 64, 32, 1, 0, 0, 0],
        [640, 480, 32, 1, 800, 8, 4],
        [2000, 2000, 32, 1, 0, 0, 0],
        [640, 480, 32, 0x40, 0, 0, 0],
        [640, 480, 32, 0x41, 0, 0, 0],
    ] {
        mode(&mut list, settings);
    }
    queries(&mut list);
    files(&mut list, &[1, 2, 3]);
    monitor(&mut list);
    list
}

fn hex(bytes: &[u8]) -> String {
    let last = bytes.last().copied().unwrap_or(0);
    let end = bytes.iter().rposition(|byte| *byte != last).map_or(0, |at| at + 1);
    let head: String = bytes[..end].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{head}({last:02x}*{})", bytes.len() - end)
}

fn told<T: ToString>(result: Result<T, Errno>) -> String {
    result.map_or_else(|errno| format!("{errno:?}"), |value| value.to_string())
}

fn request(side: &mut impl Side, display: usize, request: Request, argument: u64, bytes: &[u8]) -> String {
    let is_there = (ARGUMENT..END).contains(&argument);
    let within = if is_there { bytes.len().min((END - argument) as usize) } else { 0 };
    side.put(ARGUMENT, &[0; PAGE]);
    if within > 0 {
        side.put(argument, &bytes[..within]);
    }
    let result = side.ioctl(display, request, argument);
    let mut out = bytes.to_vec();
    if within > 0 {
        side.get(argument, &mut out[..within]);
    }
    let result = match result {
        Ok(_) if request == VFIO_DEVICE_GET_GFX_DMABUF => String::from("file"),
        result => told(result),
    };
    let changed = if out == bytes { String::new() } else { format!(" {}", hex(&out)) };
    format!("{display} {:x} {argument:x} {} {result}{changed}", request.number(), hex(bytes))
}

/// Makes all steps, and tells each with its answer in a line.
pub fn answers(side: &mut impl Side, mut tell: impl FnMut(String)) {
    for step in steps() {
        match step {
            Step::Request { display, request: number, argument, bytes } => {
                tell(request(side, display, number, argument, &bytes));
            }
            Step::Unheard(bytes) => {
                request(side, MBOCHS, VFIO_DEVICE_QUERY_GFX_PLANE, ARGUMENT, &bytes);
            }
            Step::Read { region, offset, size } => {
                let mut bytes = vec![0xaa; size];
                let result = side.read(region, offset, &mut bytes);
                tell(format!("read {region} {offset:x} {} {}", told(result), hex(&bytes)));
            }
            Step::Write { region, offset, bytes } => {
                let result = side.write(region, offset, &bytes);
                tell(format!("write {region} {offset:x} {} {}", hex(&bytes), told(result)));
            }
        }
    }
}
