//! The header as Rust against real headers and a C compiler, and requests in readable form.

mod decode;
mod layout;
