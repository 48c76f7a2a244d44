//! Where the names of the engine are.

pub(crate) use whimbrel_engine::channel::Stream;
pub(crate) use whimbrel_engine::proto::destination::DestinationOptions;
pub(crate) use whimbrel_engine::proto::negotiate::Feature;
pub(crate) use whimbrel_engine::proto::source::SourceOptions;
pub(crate) use whimbrel_engine::{Cancel, Destination, Journal, Received, Source};
pub(crate) use whimbrel_engine::{Error, Outcome, Report, SendError};
