//! The decision who is to have the devices: the operator's, that of the other side's journal, and what contradicts the proof.

use std::convert::Infallible;
use std::path::Path;

use whimbrel_engine::{Evidence, Judgement};
use whimbrel_protocol::handover::{Arbiter, Entry, History, JournalArbiter, Ruling, Side};

use super::{Arguments, Report};
use crate::failure::Failure;

/// Returns the side that has the devices by this entry, if it says so.
pub(super) fn owner_by(entry: Entry) -> Option<Side> {
    match entry {
        Entry::Returned | Entry::Discarding | Entry::Discarded => Some(Side::Source),
        Entry::Gone | Entry::Started => Some(Side::Destination),
        Entry::MayBeHandedOver | Entry::MayStart => None,
    }
}

/// Returns the side that the operator gives the devices to.
pub(super) fn decision(arguments: &Arguments, side: Side) -> Option<Side> {
    match (arguments.run_here, arguments.run_there) {
        (true, _) => Some(side),
        (_, true) => Some(side.other()),
        _ => None,
    }
}

/// The word for a decision, as it was given.
pub(super) fn option_of(decision: Side, side: Side) -> &'static str {
    if decision == side { "--run-here" } else { "--run-there" }
}

/// Refuses what contradicts the proof, or the other side's journal.
pub(super) fn check(
    judgement: &Judgement,
    decision: Option<Side>,
    peer: Option<&History>,
    report: &Report,
    path: &Path,
) -> Result<(), Failure> {
    let side = judgement.side;
    let refuse = |text: String, hint: String| Err(Failure::new(text).hint(hint).result(report));
    let unchanged = "nothing was changed".to_string();
    if judgement.evidence == Evidence::Contradictory {
        return refuse(
            format!("{judgement}: {}", path.display()),
            "check both hosts with `whimbrel state TARGET`, let the devices run on one of them, and use a new journal"
                .into(),
        );
    }
    if matches!(judgement.evidence, Evidence::OtherDevices { .. }) {
        return refuse(
            format!("{judgement}: {}", path.display()),
            "name the devices of the migration".into(),
        );
    }
    let by_peer = peer.and_then(|peer| peer.entries.iter().rev().find_map(|entry| owner_by(*entry)));
    if let (Some(owner), Some(by_peer)) = (judgement.owner, by_peer)
        && owner != by_peer
    {
        return refuse(
            format!(
                "{judgement}; but the other side's journal says that they belong to the {}",
                by_peer.name()
            ),
            format!("{unchanged}: check on both hosts which devices run, with `whimbrel state TARGET`"),
        );
    }
    if matches!(judgement.evidence, Evidence::OtherHolder { .. })
        && by_peer == Some(side)
        && decision.is_none()
    {
        return refuse(
            format!("{judgement}; the other side's journal says that the devices belong to this side"),
            format!(
                "{unchanged}: check whether the device has its state; give --run-here to take it as it is. The other side \
                 may still have the state"
            ),
        );
    }
    let Some(decision) = decision else { return Ok(()) };
    let option = option_of(decision, side);
    if let Some(owner) = judgement.owner.filter(|owner| *owner != decision) {
        let other_option = option_of(owner, side);
        return refuse(
            format!("{option} contradicts what was found: {judgement}"),
            format!(
                "{unchanged}; without a decision, or with {other_option}, the command does what was found"
            ),
        );
    }
    if let Some(by_peer) = by_peer.filter(|by_peer| *by_peer != decision) {
        return refuse(
            format!(
                "{option} contradicts the other side's journal: the devices belong to the {}",
                by_peer.name()
            ),
            unchanged,
        );
    }
    if let Evidence::Lost { device } = &judgement.evidence
        && decision == side
        && judgement.owner.is_none()
    {
        return refuse(
            format!("{option}: {device} has lost its state, so that they cannot run here"),
            unchanged,
        );
    }
    Ok(())
}

/// The decision where nothing is proven: by the other side's journal, else by the operator.
pub(super) struct Operator {
    pub(super) decision: Option<Side>,
    pub(super) peer: Option<History>,
}

impl Arbiter for Operator {
    type Error = Infallible;

    fn ask(&mut self, side: Side) -> Result<Ruling, Infallible> {
        let mut journals = JournalArbiter::new();
        for entry in self.peer.iter().flat_map(|peer| &peer.entries) {
            journals.read(*entry);
        }
        let is_open =
            self.peer.as_ref().is_none_or(|peer| peer.entries.iter().all(|it| owner_by(*it).is_none()));
        Ok(match (self.decision, is_open) {
            (Some(owner), true) if owner == side => Ruling::Mine,
            (Some(_), true) => Ruling::Theirs,
            _ => journals.ask(side),
        })
    }

    fn recorded(&mut self, _: Entry) -> Result<(), Infallible> {
        Ok(())
    }
}
