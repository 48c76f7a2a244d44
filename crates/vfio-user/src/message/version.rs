//! VFIO_USER_VERSION: the first message of both sides.

use super::fields::Fields;
use super::{Malformed, MessageBuffer};
use crate::Capabilities;

/// What a side speaks and can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Changes with what is incompatible.
    pub major: u16,
    /// Changes with what is compatible.
    pub minor: u16,
    /// What the sender can do; what it leaves out has the protocol's default.
    pub capabilities: Capabilities,
}

impl Version {
    /// The terminating NUL of the text may be missing.
    pub(super) fn parse(payload: &[u8]) -> Result<Version, Malformed> {
        let mut fields = Fields::of(payload, 4)?;
        let (major, minor) = (fields.u16()?, fields.u16()?);
        let text = fields.rest();
        let text = text.strip_suffix(&[0]).unwrap_or(text);
        let capabilities =
            if text.is_empty() { Capabilities::default() } else { Capabilities::from_json(text)? };
        Ok(Version { major, minor, capabilities })
    }

    pub(super) fn put(&self, out: &mut MessageBuffer) {
        out.put_u16(self.major);
        out.put_u16(self.minor);
        out.put(self.capabilities.to_json().as_bytes());
        out.put(&[0]);
    }
}
