//! The hooks of devices that are known by their identity.

use std::sync::Arc;

use whimbrel_user::Identity;

use super::{AccelProbe, AccelWriter, SerialProbe};
use crate::config::Config;

/// PCI vendor and device of the kernel's sample driver mtty, which the `serial` model has too.
const MTTY: (u16, u16) = (0x4348, 0x3253);

/// Sets the hooks of a device that is one of Whimbrel's models, in this process or behind vfio-user, or the kernel's mtty.
/// Hooks that are set already remain.
pub fn set_hooks(config: &mut Config, identity: &Identity) {
    let model = identity.compatibility.as_ref().map(|compatibility| compatibility.model.as_str());
    let is_mtty = identity.pci.is_some_and(|pci| (pci.vendor, pci.device) == MTTY);
    if matches!(model, Some("accel" | "legacy")) {
        config.registers.get_or_insert_with(|| Arc::new(AccelProbe::default()));
        config.writer.get_or_insert_with(|| Arc::new(AccelWriter::new()));
    } else if model == Some("serial") || (model.is_none() && is_mtty) {
        config.registers.get_or_insert_with(|| Arc::new(SerialProbe::default()));
    }
}

#[cfg(test)]
mod tests {
    use whimbrel_models::Model;
    use whimbrel_user::{Local, Migratable};

    use super::*;

    #[test]
    fn models_are_known_and_hooks_of_an_author_remain() {
        for text in ["serial", "accel?state=64KiB", "legacy?state=64KiB", "serial?answers=mtty"] {
            let model: Model = text.parse().unwrap();
            let identity = Local::new(model.open(text).unwrap()).identity().unwrap();
            let mut config = Config::default();
            set_hooks(&mut config, &identity);
            assert!(config.registers.is_some(), "{text}");
        }
    }
}
