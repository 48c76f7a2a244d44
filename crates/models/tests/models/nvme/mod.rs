//! The NVM Express controller as a host and as a user of the device see it.

mod admin;
mod device;
mod direct;
mod events;
mod host;
mod hostile;
mod interrupts;
mod io;
mod migration;
mod moving;
mod owner;
mod queues;
mod reset;
mod reset_rule;
mod stream;
