//! Parsing of a model and its settings, as on the command line, and opening its device.

use std::fmt;
use std::str::FromStr;

use whimbrel_device::wrap::fault::{Faults, Faulty};
use whimbrel_device::{DeviceFile, Errno, MigrationFlags, WorkingDevice};

use crate::accel::{Accel, AccelConfig, AccelConfigError};
use crate::legacy::{Legacy, LegacyConfig, LegacyConfigError};
use crate::nvme::{Nvme, NvmeConfig, NvmeError, NvmeImage};
use crate::protocol::Protocol;
use crate::serial::{Answers, Ports, Serial, SerialConfig};

/// A model and its settings.
///
/// The text form is the model's name, then `?` and its settings separated by `&`:
///
/// | model | setting | meaning |
/// |---|---|---|
/// | `serial` | `ports` | 1 or 2 ports (1) |
/// | | `answers` | behaviour where they differ: `vfio-pci` or `mtty`, see [`Answers`] (`vfio-pci`) |
/// | | `protocol` | as for `accel` (`v2`) |
/// | `accel` | `state` | bytes of own state, 1 KiB to 64 GiB (64MiB) |
/// | | `rate` | bytes of own state changed per second in the background (0) |
/// | | `features` | any of `stop-copy`, `p2p`, `pre-copy`, separated by commas (all) |
/// | | `config` | `required` if DMA and messages need a set-up configuration space, as in hardware (`optional`) |
/// | | `protocol` | `v2`, or a migration region: `v1`, as in Linux 5.8 to 5.17, or `draft`, as of 2019 (`v2`) |
/// | `legacy` | `state` | as for `accel` (4MiB) |
/// | | `rate` | as for `accel` |
/// | | `section` | size of its migration region's data section, 64 bytes to 64 MiB (1MiB) |
/// | `nvme` | `image` | path of the file or block device with its blocks; required, without `&` |
/// | | `size` | size of the image, which a missing or empty file gets (the size that it has) |
/// | | `readonly` | `yes`, or no value, if the namespace is write-protected (`no`) |
/// | | `queues` | pairs of I/O queues, 1 to 64 (16) |
///
/// Defaults are in parentheses. STOP_COPY is included even if `features` omits it. Sizes take a suffix: `K` or `KiB`,
/// `M` or `MiB`, `G` or `GiB`, all of them powers of 1024.
///
/// ```
/// use whimbrel_models::Model;
///
/// let model: Model = "accel?state=1MiB&features=stop-copy,p2p".parse()?;
/// let opened = model.open("engine 0")?;
/// assert!(opened.has_worker());
/// assert_eq!("accel?colour=red".parse::<Model>().unwrap_err().to_string(),
///     "unknown setting colour for model accel: expected one of state, rate, features, config, protocol");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Model {
    /// A card with 16550 ports.
    Serial(SerialConfig, Protocol),
    /// A DMA engine.
    Accel(AccelConfig, Protocol),
    /// A DMA engine with v1 migration only.
    Legacy(LegacyConfig),
    /// An NVM Express controller.
    Nvme(NvmeConfig),
}

/// A model whose files are open, as [`Model::prepare`] returns it.
#[derive(Debug)]
pub struct PreparedModel {
    model: Model,
    image: Option<NvmeImage>,
}

/// An error in a model's text form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// No model has this name.
    #[error("unknown model '{0}': expected one of {names}", names = Model::names().join(", "))]
    UnknownModel(String),
    /// The model does not have this setting.
    #[error("unknown setting {setting} for model {model}: expected one of {}", known.join(", "))]
    UnknownSetting {
        /// The model's name.
        model: &'static str,
        /// The unknown setting.
        setting: String,
        /// The model's settings.
        known: &'static [&'static str],
    },
    /// The model needs this setting.
    #[error("model {model} needs the setting {setting}: expected {takes}")]
    Missing {
        /// The model's name.
        model: &'static str,
        /// The setting's name.
        setting: &'static str,
        /// The expected value.
        takes: &'static str,
    },
    /// The setting is given more than once.
    #[error("duplicate setting {setting} for model {model}")]
    Twice {
        /// The model's name.
        model: &'static str,
        /// The setting's name.
        setting: &'static str,
    },
    /// The setting's value is invalid.
    #[error("invalid value '{value}' for {setting} (model {model}): expected {takes}")]
    Value {
        /// The model's name.
        model: &'static str,
        /// The setting's name.
        setting: &'static str,
        /// The given value.
        value: String,
        /// The expected value.
        takes: &'static str,
    },
}

