//! What QEMU 7.2 asks of a migration region, beside the record of it that the tests of the region go by
//! (`crates/protocol/tests/protocol/region_v1/qemu.rs`).

use serde_json::Value;

use self::qemu_record::{once, recorded};
use super::traces::{Side, migrated};
use super::work::Work;
use super::{Way, has_v1};

#[path = "../../../../../../protocol/tests/protocol/region_v1/qemu_record.rs"]
mod qemu_record;

/// Offset of the data section of a device that has it right after the registers.
const DATA: u64 = 32;

/// The first region after those of every PCI device.
const FIRST_OF_ITS_OWN: u64 = 9;

fn is_of_migration_region(call: &Value) -> bool {
    call["region"]["index"].as_u64().is_some_and(|index| index >= FIRST_OF_ITS_OWN)
}

/// Whether a call is an access to the data section of a migration region.
pub(super) fn is_data_of_region(call: &Value) -> bool {
    is_of_migration_region(call) && call["call"] != "mmap" && offset(call) >= DATA
}

fn offset(call: &Value) -> u64 {
    call["region"]["offset"].as_u64().unwrap()
}

/// The accesses of a side, each as a word of the record.
fn accesses(side: &Side) -> Vec<String> {
    let word = |call: &Value| {
        let writes = call["call"] == "pwrite64";
        let name = match offset(call) {
            0 => "state",
            8 => "pending",
            16 => "offset",
            24 => "size",
            at => {
                assert!(at >= DATA, "{call}");
                "data"
            }
        };
        match (writes, name) {
            (false, _) => name.to_owned(),
            (true, "state") => {
                let bytes = call["data_hex"].as_str().unwrap();
                format!("state={}", u32::from_str_radix(bytes, 16).unwrap().swap_bytes())
            }
            (true, _) => format!("{name}="),
        }
    };
    side.calls
        .iter()
        .filter(|call| is_of_migration_region(call))
        .filter(|call| call["call"] != "mmap")
        .map(word)
        .collect()
}

#[test]
#[ignore = "long"]
fn qemu_of_2022_asks_what_the_tests_of_the_migration_region_ask() {
    if !has_v1() {
        return;
    }
    for (pre_copy, source, destination) in [(false, "save", "load"), (true, "save in pre-copy", "load")] {
        let work = Work::new(Way::System, &["legacy?state=64KiB&section=4KiB"]).idle();
        let Some(traced) = migrated(&work, pre_copy) else { return };
        assert_eq!(once(accesses(&traced.source)), recorded(source));
        assert_eq!(once(accesses(&traced.destination)), recorded(destination));
    }
}
