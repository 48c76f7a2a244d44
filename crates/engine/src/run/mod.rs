//! The hands with threads: they do what the machines of [`proto`](crate::proto) say, on real devices, memory and channels.
//!
//! [`Source`] and [`Destination`] are how a program migrates. Each device has a thread, and so have the stream, the owner's
//! program, and the receiver; [`Cancel`] and a driver that does not return thereby keep nothing else from going on.

mod ask;
mod buffers;
mod cancel;
mod destination;
mod device;
mod hands;
mod journal;
mod owner;
mod receiver;
mod source;
mod stream;
mod transfer;
mod worker;

pub use cancel::Cancel;
pub use destination::{Arrived, Destination, Received};
pub use journal::Journal;
pub use source::{Sent, Source};
