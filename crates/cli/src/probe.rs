//! `whimbrel probe`: everything a device says of itself.

mod capability;

use std::fmt;

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use whimbrel_uapi::device::DeviceInfoFlags;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::pci::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR5_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_REQ_IRQ_INDEX, VFIO_PCI_ROM_REGION_INDEX, VFIO_PCI_VGA_REGION_INDEX,
};
use whimbrel_user::{Device, Errno, Info, Irq, Region};

use crate::failure::Failure;
use crate::fsm::flag_names;
use crate::output::{self, Output};
use crate::target::Target;

/// Show everything a device says of itself: info, regions, interrupts, features, migration
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  whimbrel probe 0000:3b:00.2\n  whimbrel probe model:accel --json")]
pub(crate) struct Arguments {
    /// The device (`whimbrel --help` says how to name it)
    #[arg(value_name = "TARGET")]
    target: String,
}

/// Does it.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let mut opened = Target::open_text(&arguments.target)?;
    let probed = probe(&mut *opened)?;
    output.result(&probed, &probed)
}

#[derive(Debug, Serialize)]
struct Probed {
    device: String,
    info: InfoRow,
    regions: Vec<RegionRow>,
    irqs: Vec<IrqRow>,
    features: Vec<FeatureRow>,
    /// Null for a device that does not migrate.
    migration: Option<Migration>,
}

#[derive(Debug, Serialize)]
struct InfoRow {
    flags: Vec<String>,
    num_regions: u32,
    num_irqs: u32,
    capabilities: Vec<Value>,
}

#[derive(Debug, Serialize)]
struct RegionRow {
    index: u32,
    name: Option<&'static str>,
    /// Bytes; 0 for a region that is not there.
    size: u64,
    offset: u64,
    flags: Vec<String>,
    capabilities: Vec<Value>,
    /// Why the device says nothing of it.
    error: Option<ProbeError>,
}

#[derive(Debug, Serialize)]
struct IrqRow {
    index: u32,
    name: Option<&'static str>,
    /// 0 for an index that has no interrupt.
    count: u32,
    flags: Vec<String>,
    error: Option<ProbeError>,
}

/// Why a device says nothing of something. Scripts get the whole text.
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
    flags: Vec<&'static str>,
    state: String,
    /// Bytes that STOP_COPY is expected to yield.
    data_size: Option<u64>,
    /// Why that is not known: kernels before 6.2 do not tell.
    data_size_error: Option<String>,
}

fn probe(device: &mut dyn Device) -> Result<Probed, Failure> {
    let info = device.info()?;
    let is_pci = info.flags.contains(DeviceInfoFlags::PCI);
    let regions = (0..info.num_regions)
        .map(|index| {
            let name = if is_pci { region_name(index) } else { None };
            region_row(index, name, device.region_info(index))
        })
        .collect();
    let irqs = (0..info.num_irqs)
        .map(|index| {
            let name = if is_pci { irq_name(index) } else { None };
            irq_row(index, name, device.irq_info(index))
        })
        .collect();
    let features = Feature::ALL.into_iter().map(|feature| feature_row(device, feature)).collect();
    let migration = match device.migration_flags()? {
        None => None,
        Some(flags) => {
            let (data_size, data_size_error) = match device.data_size() {
                Ok(size) => (Some(size), None),
                Err(error) => (None, Some(error.to_string())),
            };
            let state = device.state()?.to_string();
            Some(Migration { flags: flag_names(flags), state, data_size, data_size_error })
        }
    };
    let device = device.name().to_string();
    Ok(Probed { device, info: info_row(&info), regions, irqs, features, migration })
}

