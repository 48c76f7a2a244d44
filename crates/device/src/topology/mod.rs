//! The topology of devices and the rules for opening them: groups, cdevs, hot reset sets, VF tokens.

pub(crate) mod cdev;
pub(crate) mod group;
pub(crate) mod hot_reset;
pub(crate) mod opens;
pub(crate) mod set;
pub(crate) mod vf_token;
