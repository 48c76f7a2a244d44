//! `whimbrel probe`: all information that a device reports. Its text for people is made in `text`.

mod capability;
mod text;

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use whimbrel_uapi::device::DeviceInfoFlags;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::pci::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR5_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_PCI_REQ_IRQ_INDEX, VFIO_PCI_ROM_REGION_INDEX,
    VFIO_PCI_VGA_REGION_INDEX,
};
use whimbrel_user::kernel::MigrationDebug;
use whimbrel_user::{Device, Errno, Info, Irq, Region, ResetRule};

use crate::call_timeout::CallTimeout;
use crate::failure::Failure;
use crate::fsm::flag_names;
use crate::output::Output;
use crate::target::Target;

/// Show all information that a device reports: info, regions, interrupts, features, migration
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  whimbrel probe 0000:3b:00.2\n  whimbrel probe model:accel --json")]
pub(crate) struct Arguments {
    /// The device (`whimbrel --help` says how to name it)
    #[arg(value_name = "TARGET")]
    target: Target,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    // A device answers many requests: one deadline is for all of them.
    let (mut probed, failed) =
        CallTimeout::default().within(&arguments.target, "probed", |target, options| {
            let (mut opened, unadapted) = target.look_at_with(options)?;
            Ok(probe(&mut *opened, unadapted))
        })?;
    if let Some(migration) = &mut probed.migration {
        let told = arguments.target.host_device().and_then(|device| device.migration_debug());
        migration.debugfs = told.map(|MigrationDebug { state, features, .. }| Debugfs { state, features });
    }
    match failed {
        // There is nothing to show.
        Some(error) if probed.is_empty() => Err(Failure::from(error).result(&probed)),
        _ => output.result(&probed, &probed),
    }
}

/// Maximum number of regions, and of interrupt indices, to query: a server may report billions.
const MAX_ROWS: u32 = 1024;

#[derive(Debug, Serialize)]
struct Probed {
    device: String,
    info: InfoRow,
    regions: Vec<RegionRow>,
    irqs: Vec<IrqRow>,
    features: Vec<FeatureRow>,
    dirty_logs: DirtyLogs,
    /// Null for a device that does not migrate. One that does not answer has the errors.
    migration: Option<Migration>,
}

/// The logs of the memory that the device writes.
#[derive(Debug, Serialize)]
struct DirtyLogs {
    /// The device's own.
    device: bool,
    /// That of its address space. Null if another program manages that.
    address_space: Option<bool>,
}

#[derive(Debug, Serialize)]
struct InfoRow {
    flags: Vec<String>,
    /// Null if the device does not report it.
    num_regions: Option<u32>,
    num_irqs: Option<u32>,
    capabilities: Vec<Value>,
    /// The error that the device returned for its info.
    error: Option<ProbeError>,
}

#[derive(Debug, Serialize)]
struct RegionRow {
    index: u32,
    name: Option<&'static str>,
    /// Bytes; 0 for an absent region.
    size: u64,
    offset: u64,
    flags: Vec<String>,
    capabilities: Vec<Value>,
    /// The error that the device returned for it.
    error: Option<ProbeError>,
}

#[derive(Debug, Serialize)]
struct IrqRow {
    index: u32,
    name: Option<&'static str>,
    /// 0 for an index without interrupts.
    count: u32,
    flags: Vec<String>,
    error: Option<ProbeError>,
}

/// The error of a request. Scripts get the whole text.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct ProbeError {
    text: String,
    #[serde(skip)]
    errno: Option<Errno>,
}

impl From<whimbrel_user::Error> for ProbeError {
    fn from(error: whimbrel_user::Error) -> ProbeError {
        ProbeError { text: error.to_string(), errno: error.errno() }
    }
}

#[derive(Debug, Serialize)]
struct FeatureRow {
    index: u16,
    name: &'static str,
    get: bool,
    set: bool,
    error: Option<ProbeError>,
}

