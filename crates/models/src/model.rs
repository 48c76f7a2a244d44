//! A model's name with its settings, as on a command line, and the device it opens.

use std::fmt;
use std::str::FromStr;

use whimbrel_device::{Bus, DeviceFile, Driver, Errno, MigrationFlags, Worker};

use crate::accel::{Accel, AccelConfig, AccelConfigError};
use crate::serial::{Ports, Serial, SerialConfig};

/// A model and its settings.
///
/// As text it is the model's name, and behind a `?` its settings, separated by `&`:
///
/// | model | setting | meaning |
/// |---|---|---|
/// | `serial` | `ports` | 1 or 2 ports (1) |
/// | `accel` | `state` | bytes of own state, 1 KiB to 64 GiB (64MiB) |
/// | | `rate` | bytes per second at which it changes by itself (0) |
/// | | `features` | any of `stop-copy`, `p2p`, `pre-copy`, separated by commas (all) |
///
/// STOP_COPY is there also if `features` leaves it out. Sizes take a suffix: `K` or `KiB`, `M` or `MiB`, `G`
/// or `GiB`, all of them powers of 1024.
///
/// ```
/// use whimbrel_models::Model;
///
/// let model: Model = "accel?state=1MiB&features=stop-copy,p2p".parse()?;
/// let opened = model.open("engine 0")?;
/// assert!(opened.worker.is_some(), "it works by itself");
/// assert_eq!("accel?colour=red".parse::<Model>().unwrap_err().to_string(),
///     "model accel has no setting colour; it has state, rate, features");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// A card with 16550 ports.
    Serial(SerialConfig),
    /// A DMA engine.
    Accel(AccelConfig),
}

/// A model that was opened.
#[derive(Debug)]
pub struct OpenModel {
    /// The device.
    pub device: DeviceFile,
    /// What makes it work by itself until it is dropped; `None` for a model that only answers.
    pub worker: Option<Worker>,
}

/// Text that names no model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// There is no model of this name.
    #[error("there is no model {0}; there are {names}", names = Model::names().join(", "))]
    UnknownModel(String),
    /// The model has no such setting.
    #[error("model {model} has no setting {setting}; it has {}", known.join(", "))]
    UnknownSetting {
        /// The model's name.
        model: &'static str,
        /// What was given.
        setting: String,
        /// The settings there are.
        known: &'static [&'static str],
    },
    /// The setting is given more than once.
    #[error("model {model} is given its setting {setting} twice")]
    Twice {
        /// The model's name.
        model: &'static str,
        /// The setting's name.
        setting: &'static str,
    },
    /// The setting cannot have this value.
    #[error("{setting}={value} will not do for model {model}: it takes {takes}")]
    Value {
        /// The model's name.
        model: &'static str,
        /// The setting's name.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        takes: &'static str,
    },
}

/// A model that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The settings of an `accel` cannot be had.
    #[error("model accel: {0}")]
    Accel(#[from] AccelConfigError),
    /// The thread that makes the device work could not be started.
    #[error("no thread for the device's own work: {0}; end other processes or raise the limit on threads")]
    Worker(Errno),
}

const SERIAL: &str = "serial";
const SERIAL_SETTINGS: &[&str] = &["ports"];
const ACCEL: &str = "accel";
const ACCEL_SETTINGS: &[&str] = &["state", "rate", "features"];

const FEATURES: [(&str, MigrationFlags); 3] = [
    ("stop-copy", MigrationFlags::STOP_COPY),
    ("p2p", MigrationFlags::P2P),
    ("pre-copy", MigrationFlags::PRE_COPY),
];

impl Model {
    /// The names of all models.
    pub const fn names() -> &'static [&'static str] {
        &[SERIAL, ACCEL]
    }

    /// Opens a device of this kind, with a bus of its own. `name` stands in errors and traces.
    pub fn open(&self, name: impl Into<String>) -> Result<OpenModel, OpenError> {
        let bus = Bus::new();
        let (driver, works): (Box<dyn Driver>, bool) = match self {
            Model::Serial(config) => (Box::new(Serial::new(*config, bus.clone())), false),
            Model::Accel(config) => (Box::new(Accel::new(*config, bus.clone())?), true),
        };
        let device = DeviceFile::new(name, bus, driver);
        let worker = works.then(|| Worker::start(device.clone())).transpose().map_err(OpenError::Worker)?;
        Ok(OpenModel { device, worker })
    }
}

