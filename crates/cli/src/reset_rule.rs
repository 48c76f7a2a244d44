//! The option `--reset-rule`: the effect of a reset on a migration under way.

use whimbrel_device::ResetRule;

/// Parses a rule. Options have dashes where the names on the wire have underscores.
pub(crate) fn parse(text: &str) -> Result<ResetRule, String> {
    ResetRule::from_name(&text.replace('-', "_"))
        .filter(|_| !text.contains('_'))
        .ok_or_else(|| "expected ends-migration or keeps-precopy".into())
}
