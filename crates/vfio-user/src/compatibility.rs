//! The driver's description of its migration data as JSON, in the reply to VFIO_USER_VERSION.

use std::fmt::Write as _;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use whimbrel_protocol::compatibility::Compatibility;

use crate::json::object;

#[derive(Serialize, Deserialize)]
struct Text {
    model: String,
    state_version: u32,
    /// Two hexadecimal digits for each byte.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    data: String,
}

#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
pub(crate) fn serialize<S: Serializer>(
    told: &Option<Compatibility>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let text = told.as_ref().map(|Compatibility { model, state_version, data, .. }| {
        let data = data.iter().fold(String::with_capacity(2 * data.len()), |mut digits, byte| {
            // Writing to a string cannot fail.
            let _ = write!(digits, "{byte:02x}");
            digits
        });
        Text { model: model.clone(), state_version: *state_version, data }
    });
    text.serialize(serializer)
}

/// Accepts a valid description only: it is shown to people and compared with others.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Compatibility>, D::Error> {
    let Text { model, state_version, data } = object(deserializer)?;
    let data = bytes(&data).ok_or_else(|| D::Error::custom("data is not hexadecimal bytes"))?;
    let told = Compatibility::new(model, state_version).data(data);
    match told.problem() {
        Some(problem) => Err(D::Error::custom(problem)),
        None => Ok(Some(told)),
    }
}

/// Returns the bytes of a string of hexadecimal digits; `None` if it is not one.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8; 2]| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8);
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

#[cfg(test)]
mod tests {
    use whimbrel_protocol::compatibility::Compatibility;

    use crate::capabilities::Capabilities;

    fn parse(text: &str) -> Result<Option<Compatibility>, serde_json::Error> {
        let text = format!(r#"{{"capabilities": {{"migration_compatibility": {text}}}}}"#);
        Capabilities::from_json(text.as_bytes()).map(|capabilities| capabilities.migration_compatibility)
    }

    #[test]
    fn a_description_survives_a_round_trip() {
        for data in [vec![], vec![0x00, 0x7f, 0xff], vec![0xa5; Compatibility::MAX_DATA]] {
            let told = Compatibility::new("accel", u32::MAX).data(data);
            let sent = Capabilities::default().migration_compatibility(Some(told.clone()));
            let received = Capabilities::from_json(sent.to_json().as_bytes()).unwrap();
            assert_eq!(received.migration_compatibility, Some(told));
        }
    }

    #[test]
    fn unknown_members_are_ignored_and_data_may_be_omitted() {
        let told = parse(r#"{"model": "x", "state_version": 2, "later": [1]}"#).unwrap();
        assert_eq!(told, Some(Compatibility::new("x", 2)));
    }

    #[test]
    fn an_invalid_description_is_refused() {
        let long = format!(
            r#"{{"model": "x", "state_version": 1, "data": "{}"}}"#,
            "00".repeat(Compatibility::MAX_DATA + 1)
        );
        for text in [
            "null",
            "[]",
            r#"["x", 1, ""]"#,
            "{}",
            r#"{"model": "x"}"#,
            r#"{"model": "", "state_version": 1}"#,
            r#"{"model": "\u001b[2J", "state_version": 1}"#,
            r#"{"model": "x", "state_version": -1}"#,
            r#"{"model": "x", "state_version": 1, "data": "0"}"#,
            r#"{"model": "x", "state_version": 1, "data": "0g"}"#,
            r#"{"model": "x", "state_version": 1, "data": "+1"}"#,
            r#"{"model": "x", "state_version": 1, "data": [1]}"#,
            &long,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
