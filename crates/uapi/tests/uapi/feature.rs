//! Features, their indices and flags.

use whimbrel_uapi::feature::{FEATURE_MASK, Feature, FeatureFlags};

#[test]
fn every_feature_stands_in_the_table_at_its_own_index() {
    for (i, feature) in Feature::ALL.into_iter().enumerate() {
        assert_eq!(usize::from(feature.number()), i, "{feature}");
        assert_eq!(Feature::try_from(feature.number()), Ok(feature));
    }
}

#[test]
fn an_index_without_a_feature_is_refused_and_named() {
    let refused = Feature::try_from(14).expect_err("14 is free");
    assert_eq!(refused.0, 14);
    assert_eq!(refused.to_string(), "no feature of a VFIO device has index 14");
    assert_eq!(Feature::try_from(u16::MAX).map_err(|refused| refused.0), Err(u16::MAX));
}

#[test]
fn the_flags_and_the_index_share_no_bit() {
    assert_eq!(FeatureFlags::all().bits() & FEATURE_MASK, 0);
}
