//! Migrations between two devices in this process: what moves, who runs the device afterwards, and what each side says
//! when links are cut, data is damaged, peers are hostile and devices fail.

// In tests a panic is how a failure is told, helpers included.
#![allow(clippy::unwrap_used)]

mod cuts;
mod damage;
mod device_faults;
mod door;
mod files;
mod flags;
mod format;
mod hostile_destination;
mod hostile_source;
mod live;
mod regions;
mod support;