impl FromStr for Model {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Model, ModelError> {
        let (name, settings) = text.split_once('?').unwrap_or((text, ""));
        match name {
            SERIAL => {
                let mut config = SerialConfig::default();
                for (setting, value) in parse_settings(SERIAL, SERIAL_SETTINGS, settings)? {
                    config.ports = match value {
                        "1" => Ports::One,
                        "2" => Ports::Two,
                        _ => return Err(refused(SERIAL, setting, value, "1 or 2")),
                    };
                }
                Ok(Model::Serial(config))
            }
            ACCEL => {
                let mut config = AccelConfig::default();
                for (setting, value) in parse_settings(ACCEL, ACCEL_SETTINGS, settings)? {
                    let size = || {
                        let takes = "bytes, with K, M, G, KiB, MiB or GiB behind the number if you like";
                        parse_size(value).ok_or_else(|| refused(ACCEL, setting, value, takes))
                    };
                    match setting {
                        "state" => config.state_bytes = size()?,
                        "rate" => config.state_rate = size()?,
                        _ => {
                            let takes = "stop-copy, p2p and pre-copy, separated by commas";
                            config.flags =
                                parse_features(value).ok_or_else(|| refused(ACCEL, setting, value, takes))?;
                        }
                    }
                }
                Ok(Model::Accel(config))
            }
            _ => Err(ModelError::UnknownModel(name.to_owned())),
        }
    }
}

fn refused(model: &'static str, setting: &'static str, value: &str, takes: &'static str) -> ModelError {
    ModelError::Value { model, setting, value: value.to_owned(), takes }
}

/// The settings in `text`, each of them known and there once.
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

/// A size in bytes as a model's settings take it: a number, alone or with K, M, G, KiB, MiB or GiB, all of
/// them powers of 1024.
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

/// The model with all its settings, as [`Model::from_str`] takes it.
impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Model::Serial(config) => write!(f, "{SERIAL}?ports={}", config.ports.count()),
            Model::Accel(config) => {
                let features: Vec<&str> = FEATURES
                    .iter()
                    .filter(|(_, flag)| config.flags.contains(*flag) || *flag == MigrationFlags::STOP_COPY)
                    .map(|(name, _)| *name)
                    .collect();
                write!(
                    f,
                    "{ACCEL}?state={}&rate={}&features={}",
                    Size(config.state_bytes),
                    Size(config.state_rate),
                    features.join(",")
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accel(state_bytes: u64, state_rate: u64, flags: MigrationFlags) -> Model {
        Model::Accel(AccelConfig { state_bytes, state_rate, flags })
    }

    #[test]
    fn a_model_reads_as_it_is_written() {
        let all = MigrationFlags::all();
        let cases = [
            ("serial", Model::Serial(SerialConfig { ports: Ports::One })),
            ("serial?", Model::Serial(SerialConfig { ports: Ports::One })),
            ("serial?ports=2", Model::Serial(SerialConfig { ports: Ports::Two })),
            ("accel", accel(64 << 20, 0, all)),
            ("accel?state=64GiB", accel(64 << 30, 0, all)),
            ("accel?state=1K&rate=3M", accel(1024, 3 << 20, all)),
            ("accel?rate=4096&state=2G", accel(2 << 30, 4096, all)),
            ("accel?features=stop-copy", accel(64 << 20, 0, MigrationFlags::STOP_COPY)),
            ("accel?features=p2p", accel(64 << 20, 0, MigrationFlags::STOP_COPY | MigrationFlags::P2P)),
            ("accel?features=stop-copy,p2p,pre-copy&state=1MiB", accel(1 << 20, 0, all)),
        ];
        for (text, model) in cases {
            assert_eq!(text.parse(), Ok(model.clone()), "{text}");
            assert_eq!(model.to_string().parse(), Ok(model), "{text}");
        }
    }

    #[test]
    fn what_names_no_model_is_refused_with_what_there_is() {
        let cases = [
            ("", "there is no model ; there are serial, accel"),
            ("mtty", "there is no model mtty; there are serial, accel"),
            ("Serial", "there is no model Serial; there are serial, accel"),
            ("serial?state=1M", "model serial has no setting state; it has ports"),
            ("accel?ports=1", "model accel has no setting ports; it has state, rate, features"),
            ("serial?ports=1&ports=1", "model serial is given its setting ports twice"),
            ("serial?ports=3", "ports=3 will not do for model serial: it takes 1 or 2"),
            ("serial?ports", "ports= will not do for model serial: it takes 1 or 2"),
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