#[derive(Debug, Serialize)]
struct Migration {
    /// Null if the device does not report them.
    flags: Option<Vec<&'static str>>,
    /// The error instead of them.
    error: Option<ProbeError>,
    state: Option<String>,
    state_error: Option<ProbeError>,
    /// Expected size of the state in STOP_COPY, in bytes.
    data_size: Option<u64>,
    /// The error instead of it: kernels before 6.2 do not support the query.
    data_size_error: Option<ProbeError>,
    /// `ends_migration` or `keeps_precopy`: the effect of a reset by the guest. Null if a server does not tell.
    reset_rule: Option<&'static str>,
    /// Null if debugfs does not have it or cannot be read.
    debugfs: Option<Debugfs>,
}

/// The same device's migration according to the kernel's debugfs.
#[derive(Debug, Serialize)]
struct Debugfs {
    state: String,
    features: Option<Vec<String>>,
}

/// Returns everything that the device reports, with errors in place of what it does not, and the error of its info, if
/// any. `unadapted` is the error that prevents the use of its migration region.
fn probe(
    device: &mut dyn Device,
    unadapted: Option<whimbrel_user::Error>,
) -> (Probed, Option<whimbrel_user::Error>) {
    let info = device.info();
    // A device without info is queried like a PCI device.
    let (is_pci, regions, irqs) = match &info {
        Ok(info) => (info.flags.contains(DeviceInfoFlags::PCI), info.num_regions, info.num_irqs),
        Err(_) => (true, VFIO_PCI_NUM_REGIONS, VFIO_PCI_NUM_IRQS),
    };
    let regions = (0..regions.min(MAX_ROWS))
        .map(|index| {
            let name = if is_pci { region_name(index) } else { None };
            region_row(index, name, device.region_info(index))
        })
        .collect();
    let irqs = (0..irqs.min(MAX_ROWS))
        .map(|index| {
            let name = if is_pci { irq_name(index) } else { None };
            irq_row(index, name, device.irq_info(index))
        })
        .collect();
    let migration = migration(device, unadapted);
    let features = Feature::ALL.into_iter().map(|feature| feature_row(device, feature)).collect();
    let (info, failed) = match info {
        Ok(info) => (info_row(&info), None),
        Err(error) => {
            let told = ProbeError { text: error.to_string(), errno: error.errno() };
            let (flags, capabilities) = (Vec::new(), Vec::new());
            let row = InfoRow { flags, num_regions: None, num_irqs: None, capabilities, error: Some(told) };
            (row, Some(error))
        }
    };
    let dirty_logs = dirty_logs(device);
    let device = device.name().to_string();
    (Probed { device, info, regions, irqs, features, dirty_logs, migration }, failed)
}

fn dirty_logs(device: &mut dyn Device) -> DirtyLogs {
    DirtyLogs {
        device: device.probe_feature(Feature::DmaLoggingStart, FeatureFlags::SET).unwrap_or(false),
        address_space: device.dma_map().map(|space| space.dirty_log().is_some()),
    }
}

fn migration(device: &mut dyn Device, unadapted: Option<whimbrel_user::Error>) -> Option<Migration> {
    let (flags, error) = match (device.migration_flags(), unadapted) {
        (Ok(None), None) => return None,
        (Ok(None), Some(error)) => {
            let error = Some(error.into());
            let (state, state_error, data_size, data_size_error) = (None, None, None, None);
            let (flags, reset_rule, debugfs) = (None, None, None);
            return Some(Migration {
                flags,
                error,
                state,
                state_error,
                data_size,
                data_size_error,
                reset_rule,
                debugfs,
            });
        }
        (Ok(Some(flags)), _) => (Some(flag_names(flags)), None),
        (Err(error), _) => (None, Some(error.into())),
    };
    let (state, state_error) = told(device.state().map(|state| state.to_string()));
    let (data_size, data_size_error) = told(device.data_size());
    let reset_rule = device.reset_rule().map(ResetRule::name);
    let debugfs = None;
    Some(Migration { flags, error, state, state_error, data_size, data_size_error, reset_rule, debugfs })
}

/// An answer or its error, split.
fn told<T>(answer: whimbrel_user::Result<T>) -> (Option<T>, Option<ProbeError>) {
    match answer {
        Ok(answer) => (Some(answer), None),
        Err(error) => (None, Some(error.into())),
    }
}

fn info_row(info: &Info) -> InfoRow {
    InfoRow {
        flags: bit_names(info.flags.iter_names().map(|(name, _)| name), info.flags.bits() & !known::DEVICE),
        num_regions: Some(info.num_regions),
        num_irqs: Some(info.num_irqs),
        capabilities: info.capabilities.iter().map(capability::of_device).collect(),
        error: None,
    }
}

