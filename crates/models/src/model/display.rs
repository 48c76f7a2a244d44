//! A model's text form, as [`Model`] parses it.

use std::fmt;

use whimbrel_device::MigrationFlags;

use super::Model;
use super::settings::{
    ACCEL, ANSWERS, CONFIG, FEATURES, IMAGE, LEGACY, NVME, PROTOCOL, READ_ONLY, REQUIRED, SERIAL, Size,
};
use crate::legacy::LegacyConfig;
use crate::serial::SerialConfig;

/// Formats the model with all its settings (`config` only if it is `required`, `size` only if it is given), as its
/// [`FromStr`](std::str::FromStr) parses it.
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
