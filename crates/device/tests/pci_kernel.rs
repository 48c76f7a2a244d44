//! Lists of raw requests on vfio-pci's devices, answered by a kernel and by ours: result, errno, bytes out
//! and the eventfds that were signalled agree.
//!
//! The kernel's answers (Linux 6.12) are kept in `pci_kernel/groups.txt`, of Debian's kernel, and
//! `pci_kernel/own_files.txt`, of the lab's own. `lab/run exec --pci -- <this test, linked statically>
//! --ignored --nocapture record_through_groups` asks again; with `--kernel iommufd`,
//! `record_through_own_files` too. What the lists leave out, and why, stands in `docs/differences.md`.
// mmap and ioctl on the real kernel; nothing else here is unsafe.
#![allow(clippy::unwrap_used, unsafe_code)]

mod pci_kernel {
    pub(crate) mod device;
    pub(crate) mod devices;
    pub(crate) mod groups;
    pub(crate) mod list;
    pub(crate) mod ours;
    pub(crate) mod own_files;
    pub(crate) mod real;
}

use std::fmt::Write as _;

use pci_kernel::devices::DEVICES;
use pci_kernel::groups::through_groups;
use pci_kernel::list::{ARGUMENT, DATA, EVENTS, File, PAGE, Probe, Step};
use pci_kernel::ours::Ours;
use pci_kernel::own_files::through_own_files;
use pci_kernel::real::Real;
use whimbrel_device::Errno;
use whimbrel_uapi::ioctl::{Request, VFIO_DEVICE_IOEVENTFD, VFIO_DEVICE_PCI_HOT_RESET};

/// How devices are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Through groups in a container.
    Groups,
    /// Through their own files and an iommufd.
    OwnFiles,
}

impl Mode {
    fn steps(self) -> Vec<Step> {
        match self {
            Mode::Groups => through_groups(),
            Mode::OwnFiles => through_own_files(),
        }
    }
}

/// A kernel, or what stands for one.
trait Side {
    /// Puts bytes into the page that they begin in.
    fn put(&mut self, address: u64, bytes: &[u8]);
    fn get(&self, address: u64, bytes: &mut [u8]);
    fn ioctl(&mut self, probe: &Probe) -> Result<i32, Errno>;
    fn open(&mut self, slot: usize);
    fn close(&mut self, slot: usize);
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

fn answers(side: &mut impl Side, mode: Mode, mut told: impl FnMut(String)) {
    for step in mode.steps() {
        match step {
            Step::Request(probe) => told(answer(side, &probe)),
            Step::Open(slot) => side.open(slot),
            Step::Close(slot) => side.close(slot),
            Step::Settle(slot) => side.settle(slot),
        }
    }
}

fn compare(mode: Mode, recorded: &str) {
    let mut ours = Vec::new();
    answers(&mut Ours::new(mode), mode, |line| ours.push(line));
    let probes = mode.steps().into_iter().filter_map(|step| match step {
        Step::Request(probe) => Some(probe),
        _ => None,
    });
    let recorded: Vec<&str> = recorded.lines().collect();
    assert!(ours.len() > 1000, "{}", ours.len());
    assert_eq!(ours.len(), recorded.len(), "the list has changed: record it anew");
    let different: Vec<String> = ours
        .iter()
        .zip(&recorded)
        .zip(probes)
        .enumerate()
        .filter(|(_, ((ours, kernel), probe))| ours != *kernel && !is_explained(probe, ours, kernel))
        .map(|(index, ((ours, kernel), _))| format!("{}:\n  ours   {ours}\n  kernel {kernel}", index + 1))
        .collect();
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

/// Where `docs/differences.md` says that we answer otherwise, and why.
fn is_explained(probe: &Probe, ours: &str, kernel: &str) -> bool {
    let answer = |line: &str| line.split(' ').nth(4).map(str::to_owned);
    let (ours, kernel) = (answer(ours), answer(kernel));
    let is = |request: Request| probe.number == request.number();
    let File::Device(slot) = probe.file else { return false };
    // QEMU's port does not say that its link is up again: the kernel gives up.
    if is(VFIO_DEVICE_PCI_HOT_RESET) {
        return ours.as_deref() == Some("0") && kernel.as_deref() == Some("ENOTTY");
    }
    // A model's MSI-X table takes writes as any register.
    if is(VFIO_DEVICE_IOEVENTFD) && kernel.as_deref() == Some("EINVAL") {
        let word =
            |at: usize| probe.bytes.get(at..at + 8).map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
        let (Some(offset), Some(width)) = (word(8), probe.bytes.get(4)) else { return false };
        return DEVICES[slot].table.is_some_and(|(bar, table, bytes)| {
            let start = u64::from(bar) << 40 | table;
            offset < start + bytes && start < offset + u64::from(*width)
        });
    }
    false
}

#[test]
fn what_is_opened_through_a_group_answers_as_a_kernels() {
    compare(Mode::Groups, include_str!("pci_kernel/groups.txt"));
}

#[test]
fn what_is_opened_by_its_own_file_answers_as_a_kernels() {
    compare(Mode::OwnFiles, include_str!("pci_kernel/own_files.txt"));
}

#[test]
#[ignore = "needs the lab's kernel: lab/run exec --pci"]
fn record_through_groups() {
    answers(&mut Real::new(Mode::Groups), Mode::Groups, |line| println!("> {line}"));
}

#[test]
#[ignore = "needs the lab's kernel: lab/run exec --pci --kernel iommufd"]
fn record_through_own_files() {
    answers(&mut Real::new(Mode::OwnFiles), Mode::OwnFiles, |line| println!("> {line}"));
}
