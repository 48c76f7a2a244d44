//! Latency and throughput of a vfio-user server, one message a system call on the client's side: 4-byte accesses, posted
//! writes, a report of dirty pages and a device's state, of servers run as `whimbrel serve` runs them.
//!
//! All that is compared takes turns within one run: our server, the bare socket, and libvfio-user if there is a server
//! with it (README.md). Clients are the same code for all, and each server is a process of its own, which is this
//! program again. Run it on one core (`taskset -c 0`): waking a process on another takes longer than all that is
//! measured.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to tell")]

mod devices;
mod loading;
#[path = "../logged/mod.rs"]
mod logged;
mod peer;
mod registers;
mod report;
mod rounds;
mod state;
mod wire;

fn main() {
    if peer::run_if_peer() {
        return;
    }
    // Without a name: everything.
    let named = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let is_wanted = |name: &str| named.as_deref().is_none_or(|named| name.contains(named));
    let parts: [(&str, fn()); 5] = [
        ("registers", registers::round_trips),
        ("posted", registers::posted_writes),
        ("report", report::run),
        ("state", state::run),
        ("loading", loading::run),
    ];
    parts.iter().filter(|(name, _)| is_wanted(name)).for_each(|(_, run)| run());
}
