//! The VFIO user API as Rust types: all of `include/uapi/linux/vfio.h`, `vfio_ccw.h` and `vfio_zdev.h`, and
//! the part of `iommufd.h` that VFIO needs. It has every structure, constant and ioctl number of Linux v6.14
//! and of later headers, up to 7.3.
//!
//! This crate has no protocol rules: the crates above decide which request is allowed when, and how it is
//! answered. It has no I/O and no unsafe code either. A structure is plain bytes: [`zerocopy`] turns it into
//! bytes and back without a copy and without a cast. [`decode`] shows a request in one readable line.
//!
//! # Names
//!
//! A structure drops the header's `vfio_` (or `iommu_`) and is written in Rust's case: `vfio_device_info` is
//! [`device::DeviceInfo`]. Fields keep their names. Flag bits are [`bitflags`] types beside the structure
//! that carries them, while the field itself stays a plain integer: a peer may set bits this crate does not
//! know, and reading must keep them. Other constants keep the header's full name.
//!
//! # Differences from the C structures
//!
//! - A flexible array at the end (`data[]`, `areas[]`) is not a field; its bytes follow the structure.
//! - A pointer is a `u64` holding an address in the memory of the process that makes the call.
//! - A file descriptor is an `i32` in the table of that process; this crate neither owns nor closes it.
//! - Where the header leaves a hole between two fields, the hole is a public `__pad` field, so that no byte
//!   of a structure is ever uninitialised. Their docs say so.
//!
//! The test `layout` compiles every size, offset and constant against a real header and compares.
//!
//! ```
//! use whimbrel_uapi::device::{DeviceInfo, DeviceInfoFlags};
//! use zerocopy::{FromBytes, IntoBytes};
//!
//! let asked = DeviceInfo { argsz: size_of::<DeviceInfo>() as u32, ..DeviceInfo::default() };
//! let bytes = asked.as_bytes();
//! assert_eq!(bytes.len(), 24);
//!
//! let answer = DeviceInfo { flags: 0x82, ..asked };
//! let read = DeviceInfo::read_from_bytes(answer.as_bytes()).expect("24 bytes");
//! let flags = DeviceInfoFlags::from_bits_retain(read.flags);
//! assert!(flags.contains(DeviceInfoFlags::PCI | DeviceInfoFlags::CAPS));
//! ```

#![no_std]
#![forbid(unsafe_code)]
// The header's own names for reserved fields (`__reserved`, `__pad`) are part of the layout and must be
// writable.
#![allow(clippy::pub_underscore_fields)]
// A structure is exactly the header's bytes.
#![allow(clippy::exhaustive_structs)]

// On a 32-bit machine the header's plain `__u64` may be aligned to four bytes and holes close; the structures
// here spell out the holes of the 64-bit layout.
#[cfg(not(target_pointer_width = "64"))]
compile_error!("whimbrel-uapi describes the 64-bit layout of the VFIO structures");

#[cfg(feature = "std")]
extern crate std;

pub mod cdev;
pub mod decode;
pub mod device;
pub mod dma_logging;
mod errno;
pub mod feature;
pub mod gfx;
pub mod group;
pub mod ioctl;
pub mod iommufd;
pub mod migration;
mod numbered;
pub mod other_buses;
pub mod pci;
pub mod region_draft;
pub mod region_v1;
pub mod spapr;
pub mod table;
pub mod type1;

pub use errno::{Errno, UnknownErrno};

/// The README's example, run as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
