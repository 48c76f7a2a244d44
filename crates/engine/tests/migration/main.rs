//! Migrations between two devices in this process: what moves, who runs the device afterwards, and what each side says
//! when links are cut, data is damaged, peers are hostile and devices fail.

// In tests a panic is how a failure is told, helpers included.
#![allow(clippy::unwrap_used)]

mod address_space;
mod cancel;
#[path = "../certificates/mod.rs"]
#[allow(dead_code, reason = "the tests of TLS itself use more of it")]
mod certificates;
mod checks;
mod compression;
mod cuts;
mod damage;
#[path = "../decoder/mod.rs"]
mod decoder;
mod device_faults;
mod door;
mod flags;
mod format;
#[path = "support/forward.rs"]
mod forward;
mod guest_reset;
mod hostile_destination;
mod hostile_source;
mod kinds;
mod lanes;
mod lanes_hostile;
mod lanes_lost;
mod later;
mod layout;
mod live;
mod machines;
mod machines_destination;
mod machines_resume;
mod owner;
#[path = "../phases/mod.rs"]
#[allow(dead_code, reason = "the simulation uses more of it")]
mod phases;
mod policy;
mod reconnect;
mod regions;
mod resolve;
mod sets;
mod setups;
mod sparse;
mod support;
mod time;
