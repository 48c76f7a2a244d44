//! The devices of a check: those that can be opened, and why others cannot.

use whimbrel_engine::check::{CheckReport, Code, DeviceCheck, DirtyLog, Finding, Severity};
use whimbrel_user::{Device, Errno, Error, Migratable};

use super::of;
use crate::call_timeout::CallTimeout;
use crate::failure::Failure;
use crate::target::{Closing, Target};

/// The devices of the TARGETs.
pub(super) struct Opened {
    /// Those that could be opened, in order.
    pub(super) devices: Vec<Box<dyn Migratable>>,
    /// Set for each of them whose address space has a dirty log.
    pub(super) has_space_log: Vec<bool>,
    /// The places of the others among the TARGETs, and why.
    pub(super) failed: Vec<(usize, Finding)>,
}

/// Opens the devices.
pub(super) fn open(targets: &[Target]) -> Opened {
    let mut opened = Opened { devices: Vec::new(), has_space_log: Vec::new(), failed: Vec::new() };
    for (at, target) in targets.iter().enumerate() {
        match open_one(target) {
            Ok((device, has_space_log)) => {
                opened.devices.push(device);
                opened.has_space_log.push(has_space_log);
            }
            Err(finding) => opened.failed.push((at, finding.of(&target.to_string()))),
        }
    }
    opened
}

/// Opens a device, and asks whether its address space has a dirty log.
fn open_one(target: &Target) -> Result<(Box<dyn Migratable>, bool), Finding> {
    let opened = CallTimeout::default().within(target, "opened", |target, options| {
        Ok(target.device(options).map(|(mut device, unadapted)| {
            let has_space_log = device.dma_map().is_some_and(|space| space.dirty_log().is_some());
            (device, unadapted, has_space_log)
        }))
    });
    let (device, unadapted, has_space_log): (Box<dyn Device>, _, _) =
        opened.map_err(|failure| of(Code::NoAnswer, &failure))?.map_err(|error| {
            let code = if is_busy(&error) { Code::InUse } else { Code::CannotOpen };
            let mut failure = Failure::from(error);
            if let Some(debug) = target.host_device().and_then(|device| device.migration_debug()) {
                failure =
                    Failure::new(format!("{}; the kernel reports state {}", failure.message(), debug.state));
            }
            of(code, &failure)
        })?;
    match unadapted {
        None => Ok((device, has_space_log)),
        Some(error) => Err(of(Code::RequestRefused, &Failure::from(error))),
    }
}

/// Returns whether another process has the device. A vfio-user server says so before there is a request that it could refuse.
fn is_busy(error: &Error) -> bool {
    match error {
        Error::Unusable { why, .. } => why.starts_with(&Errno::EBUSY.to_string()),
        error => error.errno() == Some(Errno::EBUSY),
    }
}

/// Adds to the engine's report what only the command knows: of the devices that could not be opened, and of dirty logs
/// and states.
pub(super) fn complete(
    report: &mut CheckReport,
    targets: &[Target],
    failed: Vec<(usize, Finding)>,
    has_space_log: &[bool],
) {
    for (device, has_space_log) in report.devices.iter_mut().zip(has_space_log) {
        if *has_space_log && device.dirty_log == Some(DirtyLog::None) {
            device.dirty_log = Some(DirtyLog::AddressSpace);
        }
    }
    let unlogged = report.devices.iter().filter(|device| device.dirty_log == Some(DirtyLog::None));
    let unlogged: Vec<Finding> = unlogged
        .map(|device| {
            let text = format!(
                "{}: neither it nor its address space has a dirty log: a VMM resends all memory after the stop",
                device.name
            );
            Finding::new(Code::NoDirtyLog, text).of(&device.name)
        })
        .collect();
    report.findings.extend(unlogged);
    if !failed.is_empty() {
        report.downtime.most_ms = None;
        report.downtime.unknown.push("the devices that could not be asked".into());
    }
    for (at, finding) in failed {
        report.devices.insert(at, DeviceCheck::unknown(targets[at].to_string()));
        report.findings.push(finding);
    }
    // `whimbrel send` ends a migration that an earlier one has left in a served device.
    let served: Vec<String> = report
        .devices
        .iter()
        .zip(targets)
        .filter(|(_, target)| target.closing() == Closing::Keeps)
        .map(|(device, _)| device.name.clone())
        .collect();
    for finding in &mut report.findings {
        let is_served = finding.device.as_ref().is_some_and(|device| served.contains(device));
        if finding.code == Code::LeftInPreCopy && is_served {
            finding.severity = Severity::Warns;
            finding.remedy = "`whimbrel send` ends the unfinished migration first".into();
        }
    }
    report.judge();
}
