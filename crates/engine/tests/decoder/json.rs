//! The JSON payloads: which keys there are, and what they hold.

use serde_json::Value;

type Is = fn(&Value) -> bool;

/// The keys of an object. All others are ignored.
#[derive(Default)]
pub(super) struct Keys(Vec<(&'static str, Is, bool)>);

impl Keys {
    /// A key that must be there.
    pub(super) fn must(mut self, key: &'static str, is: Is) -> Keys {
        self.0.push((key, is, true));
        self
    }

    /// A key that may be left out.
    pub(super) fn may(mut self, key: &'static str, is: Is) -> Keys {
        self.0.push((key, is, false));
        self
    }

    fn check(&self, value: &Value) -> Result<(), String> {
        let object = value.as_object().ok_or("not an object")?;
        for (key, is, must) in &self.0 {
            match object.get(*key) {
                None if *must => return Err(format!("without {key}")),
                Some(value) if !is(value) => return Err(format!("{key} is {value}")),
                _ => {}
            }
        }
        Ok(())
    }
}

pub(super) fn object(payload: &[u8], keys: Keys) -> Result<Value, String> {
    let value = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    keys.check(&value)?;
    Ok(value)
}

fn is_u32(value: &Value) -> bool {
    value.as_u64().is_some_and(|number| u32::try_from(number).is_ok())
}

fn is_u16(value: &Value) -> bool {
    value.as_u64().is_some_and(|number| u16::try_from(number).is_ok())
}

fn is_hex(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

fn is_id(value: &Value) -> bool {
    is_hex(value) && value.as_str().is_some_and(|text| text.len() == 32)
}

fn is_list_of(value: &Value, is: Is) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(is))
}

fn is_names(value: &Value) -> bool {
    is_list_of(value, Value::is_string)
}

pub(super) fn hello(payload: &[u8]) -> Result<Value, String> {
    let keys = Keys::default()
        .must("migration", is_id)
        .must("versions", |value| is_list_of(value, is_u32))
        .may("features", is_names)
        .may("needs", is_names)
        .may("channels", is_u32)
        .may("reconnect_ms", Value::is_u64);
    object(payload, keys)
}

fn is_secret(value: &Value) -> bool {
    is_hex(value) && value.as_str().is_some_and(|text| text.len() == 64)
}

pub(super) fn accept(payload: &[u8]) -> Result<Value, String> {
    let keys = Keys::default()
        .must("version", is_u32)
        .may("features", is_names)
        .may("channels", |value| value.as_u64().is_some_and(|channels| (1..=16).contains(&channels)))
        .may("secret", is_secret)
        .may("reconnect_ms", |value| value.as_u64().is_some_and(|ms| ms > 0));
    object(payload, keys)
}

pub(super) fn join(payload: &[u8]) -> Result<Value, String> {
    let is_purpose: Is = |value| {
        let is = |keys: Keys| keys.check(value).is_ok();
        is(Keys::default().must("lane", is_u32).may("resumption", is_u32))
            || is(Keys::default().must("resumption", is_u32))
    };
    let keys = Keys::default().must("migration", is_id).must("secret", is_secret).must("purpose", is_purpose);
    object(payload, keys)
}

pub(super) fn resumed(payload: &[u8]) -> Result<Value, String> {
    let keys =
        Keys::default().must("round", is_u32).must("devices", |value| is_list_of(value, Value::is_u64));
    object(payload, keys)
}

fn is_mismatch(value: &Value) -> bool {
    let keys =
        Keys::default().must("code", Value::is_string).may("device", is_u32).must("text", Value::is_string);
    keys.check(value).is_ok()
}

pub(super) fn checked(payload: &[u8]) -> Result<Value, String> {
    let keys = Keys::default()
        .may("mismatches", |value| is_list_of(value, is_mismatch))
        .may("more", is_u32)
        .may("setup_us", Value::is_u64);
    object(payload, keys)
}

fn is_pci(value: &Value) -> bool {
    let keys = ["vendor", "device", "subsystem_vendor", "subsystem_device"]
        .into_iter()
        .fold(Keys::default(), |keys, key| keys.must(key, is_u16))
        .must("class", |value| value.as_u64().is_some_and(|class| class < 1 << 24))
        .must("revision", |value| value.as_u64().is_some_and(|revision| revision < 256));
    keys.check(value).is_ok()
}

fn is_device(value: &Value) -> bool {
    let keys = ["flags", "num_regions", "num_irqs"]
        .into_iter()
        .fold(Keys::default(), |keys, key| keys.must(key, is_u32))
        .must("name", Value::is_string)
        .must("migration_flags", Value::is_u64)
        .may("pci", is_pci)
        .may("model", Value::is_string)
        .may("state_version", is_u32)
        .may("compatibility", |value| is_hex(value) && value.as_str().is_some_and(|text| text.len() <= 2048))
        .may("region", |value| value == "v1" || value == "draft")
        .may("transactions", Value::is_boolean);
    keys.check(value).is_ok()
}

fn is_region(value: &Value) -> bool {
    let keys = Keys::default()
        .must("start", |value| value.as_u64().is_some_and(|start| start % 4096 == 0))
        .must("size", |value| value.as_u64().is_some_and(|size| size > 0));
    let end = || value["start"].as_u64()?.checked_add(value["size"].as_u64()?);
    keys.check(value).is_ok() && end().is_some()
}

fn is_blob(value: &Value) -> bool {
    let is_name: Is = |value| {
        value
            .as_str()
            .is_some_and(|name| (1..=255).contains(&name.len()) && !name.chars().any(is_unfit_to_show))
    };
    Keys::default().must("name", is_name).must("version", is_u32).check(value).is_ok()
}

pub(super) fn table(payload: &[u8]) -> Result<Value, String> {
    let keys = Keys::default()
        .must("devices", |value| is_list_of(value, is_device))
        .may("memory", |value| is_list_of(value, is_region))
        .may("blobs", |value| is_list_of(value, is_blob));
    object(payload, keys)
}

/// Control characters, separators of lines and paragraphs, and marks of direction.
fn is_unfit_to_show(it: char) -> bool {
    let marks = ['\u{61c}', '\u{200e}', '\u{200f}'];
    it.is_control() || marks.contains(&it) || matches!(it, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(super) fn reason(payload: &[u8]) -> Result<String, String> {
    let value = object(payload, Keys::default().must("reason", Value::is_string))?;
    let reason = value["reason"].as_str().unwrap_or_default();
    if reason.chars().count() > 1000 || reason.chars().any(is_unfit_to_show) {
        return Err("a reason that is not fit to be shown".into());
    }
    Ok(reason.to_string())
}
