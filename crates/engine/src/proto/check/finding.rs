//! A finding of a check: why devices cannot migrate, or what may go wrong.

use serde::Serialize;
use whimbrel_protocol::text::printable;

use super::code::{Code, Severity};

/// The longest text of a finding, in characters.
const MAX_TEXT: usize = 1000;

/// A finding of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The reason, for scripts.
    pub code: Code,
    /// The effect.
    pub severity: Severity,
    /// The device's name at this side; `None` if it concerns all.
    pub device: Option<String>,
    /// The facts of this case, for people.
    pub text: String,
    /// The operator's way out.
    pub remedy: String,
}

impl Finding {
    /// Returns a finding with the severity and the remedy of its code.
    pub fn new(code: Code, text: impl AsRef<str>) -> Finding {
        Finding {
            code,
            severity: code.severity(),
            device: None,
            text: printable(text.as_ref(), MAX_TEXT),
            remedy: code.remedy().to_string(),
        }
    }

    /// Names the device.
    #[must_use]
    pub fn of(mut self, device: &str) -> Finding {
        self.device = Some(device.to_string());
        self
    }

    /// Sets the severity.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Finding {
        self.severity = severity;
        self
    }

    /// Sets what the operator can do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Finding {
        self.remedy = remedy.into();
        self
    }
}
