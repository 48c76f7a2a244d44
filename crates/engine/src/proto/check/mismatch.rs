//! The comparison of the two sides for a check: the destination's answer, and what it means to the source.

use std::time::Duration;

use super::code::Code;
use super::finding::Finding;
use crate::proto::control::{Checked, Mismatch, Table};
use crate::proto::greeting::BUSY;
use crate::proto::message::MAX_MISMATCHES;
use crate::proto::negotiate::CHECK;
use crate::proto::table::{Unfit, misfits};

/// Returns the destination's answer to a source that asks whether its devices fit.
pub(crate) fn answer(theirs: &Table, ours: &Table, setup: Duration) -> Checked {
    let all = misfits(theirs, ours);
    let mismatches = all.iter().take(MAX_MISMATCHES).map(|(device, unfit)| Mismatch {
        code: code_of(unfit).name().to_string(),
        device: *device,
        text: unfit.to_string(),
    });
    Checked {
        mismatches: mismatches.collect(),
        more: u32::try_from(all.len().saturating_sub(MAX_MISMATCHES)).unwrap_or(u32::MAX),
        setup_us: u64::try_from(setup.as_micros()).unwrap_or(u64::MAX),
    }
}

fn code_of(unfit: &Unfit) -> Code {
    match unfit {
        Unfit::Count { .. } => Code::DeviceCount,
        Unfit::Device(difference) => difference.code,
        Unfit::Memory { .. } => Code::MemoryLayout,
        Unfit::Blob { is_known: true, .. } => Code::BlobVersion,
        Unfit::Blob { .. } => Code::BlobUnknown,
        Unfit::Malformed(_) => Code::InvalidTable,
    }
}

/// Returns what a destination's answer means to the source that sent this table. A code of a later release is told as a
/// refusal.
pub(crate) fn findings(checked: &Checked, table: &Table) -> Vec<Finding> {
    let mut found: Vec<Finding> =
        checked.mismatches.iter().map(|mismatch| of_mismatch(mismatch, table)).collect();
    if checked.more > 0 {
        found.push(Finding::new(
            Code::DestinationRefused,
            format!("the destination has found {} more differences", checked.more),
        ));
    }
    found
}

fn of_mismatch(mismatch: &Mismatch, table: &Table) -> Finding {
    let finding = match Code::from_name(&mismatch.code) {
        Some(code) => Finding::new(code, &mismatch.text),
        None => Finding::new(Code::DestinationRefused, format!("{} ({})", mismatch.text, mismatch.code)),
    };
    let device = mismatch.device.and_then(|number| table.devices.get(number as usize));
    match device {
        Some(device) => finding.of(&device.name),
        None => finding,
    }
}

