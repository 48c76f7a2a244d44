//! The hands, with threads: they execute the commands of the machines in [`proto`](crate::proto), on real devices,
//! memory and channels.
//!
//! A program migrates with [`Source`] and [`Destination`]. Each device has a thread, and so have the stream, the
//! owner's program and the receiver, so that neither [`Cancel`] nor a driver that does not return blocks the others.

mod answers;
mod arrived;
mod ask;
mod buffers;
mod cancel;
mod carried;
mod check;
mod compressors;
mod copies;
mod destination;
mod device;
mod door;
mod hands;
mod inbox;
mod inflow;
mod inquiry;
mod joining;
mod journal;
mod lanes;
mod line;
mod owner;
mod pace;
mod read_ahead;
mod receiver;
mod replace;
mod resolve;
mod source;
mod stream;
mod tally;
mod thread;
mod transfer;
mod worker;

pub use arrived::{Arrived, Received, Unidentified};
pub use cancel::Cancel;
pub use check::Checked;
pub use destination::Destination;
pub use journal::{Journal, JournalLock};
pub use resolve::{Resolve, Resolved};
pub use source::{Sent, Source};
