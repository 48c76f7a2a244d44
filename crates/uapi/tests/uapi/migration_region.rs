//! The states and layouts of the migration region, v1 and the draft before it.

use std::mem::offset_of;

use whimbrel_uapi::region_draft::{DeviceMigrationInfo as Draft, StateDraft};
use whimbrel_uapi::region_v1::{DeviceMigrationInfo as V1, StateV1};

#[test]
fn a_state_is_valid_unless_resuming_has_company() {
    for bits in 0..8 {
        let state = StateV1::from_bits_retain(bits);
        assert_eq!(state.is_valid(), bits <= 4, "{bits:03b}");
    }
}

#[test]
fn reserved_bits_neither_spoil_a_state_nor_get_lost() {
    let reserved = 0xffff_fff8;
    assert!(StateV1::from_bits_retain(reserved | 4).is_valid());
    assert!(StateV1::from_bits_retain(reserved | 6).is_error());
    assert_eq!(StateV1::from_bits_retain(reserved | 1).with_error().bits(), reserved | 6);
}

#[test]
fn the_structure_is_that_of_v1_with_four_fields_more() {
    assert_eq!(size_of::<Draft>(), 64);
    assert_eq!(offset_of!(Draft, data_size), offset_of!(V1, data_size));
    assert_eq!(offset_of!(Draft, start_pfn), size_of::<V1>());
    assert_eq!(offset_of!(Draft, page_size), 40);
    assert_eq!(offset_of!(Draft, total_pfns), 48);
    assert_eq!(offset_of!(Draft, copied_pfns), 56);
}

#[test]
fn only_saving_with_resuming_is_invalid() {
    for bits in 0..16 {
        assert_eq!(StateDraft::from_bits_retain(bits).is_valid(), bits & 6 != 6, "{bits:04b}");
    }
}