fn info_row(info: &Info) -> InfoRow {
    InfoRow {
        flags: bit_names(info.flags.iter_names().map(|(name, _)| name), info.flags.bits() & !known::DEVICE),
        num_regions: info.num_regions,
        num_irqs: info.num_irqs,
        capabilities: info.capabilities.iter().map(capability::of_device).collect(),
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
    FeatureRow { index: feature.index(), name: feature.name(), get, set, error }
}

/// The bits that have names here.
mod known {
    use whimbrel_uapi::device::{DeviceInfoFlags, IrqInfoFlags, RegionInfoFlags};

    pub(super) const DEVICE: u32 = DeviceInfoFlags::all().bits();
    pub(super) const REGION: u32 = RegionInfoFlags::all().bits();
    pub(super) const IRQ: u32 = IrqInfoFlags::all().bits();
}

/// Names of bits, and the number of those that have none.
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

impl fmt::Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.device)?;
        let info = &self.info;
        writeln!(f, "  flags       {}", output::names(&info.flags))?;
        for one in &info.capabilities {
            writeln!(f, "  capability  {}", capability::text(one))?;
        }
        match &self.migration {
            None => writeln!(f, "  migration   none: its driver does not support it")?,
            Some(migration) => {
                writeln!(f, "  migration   {}", output::names(&migration.flags))?;
                writeln!(f, "  state       {}", migration.state)?;
                match (migration.data_size, &migration.data_size_error) {
                    (Some(size), _) => writeln!(f, "  state size  {} (estimate)", output::exact_bytes(size))?,
                    (None, Some(error)) => writeln!(f, "  state size  not known: {error}")?,
                    (None, None) => {}
                }
            }
        }
        self.write_regions(f)?;
        self.write_irqs(f)?;
        self.write_features(f)
    }
}

/// An error without the names of device and request, which stand beside it: `refused: EINVAL`.
fn refusal(error: &ProbeError) -> String {
    match error.errno {
        Some(errno) => format!("refused: {errno:?}"),
        None => error.text.clone(),
    }
}

impl Probed {
    fn write_regions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = output::table(["REGION", "NAME", "SIZE", "OFFSET", "FLAGS", "CAPABILITIES"]);
        output::align_right(&mut table, [0, 2, 3]);
        for region in &self.regions {
            let name = region.name.unwrap_or("-");
            let index = region.index.to_string();
            if let Some(error) = &region.error {
                table.add_row([&index, name, "-", "-", &refusal(error)]);
            } else if region.size == 0 {
                table.add_row([&index, name, "-", "-", "not there"]);
            } else {
                let capabilities: Vec<String> = region.capabilities.iter().map(capability::text).collect();
                table.add_row([
                    index,
                    name.to_string(),
                    output::bytes(region.size),
                    format!("{:#x}", region.offset),
                    output::names(&region.flags),
                    capabilities.join("; "),
                ]);
            }
        }
        writeln!(f, "\n{} regions", self.info.num_regions)?;
        if self.regions.is_empty() { Ok(()) } else { writeln!(f, "{}", table.trim_fmt()) }
    }

    fn write_irqs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = output::table(["IRQ", "NAME", "COUNT", "FLAGS"]);
        output::align_right(&mut table, [0, 2]);
        for irq in &self.irqs {
            let flags = match &irq.error {
                Some(error) => refusal(error),
                None if irq.count == 0 => "not there".into(),
                None => output::names(&irq.flags),
            };
            table.add_row([
                irq.index.to_string(),
                irq.name.unwrap_or("-").to_string(),
                if irq.error.is_some() { "-".into() } else { irq.count.to_string() },
                flags,
            ]);
        }
        writeln!(f, "\n{} irq indices", self.info.num_irqs)?;
        if self.irqs.is_empty() { Ok(()) } else { writeln!(f, "{}", table.trim_fmt()) }
    }

    fn write_features(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = output::table(["FEATURE", "NAME", "DIRECTIONS"]);
        output::align_right(&mut table, [0]);
        for feature in &self.features {
            let directions = match (&feature.error, feature.get, feature.set) {
                (Some(error), ..) => refusal(error),
                (None, true, true) => "GET, SET".into(),
                (None, true, false) => "GET".into(),
                (None, false, true) => "SET".into(),
                (None, false, false) => "-".into(),
            };
            let name = feature.name.strip_prefix("VFIO_DEVICE_FEATURE_").unwrap_or(feature.name);
            table.add_row([feature.index.to_string(), name.to_string(), directions]);
        }
        writeln!(f, "\nfeatures\n{}", table.trim_fmt())
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
