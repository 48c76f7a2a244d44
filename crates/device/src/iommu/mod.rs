//! IOMMUs between devices and the user's memory: the container with type1, and iommufd.

pub(crate) mod container;
pub(crate) mod iommufd;
pub(crate) mod type1;
pub(crate) mod user_memory;
