//! STOP: the device changes nothing, but still answers.

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use whimbrel_protocol::info::Capability;
use whimbrel_protocol::{Errno, State};
use whimbrel_uapi::device::{DeviceInfoFlags, IrqInfoFlags, RegionInfoFlags};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::pci::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};

use super::arcs::enter;
use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::dma::Target;
use crate::outcome::{Outcome, check, equal, equal_bytes, fail, inconclusive, skip, success};
use crate::subject::Subject;

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/stop/state-stays",
        "While in STOP the device must stop the operation of the device.",
        state_stays,
    ).needs(&[Need::V2]),
    Case::must("v2/stop/registers-stay", "It must not change its internal state.", registers_stay)
        .needs(&[Need::Registers]),
    Case::must(
        "v2/stop/no-interrupts",
        "The device must not generate interrupts, DMA, or any other change to external state.",
        no_interrupts,
    ),
    Case::must(
        "v2/stop/no-dma",
        "The device must not generate interrupts, DMA, or any other change to external state.",
        no_dma,
    )
    .needs(&[Need::V2, Need::Writer, Need::Memory]),
    Case::must(
        "v2/stop/config-space",
        "When stopped the device and kernel migration driver must accept and respond to interaction to support external \
         subsystems in the STOP state, for example PCI MSI-X and PCI config space.",
        config_space,
    ),
    Case::must(
        "v2/stop/interrupts-can-be-set-up",
        "When stopped the device and kernel migration driver must accept and respond to interaction to support external \
         subsystems in the STOP state, for example PCI MSI-X and PCI config space.",
        interrupts_can_be_set_up,
    ),
    Case::must(
        "v2/stop/region-access",
        "Failure by the user to restrict device access while in STOP must not result in error conditions outside the \
         user context (ex. host system faults).",
        region_access,
    )
    .resets(),
];

/// Time for a device that has not stopped to show it.
const PAUSE: Duration = Duration::from_millis(10);
/// Regions and interrupts that are asked for, at most.
const MAX_INDEXES: u32 = 64;
/// Interrupts of an index that are armed, at most.
const MAX_VECTORS: u32 = 32;

/// Makes requests that leave the device as it is.
pub(super) fn look_around(subject: &mut Subject) -> Outcome {
    let info = subject.info()?;
    // Whatever is there.
    for index in 0..info.num_regions.min(MAX_INDEXES) {
        let _ = subject.region_info(index)?;
    }
    for index in 0..info.num_irqs.min(MAX_INDEXES) {
        let _ = subject.irq_info(index)?;
    }
    subject.probe(Feature::MigDeviceState, FeatureFlags::GET | FeatureFlags::SET)?;
    if info.flags.contains(DeviceInfoFlags::PCI) {
        read_config(subject)?;
    }
    subject.state()?;
    Ok(())
}

/// Returns the head of the configuration space.
fn read_config(subject: &mut Subject) -> Outcome<[u8; 64]> {
    let mut bytes = [0; 64];
    let result = subject.read_region(VFIO_PCI_CONFIG_REGION_INDEX, 0, &mut bytes)?;
    success("a read of configuration space", result)?;
    Ok(bytes)
}

fn state_stays(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let subject = &mut bench.subject;
    subject.go(State::Stop)?;
    let before = subject.save_stopped()?;
    look_around(subject)?;
    thread::sleep(PAUSE);
    let after = subject.save_stopped()?;
    subject.go(State::Running)?;
    bench.equal_states("the state of a device that was in STOP all the time", &before, &after)
}

fn registers_stay(bench: &mut Bench) -> Outcome {
    let (registers, seed) = (bench.registers()?, bench.random.u64(..));
    let subject = &mut bench.subject;
    subject.change(&*registers, seed)?;
    let before = subject.look(&*registers)?;
    subject.go(State::Stop)?;
    look_around(subject)?;
    thread::sleep(PAUSE);
    subject.go(State::Running)?;
    let after = subject.look(&*registers)?;
    equal_bytes("registers of a device that was in STOP", &before, &after)
}

/// The interrupts of a PCI device, with eventfds.
struct Armed {
    index: u32,
    eventfds: Vec<OwnedFd>,
}

/// The interrupts that are in use one at a time.
const INTERRUPTS: [u32; 3] = [VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX];

/// Sets up the interrupts of an index; `None` if the device has none, or refuses it.
fn arm(subject: &mut Subject, index: u32) -> Outcome<Option<Armed>> {
    let Ok(irq) = subject.irq_info(index)? else { return Ok(None) };
    if irq.count == 0 || !irq.flags.contains(IrqInfoFlags::EVENTFD) {
        return Ok(None);
    }
    let eventfds: Result<Vec<OwnedFd>, _> = (0..irq.count.min(MAX_VECTORS))
        .map(|_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK))
        .collect();
    let Ok(eventfds) = eventfds else { return inconclusive("no eventfd can be created") };
    let result = set_up(subject, index, &eventfds)?;
    Ok(result.is_ok().then_some(Armed { index, eventfds }))
}

fn set_up(subject: &mut Subject, index: u32, eventfds: &[OwnedFd]) -> Outcome<Result<(), Errno>> {
    let eventfds: Vec<_> = eventfds.iter().map(|eventfd| Some(eventfd.as_fd())).collect();
    subject.set_irq_triggers(index, &eventfds)
}

