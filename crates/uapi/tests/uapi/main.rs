//! The header as Rust against real headers and a C compiler, requests in readable form, and what the types compute.

mod decode;
mod errno;
mod feature;
mod ioctl;
mod layout;
mod migration_region;
mod table;
mod unions;