/// An error from opening a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Invalid settings of an `accel`.
    #[error("model accel: {0}")]
    Accel(AccelConfigError),
    /// Invalid settings of a `legacy`.
    #[error("model legacy: {0}")]
    Legacy(LegacyConfigError),
    /// Invalid settings of an `nvme`, or an image that cannot be used.
    #[error("model nvme: {0}")]
    Nvme(NvmeError),
    /// Memory for the migration region cannot be allocated.
    #[error(
        "cannot allocate the device's migration region: {0}; free memory or raise the limit on open files (ulimit -n)"
    )]
    Region(Errno),
    /// The device's worker thread cannot be started.
    #[error(
        "cannot start the device's worker thread: {0}; free memory or raise the limit on threads (ulimit -u)"
    )]
    Worker(Errno),
}

impl From<AccelConfigError> for OpenError {
    fn from(error: AccelConfigError) -> OpenError {
        OpenError::Accel(error)
    }
}

impl From<NvmeError> for OpenError {
    fn from(error: NvmeError) -> OpenError {
        OpenError::Nvme(error)
    }
}

impl From<LegacyConfigError> for OpenError {
    fn from(error: LegacyConfigError) -> OpenError {
        OpenError::Legacy(error)
    }
}

const SERIAL: &str = "serial";
const SERIAL_SETTINGS: &[&str] = &["ports", ANSWERS, PROTOCOL];
const ACCEL: &str = "accel";
const ACCEL_SETTINGS: &[&str] = &["state", "rate", "features", CONFIG, PROTOCOL];
const LEGACY: &str = "legacy";
const LEGACY_SETTINGS: &[&str] = &["state", "rate", "section"];
const NVME: &str = "nvme";
const NVME_SETTINGS: &[&str] = &[IMAGE, "size", READ_ONLY, "queues"];
const IMAGE: &str = "image";
const READ_ONLY: &str = "readonly";
const ANSWERS: &str = "answers";
const CONFIG: &str = "config";
const REQUIRED: &str = "required";
const PROTOCOL: &str = "protocol";

const FEATURES: [(&str, MigrationFlags); 3] = [
    ("stop-copy", MigrationFlags::STOP_COPY),
    ("p2p", MigrationFlags::P2P),
    ("pre-copy", MigrationFlags::PRE_COPY),
];

impl Model {
    /// Returns the names of all models.
    pub const fn names() -> &'static [&'static str] {
        &[SERIAL, ACCEL, LEGACY, NVME]
    }

    /// Opens a device of this kind on a bus of its own, and starts its worker thread if the model needs one. `name`
    /// appears in errors and traces.
    pub fn open(&self, name: impl Into<String>) -> Result<WorkingDevice, OpenError> {
        self.open_with_faults(name, Faults::default())
    }

    /// Opens a device of this kind with injected faults.
    ///
    /// ```
    /// use whimbrel_device::{Errno, State};
    /// use whimbrel_models::Model;
    ///
    /// let model: Model = "serial".parse()?;
    /// let opened = model.open_with_faults("serial 0", "arc *->STOP_COPY: EIO".parse()?)?;
    /// assert_eq!(opened.set_mig_state(State::StopCopy).err(), Some(Errno::EIO));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open_with_faults(
        &self,
        name: impl Into<String>,
        faults: Faults,
    ) -> Result<WorkingDevice, OpenError> {
        self.open_as(name, faults, false)
    }

    /// Opens a device of this kind for a program under `whimbrel run`, which can map its migration region. Do not serve it to
    /// clients of a vfio-user server: see
    /// [`RegionMemory::for_programs`](whimbrel_device::RegionMemory::for_programs).
    pub fn open_for_programs(
        &self,
        name: impl Into<String>,
        faults: Faults,
    ) -> Result<WorkingDevice, OpenError> {
        self.open_as(name, faults, true)
    }

    /// Opens the files that the model needs, such as an image. A server that confines itself does so between this and
    /// [`PreparedModel::open_with_faults`].
    pub fn prepare(&self) -> Result<PreparedModel, OpenError> {
        let image = match self {
            Model::Nvme(config) => Some(config.open_image()?),
            _ => None,
        };
        Ok(PreparedModel { model: self.clone(), image })
    }

    fn open_as(
        &self,
        name: impl Into<String>,
        faults: Faults,
        for_programs: bool,
    ) -> Result<WorkingDevice, OpenError> {
        self.prepare()?.open_as(name, faults, for_programs)
    }
}