/// Returns what a FAILED in place of an answer means. Its text is all that a release without checks tells.
pub(crate) fn of_failed(reason: &str) -> Finding {
    let code = if reason.starts_with(BUSY) {
        Code::DestinationBusy
    } else if reason.contains(&format!("the feature '{CHECK}'")) {
        Code::CheckUnsupported
    } else if reason.starts_with("no common protocol version") {
        Code::NoCommonVersion
    } else if reason.contains("needs the feature '") {
        Code::FeatureMissing
    } else {
        Code::DestinationRefused
    };
    Finding::new(code, format!("the destination refuses: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::control::{BlobName, Control};
    use crate::proto::frame::{Kind, MAX_CONTROL};
    use crate::proto::identity::{DeviceIdentity, PciIdentity};
    use crate::proto::message::Message;
    use crate::proto::negotiate::Refusal;
    use crate::set::RamRegion;

    fn device() -> DeviceIdentity {
        DeviceIdentity {
            name: "nic0".into(),
            flags: 2,
            num_regions: 9,
            num_irqs: 5,
            pci: Some(PciIdentity::default()),
            model: Some("mlx5".into()),
            state_version: Some(1),
            ..DeviceIdentity::default()
        }
    }

    fn table() -> Table {
        Table {
            devices: vec![device()],
            memory: vec![RamRegion::new(0, 0x1000)],
            blobs: vec![BlobName { name: "cpu".into(), version: 2 }],
        }
    }

    fn codes(theirs: &Table) -> Vec<Code> {
        let checked = answer(theirs, &table(), Duration::ZERO);
        findings(&checked, theirs).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn equal_sides_have_no_mismatch_and_each_difference_has_its_code() {
        assert_eq!(codes(&table()), []);
        let with = |change: fn(&mut Table)| {
            let mut table = table();
            change(&mut table);
            table
        };
        let cases = [
            (with(|table| table.devices.push(device())), vec![Code::DeviceCount]),
            (with(|table| table.devices[0].flags = 4), vec![Code::DeviceKind]),
            (with(|table| table.devices[0].model = Some("ice".into())), vec![Code::DeviceModel]),
            (with(|table| table.devices[0].pci.as_mut().unwrap().vendor = 7), vec![Code::PciId]),
            (
                with(|table| table.devices[0].pci.as_mut().unwrap().subsystem_device = 7),
                vec![Code::PciSubsystemId],
            ),
            (with(|table| table.devices[0].pci.as_mut().unwrap().class = 7), vec![Code::PciClass]),
            (with(|table| table.devices[0].num_regions = 7), vec![Code::RegionCount]),
            (with(|table| table.devices[0].num_irqs = 7), vec![Code::InterruptCount]),
            (with(|table| table.devices[0].state_version = Some(2)), vec![Code::StateVersion]),
            (with(|table| table.devices[0].compatibility = "00".into()), vec![Code::CompatibilityData]),
            (with(|table| table.memory.clear()), vec![Code::MemoryLayout]),
            (with(|table| table.blobs[0].name = "vmm".into()), vec![Code::BlobUnknown]),
            (with(|table| table.blobs[0].version = 3), vec![Code::BlobVersion]),
            (with(|table| table.devices.clear()), vec![Code::InvalidTable]),
            (
                with(|table| {
                    table.devices[0].num_regions = 7;
                    table.devices[0].num_irqs = 7;
                    table.memory.clear();
                    table.blobs[0].version = 3;
                }),
                vec![Code::RegionCount, Code::InterruptCount, Code::MemoryLayout, Code::BlobVersion],
            ),
        ];
        for (theirs, expected) in cases {
            assert_eq!(codes(&theirs), expected, "{theirs:?}");
        }
    }

    #[test]
    fn a_mismatch_names_the_device_of_this_side() {
        let mut theirs = table();
        theirs.devices[0].num_irqs = 7;
        let found = findings(&answer(&theirs, &table(), Duration::ZERO), &theirs);
        assert_eq!(found[0].device.as_deref(), Some("nic0"));
        assert!(found[0].text.contains("number of interrupt indexes is 7, expected 5"), "{found:?}");
    }

    #[test]
    fn the_longest_answer_fits_its_frame_and_says_how_much_it_leaves_out() {
        let name = "\u{1d11e}\"".repeat(100);
        let ours = DeviceIdentity { name: name.clone(), model: Some("\"".repeat(64)), ..device() };
        let theirs = DeviceIdentity { name, num_regions: 1, num_irqs: 1, flags: 4, ..device() };
        let table = |device: DeviceIdentity| Table { devices: vec![device; 256], ..Table::default() };
        let checked = answer(&table(theirs), &table(ours), Duration::MAX);
        assert_eq!((checked.mismatches.len(), checked.more), (MAX_MISMATCHES, 256 * 4 - 32));
        let message = Message::from(Control::Checked(checked));
        let (payload, _) = message.payload();
        assert!(payload.len() <= MAX_CONTROL as usize, "{}", payload.len());
        Message::parse(Kind::Checked, &payload).unwrap();
    }

    #[test]
    fn a_code_of_a_later_release_is_a_refusal_that_names_it() {
        let mismatch = Mismatch { code: "colour".into(), device: Some(9), text: "it is blue".into() };
        let checked = Checked { mismatches: vec![mismatch], more: 1, setup_us: 0 };
        let found = findings(&checked, &table());
        assert_eq!(found[0].code, Code::DestinationRefused);
        assert!(found[0].text.contains("it is blue (colour)") && found[0].device.is_none());
        assert!(found[1].text.contains("1 more"));
    }

    #[test]
    fn the_reason_of_a_refusal_becomes_a_code() {
        let lacks = Refusal::MissingFeature { feature: CHECK.into() };
        let needs = Refusal::MissingFeature { feature: "blobs".into() };
        let version = Refusal::NoCommonVersion { theirs: vec![2] };
        let cases = [
            (lacks.to_string(), Code::CheckUnsupported),
            (needs.to_string(), Code::FeatureMissing),
            (version.to_string(), Code::NoCommonVersion),
            (format!("{BUSY}a migration from another sender is in progress"), Code::DestinationBusy),
            ("the disk is full".to_string(), Code::DestinationRefused),
        ];
        for (reason, code) in cases {
            assert_eq!(of_failed(&reason).code, code, "{reason}");
        }
    }
}
