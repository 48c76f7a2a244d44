//! The names of models and settings, and the values that several settings have: how they are parsed and written.

use std::fmt;

use whimbrel_device::MigrationFlags;

use super::ModelError;

pub(super) const SERIAL: &str = "serial";
pub(super) const SERIAL_SETTINGS: &[&str] = &["ports", ANSWERS, PROTOCOL];
pub(super) const ACCEL: &str = "accel";
pub(super) const ACCEL_SETTINGS: &[&str] = &["state", "rate", "features", CONFIG, PROTOCOL];
pub(super) const LEGACY: &str = "legacy";
pub(super) const LEGACY_SETTINGS: &[&str] = &["state", "rate", "section"];
pub(super) const NVME: &str = "nvme";
pub(super) const NVME_SETTINGS: &[&str] = &[IMAGE, "size", READ_ONLY, "queues"];
pub(super) const IMAGE: &str = "image";
pub(super) const READ_ONLY: &str = "readonly";
pub(super) const ANSWERS: &str = "answers";
pub(super) const CONFIG: &str = "config";
pub(super) const REQUIRED: &str = "required";
pub(super) const PROTOCOL: &str = "protocol";

pub(super) const FEATURES: [(&str, MigrationFlags); 3] = [
    ("stop-copy", MigrationFlags::STOP_COPY),
    ("p2p", MigrationFlags::P2P),
    ("pre-copy", MigrationFlags::PRE_COPY),
];

pub(super) fn refused(
    model: &'static str,
    setting: &'static str,
    value: &str,
    takes: &'static str,
) -> ModelError {
    ModelError::Value { model, setting, value: value.to_owned(), takes }
}

pub(super) fn parse_bytes(
    model: &'static str,
    setting: &'static str,
    value: &str,
) -> Result<u64, ModelError> {
    let takes = "a number of bytes, alone or with K, M, G, KiB, MiB or GiB";
    parse_size(value).ok_or_else(|| refused(model, setting, value, takes))
}

/// Parses the settings in `text`, each known and given once.
pub(super) fn parse_settings<'a>(
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

pub(super) struct Size(pub(super) u64);

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
