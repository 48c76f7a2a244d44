//! DMA: mappings of IO virtual addresses to memory, and the dirty logs of the writes through them.
//!
//! A device can access only mapped memory, with the rights of the mapping. Any other access is a [`DmaFault`].

mod access;
mod bounce;
mod fault;
mod file_transfer;
mod mapping;
mod space;

pub use self::access::DmaAccess;
pub use self::fault::{Access, DmaFault, FaultCause};
pub use self::mapping::MappedRange;
pub(crate) use self::mapping::MappingLog;
pub use self::space::DmaSpace;
