//! The migration state machine: the next arc on the way from one state to another.
//!
//! The answers equal the kernel's `vfio_mig_get_next_state()` (`drivers/vfio/vfio_main.c`) for every set of flags and
//! every pair of states. [`crate::session`] tells how an arc affects the data fd.

use crate::{MigrationFlags, State};

/// The reason a transition is refused. The kernel answers EINVAL in each case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// No request leads out of the current state, or a device with these flags cannot be in it.
    #[error("no arc leaves {0} on a device with these migration flags")]
    Current(State),
    /// The device does not support the requested state, or the state is ERROR, which cannot be requested.
    #[error("{0} cannot be requested from a device with these migration flags")]
    Requested(State),
    /// Both states exist, but no path leads from one to the other.
    #[error("no path leads from {from} to {to}: the data session would have to end and start over")]
    NoPath {
        /// The state the device is in.
        from: State,
        /// The requested state.
        to: State,
    },
}

/// The next step on a device that supports every optional state; `None` is a refusal.
const FULL: [[Option<State>; 8]; 8] = {
    const E: Option<State> = None;
    const ST: Option<State> = Some(State::Stop);
    const RU: Option<State> = Some(State::Running);
    const SC: Option<State> = Some(State::StopCopy);
    const RE: Option<State> = Some(State::Resuming);
    const RP: Option<State> = Some(State::RunningP2p);
    const PC: Option<State> = Some(State::PreCopy);
    const PP: Option<State> = Some(State::PreCopyP2p);
    [
        // to:  ERROR STOP RUNNING STOP_COPY RESUMING RUNNING_P2P PRE_COPY PRE_COPY_P2P
        /* ERROR        */
        [E, E, E, E, E, E, E, E],
        /* STOP         */ [E, ST, RP, SC, RE, RP, RP, RP],
        /* RUNNING      */ [E, RP, RU, RP, RP, RP, PC, RP],
        /* STOP_COPY    */ [E, ST, ST, SC, ST, ST, E, E],
        /* RESUMING     */ [E, ST, ST, ST, RE, ST, ST, ST],
        /* RUNNING_P2P  */ [E, ST, RU, ST, ST, RP, RU, PP],
        /* PRE_COPY     */ [E, RU, RU, PP, RU, RU, PC, PP],
        /* PRE_COPY_P2P */ [E, RP, RP, SC, RP, RP, PC, PP],
    ]
};

/// [`FULL`] with the unsupported states skipped, for each of the eight sets of flags. Flat, and indexed by
/// multiplication as a C compiler would: measured, that is a third faster than nested arrays (the benchmark `next`).
static NEXT: [Option<State>; 512] = {
    let mut table = [None; 512];
    let mut at = 0;
    while at < table.len() {
        table[at] = skip_unsupported((at >> 6) as u64, State::ALL[at >> 3 & 7], State::ALL[at & 7]);
        at += 1;
    }
    table
};

const fn skip_unsupported(flags: u64, from: State, to: State) -> Option<State> {
    let flags = MigrationFlags::from_bits_retain(flags);
    if !supports(flags, from) || !supports(flags, to) {
        return None;
    }
    let mut at = from;
    loop {
        match FULL[at as usize][to as usize] {
            Some(step) if !supports(flags, step) => at = step,
            step => return step,
        }
    }
}

/// Returns whether this state can be requested from a device with these flags.
///
/// STOP, RUNNING, STOP_COPY and RESUMING need STOP_COPY; RUNNING_P2P needs P2P as well, PRE_COPY needs PRE_COPY, and
/// PRE_COPY_P2P all three. ERROR is never supported in this sense, and without STOP_COPY no state is.
pub const fn supports(flags: MigrationFlags, state: State) -> bool {
    let needed = match state {
        State::Error => return false,
        State::Stop | State::Running | State::StopCopy | State::Resuming => MigrationFlags::STOP_COPY,
        State::RunningP2p => MigrationFlags::STOP_COPY.union(MigrationFlags::P2P),
        State::PreCopy => MigrationFlags::STOP_COPY.union(MigrationFlags::PRE_COPY),
        State::PreCopyP2p => {
            MigrationFlags::STOP_COPY.union(MigrationFlags::P2P).union(MigrationFlags::PRE_COPY)
        }
    };
    flags.contains(needed)
}

/// Returns the next step of a device with `flags` on its way from `from` to `to`, or `None` if the kernel refuses the
/// request with EINVAL ([`refusal`] gives the reason).
///
/// From a state to itself the step is that state. Flags that the header does not define are ignored.
#[inline]
pub fn next(flags: MigrationFlags, from: State, to: State) -> Option<State> {
    NEXT[((flags.bits() & 7) as usize * 8 + from as usize) * 8 + to as usize]
}

/// Returns the reason [`next`] gives no step, in the kernel's order of checks; `None` if it gives one.
pub fn refusal(flags: MigrationFlags, from: State, to: State) -> Option<Refused> {
    if next(flags, from, to).is_some() {
        None
    } else if !supports(flags, from) {
        Some(Refused::Current(from))
    } else if !supports(flags, to) {
        Some(Refused::Requested(to))
    } else {
        Some(Refused::NoPath { from, to })
    }
}

/// Returns every step from `from` (excluded) to `to` (included): the arcs a driver executes for one request.
///
/// The path from a state to itself is empty: drivers do nothing then.
pub fn path(flags: MigrationFlags, from: State, to: State) -> Result<Path, Refused> {
    match refusal(flags, from, to) {
        Some(refused) => Err(refused),
        None => Ok(Path { flags, at: from, to }),
    }
}

/// The steps of one transition, in order. Returned by [`path`].
#[derive(Clone, Debug)]
pub struct Path {
    flags: MigrationFlags,
    at: State,
    to: State,
}

impl Iterator for Path {
    type Item = State;

    fn next(&mut self) -> Option<State> {
        if self.at == self.to {
            return None;
        }
        self.at = next(self.flags, self.at, self.to)?;
        Some(self.at)
    }
}
