//! `--fault`: the faults that `serve` and `run` inject into their devices.

use std::str::FromStr;

use whimbrel_device::wrap::fault::Faults;
use whimbrel_interpose::run::Address;

use crate::usage::WrongValue;

/// The first line of the option's help.
pub(crate) const HELP: &str = "Inject a fault into the device, such as 'arc RUNNING_P2P->STOP: EIO once'";

/// The list of faults, for the option's long help.
const LIST: &str = "\
Separate several faults with semicolons, or repeat --fault. Other faults: 'read after 1MiB: short' (or EIO, \
end), 'read after 0 in STOP_COPY: EIO', 'write after 4KiB: ENOSPC', 'delay STOP_COPY 200ms', 'size: 100GiB', \
'precopy: initial 5 dirty 0', 'reinit after 1MiB', 'temporary end: 0', 'log report: EIO' (or start, stop), \
'reset: EIO'; * is any state, 'broken' after the errno of an arc leads to ERROR, 0 instead of it reports \
success and leaves the device where it was, and 'once' or '3 times' at the end limits the number of times.";

/// The long help of a command with one device.
pub(crate) fn long_help() -> String {
    format!("{HELP}\n\n{LIST}")
}

/// The long help of a command with several devices.
pub(crate) fn long_help_with_addresses() -> String {
    format!(
        "{}\n\nWith several devices, begin with the address of one: '0100:00:01.0 reset: EIO once'.",
        long_help()
    )
}

/// Faults of one device among several: `0100:00:01.0 reset: EIO once`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceFaults {
    /// The address before the faults. `None` without one, for the only device.
    pub(crate) address: Option<Address>,
    pub(crate) faults: Faults,
}

impl FromStr for DeviceFaults {
    type Err = WrongValue;

    fn from_str(text: &str) -> Result<DeviceFaults, WrongValue> {
        let (first, rest) = text.trim_start().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        let (address, faults) = match first.parse::<Address>() {
            Ok(_) if rest.trim().is_empty() => {
                let why = format!("no fault follows the address {first}");
                return Err(WrongValue::new(
                    why,
                    "write it behind the address: '0100:00:01.0 reset: EIO once'",
                ));
            }
            Ok(address) => (Some(address), rest),
            Err(_) if first.strip_suffix(':').is_some_and(|first| first.parse::<Address>().is_ok()) => {
                let why = format!("unexpected ':' after the address in '{first}'");
                return Err(WrongValue::new(why, "write a space alone: '0100:00:01.0 reset: EIO once'"));
            }
            Err(_) => (None, text),
        };
        let faults = faults
            .parse::<Faults>()
            .map_err(|error| WrongValue::new(format!("{error}"), "`whimbrel run --help` lists the faults"))?;
        Ok(DeviceFaults { address, faults })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_before_faults_names_their_device() {
        let faults = |text: &str| text.parse::<Faults>().unwrap();
        for (text, address, expected) in [
            ("reset: EIO", None, "reset: EIO"),
            ("0100:00:01.0 reset: EIO once; size: 1", Some("0100:00:01.0"), "reset: EIO once; size: 1"),
            ("  0100:00:01.0   arc *->STOP: 0", Some("0100:00:01.0"), "arc *->STOP: 0"),
        ] {
            let address = address.map(|address| address.parse().unwrap());
            assert_eq!(text.parse(), Ok(DeviceFaults { address, faults: faults(expected) }), "{text}");
        }
    }

    #[test]
    fn an_address_without_a_fault_or_before_no_fault_is_refused() {
        for (text, why) in [
            ("0100:00:01.0", "no fault follows the address 0100:00:01.0"),
            ("0100:00:01.0 ", "no fault follows the address 0100:00:01.0"),
            ("0100:00:01.0 explode", "invalid fault 'explode'"),
            ("0100:00:01.0: reset: EIO", "unexpected ':' after the address in '0100:00:01.0:'"),
            ("0100:00:01 reset: EIO", "invalid fault '0100:00:01 reset: EIO'"),
        ] {
            let refused = text.parse::<DeviceFaults>().unwrap_err().to_string();
            assert!(refused.starts_with(why), "{text}: {refused}");
        }
    }
}
