//! The contents of a file, checked piece by piece: their order and totals.

use std::collections::BTreeSet;
use std::io::Read;

use super::reader::Reader;
use crate::error::Error;
use crate::proto::control::{Control, Reason, Table};
use crate::proto::intake::{Intake, Misplaced};
use crate::proto::message::Message;
use crate::proto::negotiate::{Feature, Offer, choose};
use crate::proto::table;

/// A piece of a file.
#[derive(Debug)]
pub(crate) enum Piece<'a> {
    /// The next bytes of a device's state.
    State {
        device: usize,
        /// `Some(true)` if they end a transaction; `None` if the device's state has no transactions.
        ends: Option<bool>,
        data: &'a [u8],
    },
    /// The configuration of a device.
    Setup { device: usize, data: &'a [u8] },
    /// The next bytes of a blob.
    Blob { name: &'a str, version: u32, data: &'a [u8] },
    /// A round has ended. Only a part of another stream has rounds.
    Round { number: u32, initial: bool },
    /// The state of a device is complete.
    DeviceEnd,
    /// Nothing follows.
    End,
}

/// A file whose head has been read.
#[derive(Debug)]
pub(crate) struct SavedFile {
    /// The features that it requires of a reader.
    pub(crate) offer: Offer,
    /// The table of its contents.
    pub(crate) table: Table,
    features: BTreeSet<Feature>,
    intake: Intake,
    /// The number of the last round.
    round: u32,
}

impl SavedFile {
    /// Reads the head. A file that requires a feature outside of `ours` is refused.
    pub(crate) fn open(reader: &mut Reader<impl Read>, ours: &BTreeSet<Feature>) -> Result<SavedFile, Error> {
        reader.preamble()?;
        let offer = match reader.next_message()? {
            Message::Control(Control::Hello(offer)) => offer,
            other => return Err(misplaced(&other)),
        };
        let features = choose(&offer, ours)?;
        let table = match reader.next_message()? {
            Message::Control(Control::Table(table)) => table,
            other => return Err(misplaced(&other)),
        };
        table::check(&table)?;
        if !table.memory.is_empty() {
            return Err(Error::Contents("its table lists memory".into()));
        }
        let mut intake = Intake::new();
        intake.open(&table, &features);
        Ok(SavedFile { offer, table, features, intake, round: 0 })
    }

    /// Reads the next piece.
    pub(crate) fn next<'a>(&mut self, reader: &'a mut Reader<impl Read>) -> Result<Piece<'a>, Error> {
        let message = reader.next_message()?;
        let needed = match message {
            Message::Setup { .. } => Some(Feature::Setup),
            Message::Blob { .. } => Some(Feature::Blobs),
            _ => None,
        };
        if let Some(feature) = needed.filter(|feature| !self.features.contains(feature)) {
            return Err(Error::Contents(format!(
                "a {} frame without the feature '{feature}'",
                message.kind()
            )));
        }
        let piece = match message {
            Message::DeviceState { device, ends, data } => {
                let ends = self.intake.state(device, data.len(), ends).map_err(contents)?;
                Piece::State { device: device as usize, ends, data }
            }
            Message::Setup { device, data } => {
                self.intake.setup(device).map_err(contents)?;
                Piece::Setup { device: device as usize, data }
            }
            Message::Blob { name, version, last, data } => {
                self.intake.blob(name, version, last, data.len()).map_err(contents)?;
                Piece::Blob { name, version, data }
            }
            Message::Control(ref control @ Control::Round { number, initial })
                if Some(number) == self.round.checked_add(1) =>
            {
                self.intake.control(control).map_err(contents)?;
                self.round = number;
                Piece::Round { number, initial }
            }
            Message::Control(ref control @ Control::DeviceEnd { .. }) => {
                self.intake.control(control).map_err(contents)?;
                Piece::DeviceEnd
            }
            Message::Control(ref control @ Control::End { .. }) => {
                self.intake.control(control).map_err(contents)?;
                Piece::End
            }
            other => return Err(misplaced(&other)),
        };
        Ok(piece)
    }

    /// Returns the bytes, the transactions and the longest transaction of each device's state so far.
    pub(crate) fn states(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.intake.states()
    }
}

fn contents(misplaced: Misplaced) -> Error {
    Error::Contents(misplaced.to_string())
}

fn misplaced(message: &Message<'_>) -> Error {
    Error::Contents(match message {
        Message::Control(Control::Failed(Reason { reason }) | Control::Abort(Reason { reason })) => {
            format!("unexpected {} frame: {reason}", message.kind())
        }
        _ => format!("unexpected {} frame", message.kind()),
    })
}
