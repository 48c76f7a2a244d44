//! The memory a device can reach: mappings of IO virtual addresses, and the log of what was written through them.
//!
//! A device reaches only what is mapped, with the rights the mapping gives. Everything else is a [`DmaFault`].

mod bounce;
mod fault;
mod mapping;
mod space;

pub use self::fault::{Access, DmaFault, FaultCause};
pub use self::mapping::MappedRange;
pub(crate) use self::mapping::MappingLog;
pub use self::space::DmaSpace;
