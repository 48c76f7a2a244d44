//! Stands between an unmodified VFIO program and its devices.
//!
//! [`trace`] shows the requests that a program makes, on any devices.

pub mod trace;

/// The README's example, compiled as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
