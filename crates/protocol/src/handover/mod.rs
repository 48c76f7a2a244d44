//! The handover: the rules that decide which host may run the devices of a migration, all of them or none.
//!
//! A device never runs on both hosts, whatever fails and whenever it fails. This has one consequence that no protocol
//! can avoid: if the link breaks after the source has sent HANDOVER and before the outcome arrives, the source cannot
//! know whether the devices run at the destination. The source then keeps them stopped and reports
//! [`SourcePhase::Unknown`]; an [`Arbiter`] decides. A source on the same machine can see the destination's process
//! die, and its devices with it: it calls [`Source::destination_died`] and owns the devices again.
//!
//! The destination says READY, RUNNING and FAILED of the whole set. It sends FAILED only if no device runs: it resets
//! each one first ([`DestinationAction::Discard`]), reports whether that device is certain to be stopped
//! ([`Destination::discarded`]), and is told to send FAILED once all are. While one is uncertain, the destination sends
//! nothing, because FAILED lets the source run the devices.
//!
//! # Crashes
//!
//! Devices that outlive the process that migrates them (served ones, or file descriptors that another process holds)
//! need a journal on each side, of [`Record`]s that are synced at these times:
//!
//! | side | entry | synced |
//! |---|---|---|
//! | source | [`Entry::MayBeHandedOver`] | before the first device is stopped |
//! | destination | [`Entry::MayStart`] | before READY is sent, best before the source stops its devices; but not before every device has entered RESUMING |
//! | destination | [`Entry::Discarding`] | if [`Entry::MayStart`] was: before the first device is reset |
//! | either | [`Source::outcome`], [`Destination::outcome`] | some time after |
//!
//! No sync lies between the stop at the source and the start at the destination. A side that crashed continues with
//! [`Source::restart`] or [`Destination::restart`], by its journal and by the states in which its devices are found:
//!
//! | side | found | proves |
//! |---|---|---|
//! | source | a device that runs | the devices were not handed over, or have come back |
//! | destination | a device in RESUMING or ERROR | it was not started: READY was not sent, or its start failed |
//! | destination | a device that runs, and no [`Entry::Discarding`] | HANDOVER has arrived |
//! | destination | every device in STOP | every device has all of its state; READY may have been sent |
//!
//! A crash between an action and its entry costs at most a question to the arbiter, and never two running devices, nor one
//! that is started with a part of its state.
//!
//! The engine defines the contents of the messages and their transport.

mod arbiter;
mod destination;
mod history;
mod journal;
mod message;
mod source;

pub use arbiter::{Arbiter, JournalArbiter, NotWaiting, Ruling, Side};
pub use destination::{Destination, DestinationAction, DestinationPhase};
pub use history::History;
pub use journal::{DeviceRecord, Entry, Fact, Record, RecordError, read_journal};
pub use message::{Message, Unexpected};
pub use source::{Source, SourceAction, SourcePhase};
