//! The errors of a model: in its text form, and from opening it.

use whimbrel_device::Errno;

use super::Model;
use crate::accel::AccelConfigError;
use crate::legacy::LegacyConfigError;
use crate::nvme::NvmeError;

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
