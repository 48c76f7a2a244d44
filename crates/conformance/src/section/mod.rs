//! The sections of the suite, one file each. A case's id begins with its section's.

mod arcs;
mod concurrent;
mod data_fd;
mod data_size;
mod dma_logging;
mod dma_writes;
mod feature;
mod p2p;
mod precopy;
mod precopy_changes;
mod precopy_info;
mod region;
mod regions;
mod reset;
mod resuming;
mod robust;
mod round_trip;
mod session;
mod state;
mod stop;
mod stop_copy;
mod stream;

use crate::case::Case;

/// The cases of all sections.
pub(crate) const ALL: &[&[Case]] = &[
    feature::CASES,
    state::CASES,
    arcs::CASES,
    p2p::CASES,
    session::CASES,
    stop::CASES,
    stop_copy::CASES,
    precopy::CASES,
    precopy_info::CASES,
    precopy_changes::CASES,
    data_size::CASES,
    data_fd::CASES,
    concurrent::CASES,
    resuming::CASES,
    round_trip::CASES,
    robust::CASES,
    stream::CASES,
    reset::CASES,
    dma_logging::CASES,
    dma_writes::CASES,
    regions::CASES,
    region::CASES,
];
