//! Any device of migration v2 can be offered through a v1 region or a draft region.
//!
//! What each access means is the rules' and is tested with them. Here the region is a part of a device file:
//! raw reads, writes and mappings of it, real drivers behind it, resets and closes around it.

mod accesses;
mod dirty;
mod everything;
mod failures;
mod lifetime;
mod save_load;
pub(crate) mod support;
