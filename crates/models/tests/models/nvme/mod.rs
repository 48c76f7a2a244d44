//! The NVM Express controller as a host and as a user of the device see it.

mod admin;
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
mod stream;
