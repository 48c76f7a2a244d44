//! Stands between an unmodified VFIO program and its devices.
//!
//! [`run`] starts a program on devices of this process. [`trace`] shows the requests that a program makes, on any devices.

mod executable;
mod kcmp;
mod proc;
pub mod run;
mod seccomp;
mod signals;
pub mod trace;

/// The README's example, compiled as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
