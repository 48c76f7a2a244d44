//! Parsing of a model's text form.

use std::path::PathBuf;
use std::str::FromStr;

use whimbrel_device::MigrationFlags;

use super::settings::{
    ACCEL, ACCEL_SETTINGS, ANSWERS, CONFIG, FEATURES, IMAGE, LEGACY, LEGACY_SETTINGS, NVME, NVME_SETTINGS,
    PROTOCOL, READ_ONLY, REQUIRED, SERIAL, SERIAL_SETTINGS, parse_bytes, parse_settings, refused,
};
use super::{Model, ModelError};
use crate::accel::AccelConfig;
use crate::legacy::LegacyConfig;
use crate::nvme::NvmeConfig;
use crate::protocol::Protocol;
use crate::serial::{Answers, Ports, SerialConfig};

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
            NVME => parse_nvme(settings, None).map(Model::Nvme),
            _ => Err(ModelError::UnknownModel(name.to_owned())),
        }
    }
}

impl Model {
    /// Parses a model's text form without its image, whose path is given apart and may have any characters.
    ///
    /// Fails if the text has the setting `image` too, and for a model without that setting.
    ///
    /// ```
    /// use whimbrel_models::Model;
    ///
    /// let model = Model::parse_with_image("nvme?queues=2", "disks/a&b.img")?;
    /// assert!(matches!(model, Model::Nvme(config) if config.queues == 2));
    /// # Ok::<(), whimbrel_models::ModelError>(())
    /// ```
    pub fn parse_with_image(text: &str, image: impl Into<PathBuf>) -> Result<Model, ModelError> {
        let (name, settings) = text.split_once('?').unwrap_or((text, ""));
        if name == NVME {
            return parse_nvme(settings, Some(image.into())).map(Model::Nvme);
        }
        let (model, known) = match text.parse()? {
            Model::Serial(..) => (SERIAL, SERIAL_SETTINGS),
            Model::Accel(..) => (ACCEL, ACCEL_SETTINGS),
            Model::Legacy(_) => (LEGACY, LEGACY_SETTINGS),
            Model::Nvme(_) => (NVME, NVME_SETTINGS),
        };
        Err(ModelError::UnknownSetting { model, setting: IMAGE.to_owned(), known })
    }
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

/// Parses the settings of an `nvme`, whose image is among them or is given apart.
fn parse_nvme(text: &str, image: Option<PathBuf>) -> Result<NvmeConfig, ModelError> {
    let settings = parse_settings(NVME, NVME_SETTINGS, text)?;
    let named = settings.iter().find(|(setting, path)| *setting == IMAGE && !path.is_empty());
    let takes = "the path of a file or block device, as image=PATH";
    let image = match (image, named) {
        (Some(_), Some(_)) => return Err(ModelError::Twice { model: NVME, setting: IMAGE }),
        (Some(image), None) => image,
        (None, Some((_, path))) => path.into(),
        (None, None) => return Err(ModelError::Missing { model: NVME, setting: IMAGE, takes }),
    };
    let mut config = NvmeConfig::new(image);
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

fn parse_features(text: &str) -> Option<MigrationFlags> {
    text.split(',').try_fold(MigrationFlags::STOP_COPY, |flags, name| {
        FEATURES.iter().find(|(known, _)| *known == name).map(|(_, flag)| flags | *flag)
    })
}