impl PreparedModel {
    /// Opens the device, with injected faults: as [`Model::open_with_faults`].
    pub fn open_with_faults(
        self,
        name: impl Into<String>,
        faults: Faults,
    ) -> Result<WorkingDevice, OpenError> {
        self.open_as(name, faults, false)
    }

    fn open_as(
        self,
        name: impl Into<String>,
        faults: Faults,
        for_programs: bool,
    ) -> Result<WorkingDevice, OpenError> {
        let PreparedModel { model, image } = self;
        let works = !matches!(model, Model::Serial(..));
        let device = DeviceFile::try_new(name, |bus| {
            Ok::<_, OpenError>(match model {
                Model::Serial(config, protocol) => protocol
                    .offer(Faulty::new(Serial::new(config, bus), faults), for_programs)
                    .map_err(OpenError::Region)?,
                Model::Accel(config, protocol) => protocol
                    .offer(Faulty::new(Accel::new(config, bus)?, faults), for_programs)
                    .map_err(OpenError::Region)?,
                Model::Legacy(config) => Faulty::new(Legacy::new(config, bus)?, faults).into(),
                Model::Nvme(config) => {
                    let image = image.map_or_else(|| config.open_image(), Ok)?;
                    Faulty::new(Nvme::new(config, image, bus)?, faults).into()
                }
            })
        })?;
        if works { WorkingDevice::start(device).map_err(OpenError::Worker) } else { Ok(device.into()) }
    }
}

impl FromStr for Model {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Model, ModelError> {
        let (name, settings) = text.split_once('?').unwrap_or((text, ""));
        match name {
            SERIAL => {
                let (mut config, mut protocol) = (SerialConfig::default(), Protocol::default());
                for (setting, value) in parse_settings(SERIAL, SERIAL_SETTINGS, settings)? {
                    match (setting, value) {
                        (PROTOCOL, _) => protocol = parse_protocol(SERIAL, value)?,
                        (ANSWERS, _) => config.answers = parse_answers(value)?,
                        (_, "1") => config.ports = Ports::One,
                        (_, "2") => config.ports = Ports::Two,
                        _ => return Err(refused(SERIAL, setting, value, "1 or 2")),
                    }
                }
                Ok(Model::Serial(config, protocol))
            }
            ACCEL => {
                let (mut config, mut protocol) = (AccelConfig::default(), Protocol::default());
                for (setting, value) in parse_settings(ACCEL, ACCEL_SETTINGS, settings)? {
                    match setting {
                        "state" => config.state_bytes = parse_state(ACCEL, setting, value)?,
                        "rate" => config.state_rate = parse_bytes(ACCEL, setting, value)?,
                        PROTOCOL => protocol = parse_protocol(ACCEL, value)?,
                        CONFIG => config.needs_config = parse_config(value)?,
                        _ => {
                            let takes = "stop-copy, p2p and pre-copy, separated by commas";
                            config.flags =
                                parse_features(value).ok_or_else(|| refused(ACCEL, setting, value, takes))?;
                        }
                    }
                }
                Ok(Model::Accel(config, protocol))
            }
            LEGACY => {
                let mut config = LegacyConfig::default();
                for (setting, value) in parse_settings(LEGACY, LEGACY_SETTINGS, settings)? {
                    match setting {
                        "state" => config.state_bytes = parse_state(LEGACY, setting, value)?,
                        "rate" => config.state_rate = parse_bytes(LEGACY, setting, value)?,
                        _ => config.section_bytes = parse_section(setting, value)?,
                    }
                }
                Ok(Model::Legacy(config))
            }
            NVME => parse_nvme(settings).map(Model::Nvme),
            _ => Err(ModelError::UnknownModel(name.to_owned())),
        }
    }
}

fn refused(model: &'static str, setting: &'static str, value: &str, takes: &'static str) -> ModelError {
    ModelError::Value { model, setting, value: value.to_owned(), takes }
}

fn parse_bytes(model: &'static str, setting: &'static str, value: &str) -> Result<u64, ModelError> {
    let takes = "a number of bytes, alone or with K, M, G, KiB, MiB or GiB";
    parse_size(value).ok_or_else(|| refused(model, setting, value, takes))
}

