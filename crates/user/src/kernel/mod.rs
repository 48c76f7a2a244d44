//! Devices of the kernel.
