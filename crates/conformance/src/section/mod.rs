//! The sections of the suite, one file each. A case's id begins with its section's.

mod arcs;
mod p2p;
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
    state::CASES,
    arcs::CASES,
    p2p::CASES,
    session::CASES,
    stop::CASES,
    stop_copy::CASES,
    resuming::CASES,
    round_trip::CASES,
    robust::CASES,
    stream::CASES,
];