/// Parses the size of an engine's own state, in bytes.
fn parse_state(model: &'static str, setting: &'static str, value: &str) -> Result<u64, ModelError> {
    let state_bytes = parse_bytes(model, setting, value)?;
    let takes = "1KiB to 64GiB, a multiple of 8 bytes";
    let config = AccelConfig::default().state_bytes(state_bytes);
    config.check().map(|config| config.state_bytes).map_err(|_| refused(model, setting, value, takes))
}

/// Parses the size of a `legacy`'s data section, in bytes.
fn parse_section(setting: &'static str, value: &str) -> Result<u64, ModelError> {
    let section_bytes = parse_bytes(LEGACY, setting, value)?;
    let takes = "64 bytes to 64MiB";
    LegacyConfig::section_fits(section_bytes)
        .then_some(section_bytes)
        .ok_or_else(|| refused(LEGACY, setting, value, takes))
}

fn parse_nvme(text: &str) -> Result<NvmeConfig, ModelError> {
    let settings = parse_settings(NVME, NVME_SETTINGS, text)?;
    let image = settings.iter().find(|(setting, value)| *setting == IMAGE && !value.is_empty());
    let takes = "the path of a file or block device, as image=PATH";
    let (_, image) = image.ok_or(ModelError::Missing { model: NVME, setting: IMAGE, takes })?;
    let mut config = NvmeConfig::new(*image);
    for (setting, value) in settings {
        let refused = |takes| refused(NVME, setting, value, takes);
        match (setting, value) {
            (IMAGE, _) => {}
            (READ_ONLY, "" | "yes") => config.is_read_only = true,
            (READ_ONLY, "no") => config.is_read_only = false,
            (READ_ONLY, _) => return Err(refused("yes or no")),
            ("size", _) => {
                let size = parse_bytes(NVME, setting, value)?;
                config.size = Some(size);
                if !NvmeConfig::size_fits(size) {
                    return Err(refused("a multiple of 512 bytes above 0"));
                }
            }
            _ => {
                let queues = value.parse().ok().filter(|queues| NvmeConfig::queues_fit(*queues));
                config.queues = queues.ok_or_else(|| refused("1 to 64"))?;
            }
        }
    }
    Ok(config)
}

fn parse_protocol(model: &'static str, value: &str) -> Result<Protocol, ModelError> {
    let found = Protocol::ALL.into_iter().find(|protocol| protocol.name() == value);
    found.ok_or_else(|| refused(model, PROTOCOL, value, "v2, v1 or draft"))
}

fn parse_answers(value: &str) -> Result<Answers, ModelError> {
    let found = Answers::ALL.into_iter().find(|answers| answers.name() == value);
    found.ok_or_else(|| refused(SERIAL, ANSWERS, value, "vfio-pci or mtty"))
}

/// Parses whether the configuration space must be set up.
fn parse_config(value: &str) -> Result<bool, ModelError> {
    match value {
        REQUIRED => Ok(true),
        "optional" => Ok(false),
        _ => Err(refused(ACCEL, CONFIG, value, "optional or required")),
    }
}

/// Parses the settings in `text`, each known and given once.
fn parse_settings<'a>(
    model: &'static str,
    known: &'static [&'static str],
    text: &'a str,
) -> Result<Vec<(&'static str, &'a str)>, ModelError> {
    let mut settings: Vec<(&'static str, &'a str)> = Vec::new();
    for part in text.split('&').filter(|part| !part.is_empty()) {
        let (given, value) = part.split_once('=').unwrap_or((part, ""));
        let Some(setting) = known.iter().find(|name| **name == given) else {
            return Err(ModelError::UnknownSetting { model, setting: given.to_owned(), known });
        };
        if settings.iter().any(|(earlier, _)| earlier == setting) {
            return Err(ModelError::Twice { model, setting });
        }
        settings.push((setting, value));
    }
    Ok(settings)
}

/// Parses a size in bytes, as in a model's settings: a number, alone or with K, M, G, KiB, MiB or GiB (powers of 1024).
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn parse_features(text: &str) -> Option<MigrationFlags> {
    text.split(',').try_fold(MigrationFlags::STOP_COPY, |flags, name| {
        FEATURES.iter().find(|(known, _)| *known == name).map(|(_, flag)| flags | *flag)
    })
}

struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, suffix) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{suffix}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Formats the model with all its settings (`config` only if it is `required`, `size` only if it is given), as [`Model::from_str`] parses it.
impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Model::Serial(config, protocol) => {
                let SerialConfig { ports, answers } = config;
                let (ports, answers) = (ports.count(), answers.name());
                write!(f, "{SERIAL}?ports={ports}&{ANSWERS}={answers}&{PROTOCOL}={protocol}")
            }
            Model::Accel(config, protocol) => {
                let features: Vec<&str> = FEATURES
                    .iter()
                    .filter(|(_, flag)| config.flags.contains(*flag) || *flag == MigrationFlags::STOP_COPY)
                    .map(|(name, _)| *name)
                    .collect();
                write!(
                    f,
                    "{ACCEL}?state={}&rate={}&features={}&{PROTOCOL}={protocol}",
                    Size(config.state_bytes),
                    Size(config.state_rate),
                    features.join(",")
                )?;
                if config.needs_config { write!(f, "&{CONFIG}={REQUIRED}") } else { Ok(()) }
            }
            Model::Legacy(config) => {
                let LegacyConfig { state_bytes, state_rate, section_bytes } = *config;
                let (state, rate, section) = (Size(state_bytes), Size(state_rate), Size(section_bytes));
                write!(f, "{LEGACY}?state={state}&rate={rate}&section={section}")
            }
            Model::Nvme(config) => {
                write!(f, "{NVME}?{IMAGE}={}", config.image.display())?;
                if let Some(size) = config.size {
                    write!(f, "&size={}", Size(size))?;
                }
                let read_only = if config.is_read_only { "yes" } else { "no" };
                write!(f, "&{READ_ONLY}={read_only}&queues={}", config.queues)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accel(state_bytes: u64, state_rate: u64, flags: MigrationFlags) -> Model {
        Model::Accel(
            AccelConfig::default().state_bytes(state_bytes).state_rate(state_rate).flags(flags),
            Protocol::V2,
        )
    }

    fn serial(ports: Ports, protocol: Protocol) -> Model {
        Model::Serial(SerialConfig::default().ports(ports), protocol)
    }

    fn legacy(state_bytes: u64, state_rate: u64, section_bytes: u64) -> Model {
        Model::Legacy(
            LegacyConfig::default()
                .state_bytes(state_bytes)
                .state_rate(state_rate)
                .section_bytes(section_bytes),
        )
    }

    #[test]
    fn a_model_reads_as_it_is_written() {
        let all = MigrationFlags::all();
        let accel_by = |protocol| Model::Accel(AccelConfig::default().state_bytes(4096), protocol);
        let cases = [
            ("serial", serial(Ports::One, Protocol::V2)),
            ("serial?", serial(Ports::One, Protocol::V2)),
            ("serial?ports=2", serial(Ports::Two, Protocol::V2)),
            ("serial?protocol=v2", serial(Ports::One, Protocol::V2)),
            ("serial?protocol=v1&ports=2", serial(Ports::Two, Protocol::V1)),
            ("serial?protocol=draft", serial(Ports::One, Protocol::Draft)),
            ("serial?answers=vfio-pci", serial(Ports::One, Protocol::V2)),
            (
                "serial?answers=mtty",
                Model::Serial(SerialConfig::default().answers(Answers::Mtty), Protocol::V2),
            ),
            ("accel?protocol=v1&state=4K", accel_by(Protocol::V1)),
            ("accel?state=4096&protocol=draft", accel_by(Protocol::Draft)),
            ("legacy", legacy(4 << 20, 0, 1 << 20)),
            ("legacy?state=1M&rate=2K&section=100", legacy(1 << 20, 2048, 100)),
            ("accel", accel(64 << 20, 0, all)),
            ("accel?state=64GiB", accel(64 << 30, 0, all)),
            ("accel?state=1K&rate=3M", accel(1024, 3 << 20, all)),
            ("accel?rate=4096&state=2G", accel(2 << 30, 4096, all)),
            ("accel?features=stop-copy", accel(64 << 20, 0, MigrationFlags::STOP_COPY)),
            ("accel?features=p2p", accel(64 << 20, 0, MigrationFlags::STOP_COPY | MigrationFlags::P2P)),
            ("accel?features=stop-copy,p2p,pre-copy&state=1MiB", accel(1 << 20, 0, all)),
            ("accel?config=optional&state=1K", accel(1024, 0, all)),
            ("nvme?image=/dev/vg/disk", Model::Nvme(NvmeConfig::new("/dev/vg/disk"))),
            (
                "nvme?image=a?b=c&size=1G&readonly&queues=64",
                Model::Nvme(NvmeConfig::new("a?b=c").size(1 << 30).read_only(true).queues(64)),
            ),
            ("nvme?readonly=no&image=d", Model::Nvme(NvmeConfig::new("d"))),
            (
                "accel?state=4K&config=required",
                Model::Accel(AccelConfig::default().state_bytes(4096).needs_config(true), Protocol::V2),
            ),
        ];
        for (text, model) in cases {
            assert_eq!(text.parse(), Ok(model.clone()), "{text}");
            assert_eq!(model.to_string().parse(), Ok(model), "{text}");
        }
    }

    #[test]
    fn what_names_no_model_is_refused_with_what_there_is() {
        let cases = [
            ("", "unknown model '': expected one of serial, accel, legacy, nvme"),
            ("mtty", "unknown model 'mtty': expected one of serial, accel, legacy, nvme"),
            ("Serial", "unknown model 'Serial': expected one of serial, accel, legacy, nvme"),
            (
                "serial?state=1M",
                "unknown setting state for model serial: expected one of ports, answers, protocol",
            ),
            (
                "accel?ports=1",
                "unknown setting ports for model accel: expected one of state, rate, features, config, protocol",
            ),
            (
                "legacy?protocol=v2",
                "unknown setting protocol for model legacy: expected one of state, rate, section",
            ),
            (
                "accel?config=yes",
                "invalid value 'yes' for config (model accel): expected optional or required",
            ),
            ("accel?protocol=v3", "invalid value 'v3' for protocol (model accel): expected v2, v1 or draft"),
            ("serial?protocol=", "invalid value '' for protocol (model serial): expected v2, v1 or draft"),
            (
                "serial?answers=qemu",
                "invalid value 'qemu' for answers (model serial): expected vfio-pci or mtty",
            ),
            ("serial?ports=1&ports=1", "duplicate setting ports for model serial"),
            ("serial?ports=3", "invalid value '3' for ports (model serial): expected 1 or 2"),
            ("serial?ports", "invalid value '' for ports (model serial): expected 1 or 2"),
            (
                "accel?state=1",
                "invalid value '1' for state (model accel): expected 1KiB to 64GiB, a multiple of 8 bytes",
            ),
            (
                "accel?state=65G",
                "invalid value '65G' for state (model accel): expected 1KiB to 64GiB, a multiple of 8 bytes",
            ),
            (
                "legacy?state=1025",
                "invalid value '1025' for state (model legacy): expected 1KiB to 64GiB, a multiple of 8 bytes",
            ),
            (
                "nvme",
                "model nvme needs the setting image: expected the path of a file or block device, as image=PATH",
            ),
            (
                "nvme?image=",
                "model nvme needs the setting image: expected the path of a file or block device, as image=PATH",
            ),
            (
                "nvme?image=a&readonly=maybe",
                "invalid value 'maybe' for readonly (model nvme): expected yes or no",
            ),
            ("nvme?image=a&queues=65", "invalid value '65' for queues (model nvme): expected 1 to 64"),
            (
                "nvme?image=a&size=1000",
                "invalid value '1000' for size (model nvme): expected a multiple of 512 bytes above 0",
            ),
            (
                "nvme?disk=a",
                "unknown setting disk for model nvme: expected one of image, size, readonly, queues",
            ),
            (
                "legacy?section=63",
                "invalid value '63' for section (model legacy): expected 64 bytes to 64MiB",
            ),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Model>().unwrap_err().to_string(), error);
        }
        for value in [
            "",
            "M",
            "1T",
            "1 M",
            "-1",
            "+1",
            "1.5G",
            "1MB",
            "1k",
            "99999999999999999999",
            "18446744073709551615K",
        ] {
            assert!(format!("accel?state={value}").parse::<Model>().is_err(), "{value}");
        }
        for value in ["", "all", "stop-copy,", "p2p;pre-copy", "STOP_COPY"] {
            assert!(format!("accel?features={value}").parse::<Model>().is_err(), "{value}");
        }
    }

    #[test]
    fn settings_that_cannot_be_had_are_an_error_when_the_model_is_opened() {
        for state_bytes in [0, 1023, (64 << 30) + 1] {
            let error = accel(state_bytes, 0, MigrationFlags::all()).open("model").unwrap_err();
            assert!(error.to_string().contains(&state_bytes.to_string()), "{error}");
        }
    }
}
