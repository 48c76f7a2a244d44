//! Request numbers and their names.

use whimbrel_uapi::ioctl::{ALL, IOMMU_DESTROY, VFIO_GET_API_VERSION, VFIO_MIG_GET_PRECOPY_INFO};

#[test]
fn a_number_holds_the_type_character_and_the_ordinal() {
    assert_eq!(VFIO_GET_API_VERSION.number(), 0x3b64);
    assert_eq!(IOMMU_DESTROY.number(), 0x3b80);
}

#[test]
fn a_request_is_shown_by_its_header_name() {
    assert_eq!(VFIO_MIG_GET_PRECOPY_INFO.to_string(), "VFIO_MIG_GET_PRECOPY_INFO");
}

#[test]
fn no_two_requests_have_one_name() {
    for (i, request) in ALL.iter().enumerate() {
        assert!(ALL[..i].iter().all(|other| other.name() != request.name()), "{request} is there twice");
    }
}