impl Armed {
    /// Returns the number of interrupts since the last call.
    fn taken(&self) -> u64 {
        let count = |eventfd: &OwnedFd| {
            let mut count = [0; 8];
            rustix::io::read(eventfd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
        };
        self.eventfds.iter().map(count).fold(0, u64::saturating_add)
    }
}

fn check_is_pci(subject: &mut Subject) -> Outcome {
    if subject.info()?.flags.contains(DeviceInfoFlags::PCI) {
        Ok(())
    } else {
        skip("the device is no PCI device")
    }
}

fn no_interrupts(bench: &mut Bench) -> Outcome {
    check_is_pci(&mut bench.subject)?;
    let mut armed_any = false;
    for index in INTERRUPTS {
        let Some(armed) = arm(&mut bench.subject, index)? else { continue };
        armed_any = true;
        bench.leave_power_on_state()?;
        let subject = &mut bench.subject;
        subject.go(State::Stop)?;
        armed.taken();
        look_around(subject)?;
        subject.save_stopped()?;
        thread::sleep(PAUSE);
        equal(format_args!("interrupts of index {index} in STOP"), 0, armed.taken())?;
        subject.go(State::Running)?;
        success("VFIO_DEVICE_SET_IRQS to disable interrupts", subject.disable_irqs(index)?)?;
    }
    if armed_any { Ok(()) } else { skip("the device has no interrupts that can be set up") }
}

fn no_dma(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let subject = &mut bench.subject;
    target.write(subject, &[0, 1, 5])?;
    for state in [State::Stop, State::StopCopy] {
        let held = subject.go(state)?;
        target.clear()?;
        look_around(subject)?;
        thread::sleep(PAUSE);
        if state == State::Stop {
            subject.save_stopped()?;
        }
        if let Some(address) = target.first_written()? {
            return fail(format_args!("no DMA in {state}"), format_args!("a write at {address:#x}"));
        }
        drop(held);
    }
    subject.go(State::Running)?;
    Ok(())
}

/// Offset of the command register in configuration space.
const COMMAND: usize = 0x04;
/// Offset of the interrupt line register: it is the user's own, and has no effect.
const INTERRUPT_LINE: usize = 0x3c;

fn config_space(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    check_is_pci(subject)?;
    let running = read_config(subject)?;
    for state in [State::Stop, State::StopCopy] {
        let _held = subject.go(state)?;
        let found = read_config(subject)?;
        let what = format!("vendor and device in configuration space in {state}");
        equal_bytes(what, &running[..COMMAND], &found[..COMMAND])?;
        for (offset, length) in [(COMMAND, 2), (INTERRUPT_LINE, 1)] {
            let same = &found[offset..offset + length];
            let result = subject.write_region(VFIO_PCI_CONFIG_REGION_INDEX, offset as u64, same)?;
            success(format_args!("a write of configuration space at {offset:#x} in {state}"), result)?;
        }
        let again = read_config(subject)?;
        equal_bytes(
            format_args!("configuration space after writes of the same values in {state}"),
            &found,
            &again,
        )?;
        subject.is_in(state)?;
    }
    subject.go(State::Running)?;
    Ok(())
}

fn interrupts_can_be_set_up(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    check_is_pci(subject)?;
    let mut armed_any = false;
    for index in INTERRUPTS {
        // As in RUNNING, where it works.
        let Some(armed) = arm(subject, index)? else { continue };
        armed_any = true;
        success("VFIO_DEVICE_SET_IRQS to disable interrupts", subject.disable_irqs(index)?)?;
        for state in [State::Stop, State::StopCopy] {
            let _held = subject.go(state)?;
            let result = set_up(subject, armed.index, &armed.eventfds)?;
            success(format_args!("VFIO_DEVICE_SET_IRQS {index} in {state}"), result)?;
            let result = subject.disable_irqs(index)?;
            success(format_args!("VFIO_DEVICE_SET_IRQS {index} to disable interrupts in {state}"), result)?;
            subject.is_in(state)?;
        }
        subject.go(State::Running)?;
    }
    if armed_any { Ok(()) } else { skip("the device has no interrupts that can be set up") }
}

/// Reads a few registers of each region and writes the same values back, whatever the device answers.
fn touch_regions(subject: &mut Subject) -> Outcome {
    let info = subject.info()?;
    for index in (0..info.num_regions.min(MAX_INDEXES)).filter(|index| *index != VFIO_PCI_CONFIG_REGION_INDEX)
    {
        let Ok(region) = subject.region_info(index)? else { continue };
        // Regions of another kind, such as a migration region, have rules of their own.
        let is_special = region.capabilities.iter().any(|one| matches!(one, Capability::Type { .. }));
        if is_special || region.size < 4 || !region.flags.contains(RegionInfoFlags::READ) {
            continue;
        }
        for offset in [0, (region.size / 2) & !3, (region.size - 4) & !3] {
            let request = format!("read and write of region {index} at {offset:#x}");
            let writes = region.flags.contains(RegionInfoFlags::WRITE);
            let _ = subject.request(
                &request,
                |device| {
                    let mut word = [0; 4];
                    let read = device.read_region(index, offset, &mut word).is_ok();
                    let written = read && writes && device.write_region(index, offset, &word).is_ok();
                    Ok((read, written))
                },
                |(read, written)| format!("read {read}, written {written}"),
            )?;
        }
    }
    Ok(())
}

fn region_access(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    for state in [State::Stop, State::StopCopy, State::Resuming] {
        let held = enter(subject, state, &saved)?;
        touch_regions(subject)?;
        subject.is_in(state)?;
        drop(held);
        subject.must_reset()?;
        subject.is_in(State::Running)?;
        let again = subject.save()?;
        check(!again.is_empty(), "a state to save after a reset", "0 bytes")?;
    }
    Ok(())
}
