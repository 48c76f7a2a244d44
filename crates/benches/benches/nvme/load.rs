//! The loads that all ways get.

/// Accesses of one kind, so many of which are always in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    pub(crate) is_write: bool,
    pub(crate) is_random: bool,
    pub(crate) bytes: u64,
    pub(crate) depth: usize,
}

const fn random(name: &'static str, is_write: bool, depth: usize) -> Load {
    Load { name, is_write, is_random: true, bytes: 4 << 10, depth }
}

const fn sequential(name: &'static str, is_write: bool) -> Load {
    Load { name, is_write, is_random: false, bytes: 128 << 10, depth: 32 }
}

pub(crate) const LOADS: [Load; 6] = [
    random("random reads of 4 KiB, depth 1", false, 1),
    random("random reads of 4 KiB, depth 32", false, 32),
    random("random writes of 4 KiB, depth 1", true, 1),
    random("random writes of 4 KiB, depth 32", true, 32),
    sequential("sequential reads of 128 KiB, depth 32", false),
    sequential("sequential writes of 128 KiB, depth 32", true),
];
