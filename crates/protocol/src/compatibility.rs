//! The driver side's own word on its migration data, which tells two devices apart before any data moves.

/// The model that a driver implements, the version of its migration data, and the settings that source and destination
/// must have in common.
///
/// It says what the header cannot: VFIO's own description of a device consists of flags and counts. Two devices fit if
/// model and `data` are equal and the destination's version is at least the source's. Only the destination's driver can
/// judge the migration data itself.
///
/// ```
/// use whimbrel_protocol::compatibility::Compatibility;
///
/// let source = Compatibility::new("accel", 1).data(*b"state=4096");
/// assert_eq!(source.problem(), None);
/// assert!(Compatibility::new("", 1).problem().is_some());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compatibility {
    /// The model's name: 1 to [`Compatibility::MAX_MODEL`] printable ASCII characters.
    pub model: String,
    /// The version of the migration data. A driver loads data of its own version and of older ones.
    pub state_version: u32,
    /// Settings that must be equal, in a form of the driver's own: at most [`Compatibility::MAX_DATA`] bytes.
    pub data: Vec<u8>,
}

impl Compatibility {
    /// Maximum length of a model's name, in bytes.
    pub const MAX_MODEL: usize = 64;
    /// Maximum length of the settings, in bytes.
    pub const MAX_DATA: usize = 1024;

    /// Creates the description of a model without settings.
    pub fn new(model: impl Into<String>, state_version: u32) -> Compatibility {
        Compatibility { model: model.into(), state_version, data: Vec::new() }
    }

    /// Sets [`Compatibility::data`].
    #[must_use]
    pub fn data(self, data: impl Into<Vec<u8>>) -> Compatibility {
        Compatibility { data: data.into(), ..self }
    }

    /// Returns the description's defect; `None` if it is valid.
    pub fn problem(&self) -> Option<&'static str> {
        if !(1..=Compatibility::MAX_MODEL).contains(&self.model.len()) {
            return Some("the model's name is empty or too long");
        }
        if !self.model.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return Some("the model's name has characters that are not printable");
        }
        (self.data.len() > Compatibility::MAX_DATA).then_some("the settings are too long")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_printable_and_settings_are_bounded() {
        for model in ["serial", "DMA engine 2", &"x".repeat(Compatibility::MAX_MODEL)] {
            let data = vec![0; Compatibility::MAX_DATA];
            assert_eq!(Compatibility::new(model, 0).data(data).problem(), None, "{model}");
        }
        for model in ["", "\u{1b}[2J", "a\nb", "é", &"x".repeat(Compatibility::MAX_MODEL + 1)] {
            assert!(Compatibility::new(model, 0).problem().is_some(), "{model:?}");
        }
        let long = Compatibility::new("serial", 0).data(vec![0; Compatibility::MAX_DATA + 1]);
        assert!(long.problem().is_some());
    }
}