fn region_row(index: u32, name: Option<&'static str>, answer: whimbrel_user::Result<Region>) -> RegionRow {
    match answer {
        Ok(region) => RegionRow {
            index,
            name,
            size: region.size,
            offset: region.offset,
            flags: bit_names(
                region.flags.iter_names().map(|(name, _)| name),
                region.flags.bits() & !known::REGION,
            ),
            capabilities: region.capabilities.iter().map(capability::of_region).collect(),
            error: None,
        },
        Err(error) => RegionRow {
            index,
            name,
            size: 0,
            offset: 0,
            flags: Vec::new(),
            capabilities: Vec::new(),
            error: Some(error.into()),
        },
    }
}

fn irq_row(index: u32, name: Option<&'static str>, answer: whimbrel_user::Result<Irq>) -> IrqRow {
    match answer {
        Ok(irq) => {
            let flags =
                bit_names(irq.flags.iter_names().map(|(name, _)| name), irq.flags.bits() & !known::IRQ);
            IrqRow { index, name, count: irq.count, flags, error: None }
        }
        Err(error) => IrqRow { index, name, count: 0, flags: Vec::new(), error: Some(error.into()) },
    }
}

fn feature_row(device: &mut dyn Device, feature: Feature) -> FeatureRow {
    let mut error = None;
    let mut has = |direction| match device.probe_feature(feature, direction) {
        Ok(has) => has,
        Err(refused) => {
            error = Some(refused.into());
            false
        }
    };
    let (get, set) = (has(FeatureFlags::GET), has(FeatureFlags::SET));
    FeatureRow { index: feature.number(), name: feature.name(), get, set, error }
}

/// The bits that have names here.
mod known {
    use whimbrel_uapi::device::{DeviceInfoFlags, IrqInfoFlags, RegionInfoFlags};

    pub(super) const DEVICE: u32 = DeviceInfoFlags::all().bits();
    pub(super) const REGION: u32 = RegionInfoFlags::all().bits();
    pub(super) const IRQ: u32 = IrqInfoFlags::all().bits();
}

/// The names of bits, and the number of the unnamed rest.
fn bit_names<'a>(names: impl Iterator<Item = &'a str>, unknown: u32) -> Vec<String> {
    let mut names: Vec<String> = names.map(str::to_string).collect();
    if unknown != 0 {
        names.push(format!("{unknown:#x}"));
    }
    names
}

fn region_name(index: u32) -> Option<&'static str> {
    const BARS: [&str; 6] = ["BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5"];
    match index {
        VFIO_PCI_BAR0_REGION_INDEX..=VFIO_PCI_BAR5_REGION_INDEX => Some(BARS[index as usize]),
        VFIO_PCI_ROM_REGION_INDEX => Some("ROM"),
        VFIO_PCI_CONFIG_REGION_INDEX => Some("CONFIG"),
        VFIO_PCI_VGA_REGION_INDEX => Some("VGA"),
        _ => None,
    }
}

fn irq_name(index: u32) -> Option<&'static str> {
    match index {
        VFIO_PCI_INTX_IRQ_INDEX => Some("INTx"),
        VFIO_PCI_MSI_IRQ_INDEX => Some("MSI"),
        VFIO_PCI_MSIX_IRQ_INDEX => Some("MSI-X"),
        VFIO_PCI_ERR_IRQ_INDEX => Some("ERR"),
        VFIO_PCI_REQ_IRQ_INDEX => Some("REQ"),
        _ => None,
    }
}

impl Probed {
    /// Returns whether the device reports nothing at all.
    fn is_empty(&self) -> bool {
        self.info.error.is_some()
            && self.regions.iter().all(|row| row.error.is_some())
            && self.irqs.iter().all(|row| row.error.is_some())
            && self.features.iter().all(|row| row.error.is_some())
            && self.migration.as_ref().is_none_or(|told| told.flags.is_none() && told.state.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_without_a_name_are_shown_as_a_number() {
        assert_eq!(bit_names(["READ"].into_iter(), 0x100), ["READ", "0x100"]);
        assert_eq!(bit_names([].into_iter(), 0), Vec::<String>::new());
    }
}
