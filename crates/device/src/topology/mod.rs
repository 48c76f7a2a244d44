//! The places of devices, and the rules for opening them: groups, their own files, sets that are reset together, VF tokens.

pub(crate) mod cdev;
pub(crate) mod group;
pub(crate) mod hot_reset;
pub(crate) mod opens;
pub(crate) mod set;
pub(crate) mod vf_token;
