//! The rule for resets as JSON, in the reply to VFIO_USER_VERSION.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use whimbrel_protocol::reset::ResetRule;

#[expect(
    clippy::trivially_copy_pass_by_ref,
    clippy::ref_option,
    reason = "the signature that serde asks for"
)]
pub(crate) fn serialize<S: Serializer>(told: &Option<ResetRule>, serializer: S) -> Result<S::Ok, S::Error> {
    told.map(ResetRule::name).serialize(serializer)
}

/// Accepts a known rule only: a client that took another one for the kernel's would draw the wrong conclusions.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ResetRule>, D::Error> {
    let name = String::deserialize(deserializer)?;
    match ResetRule::from_name(&name) {
        Some(rule) => Ok(Some(rule)),
        None => Err(D::Error::custom("unknown rule for a reset")),
    }
}

#[cfg(test)]
mod tests {
    use whimbrel_protocol::reset::ResetRule;

    use crate::capabilities::Capabilities;

    fn parse(text: &str) -> Result<Option<ResetRule>, serde_json::Error> {
        let text = format!(r#"{{"capabilities": {{"migration_reset_rule": {text}}}}}"#);
        Capabilities::from_json(text.as_bytes()).map(|capabilities| capabilities.migration_reset_rule)
    }

    #[test]
    fn a_rule_survives_a_round_trip() {
        for rule in ResetRule::ALL.into_iter().map(Some).chain([None]) {
            let sent = Capabilities::default().migration_reset_rule(rule);
            let received = Capabilities::from_json(sent.to_json().as_bytes()).unwrap();
            assert_eq!(received.migration_reset_rule, rule);
        }
        assert_eq!(parse(r#""keeps_precopy""#).unwrap(), Some(ResetRule::KeepsPrecopy));
    }

    #[test]
    fn an_unknown_rule_is_refused() {
        for text in ["null", "true", "[]", "{}", r#""""#, r#""keeps""#, r#""KEEPS_PRECOPY""#] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
