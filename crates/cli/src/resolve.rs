//! `whimbrel resolve`: settles a migration whose outcome is unknown.

mod decision;

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use whimbrel_engine::{Error, Journal, Judgement, Resolve};
use whimbrel_protocol::State;
use whimbrel_protocol::handover::{Entry, History, Record, Side};
use whimbrel_protocol::text::printable;

use self::decision::{Operator, check, decision, option_of, owner_by};
use crate::call_timeout::CallTimeout;
use crate::failure::Failure;
use crate::journal;
use crate::output::Output;
use crate::remedy;
use crate::target::{Closing, Target};

/// Settle a migration whose outcome a crash or a lost connection has left unknown
///
/// Reads the journal that `whimbrel send` or `whimbrel receive` wrote, and looks at the state of its devices. What they prove
/// is done and recorded: at the source the devices resume or stay stopped, at the destination they continue or are reset.
/// If they prove nothing, nothing is changed (exit status 1). Then a copy of the other side's journal decides, or you do:
/// run `whimbrel resolve` on both hosts, choose the host that is to run the devices, and give --run-there on the other host
/// first, then --run-here on this one.
///
/// Only devices that outlive the command that migrated them can be settled, such as served ones. The kernel resets a device
/// when its owner ends: its state is lost then, and the other side has the only one.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The devices, as a check: the journal names them
    #[arg(value_name = "TARGET")]
    targets: Vec<Target>,
    /// The journal of this side
    #[arg(long, value_name = "FILE")]
    journal: PathBuf,
    /// A copy of the journal of the other side, which decides if it has the outcome
    #[arg(long, value_name = "FILE")]
    peer_journal: Option<PathBuf>,
    /// Decide that the devices run here. The other side must have been settled with --run-there before
    #[arg(long, conflicts_with = "run_there")]
    run_here: bool,
    /// Decide that the devices run on the other side: they stay stopped at the source, or are reset at the destination
    #[arg(long)]
    run_there: bool,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel resolve --journal /var/lib/whimbrel/accel.journal
  whimbrel resolve --journal /var/lib/whimbrel/accel.journal --peer-journal /tmp/other-host.journal
  whimbrel resolve --journal /var/lib/whimbrel/accel.journal --run-there";

/// The result, for scripts.
#[derive(Clone, Debug, Serialize)]
struct Report {
    journal: PathBuf,
    /// Null if nothing but the devices was recorded.
    migration: Option<String>,
    side: &'static str,
    peer: Option<String>,
    devices: Vec<Found>,
    /// The proof, or why there is no proof; null if the outcome was known.
    evidence: Option<String>,
    /// `returned`, `gone`, `started` or `discarded`; null if it is unknown.
    outcome: Option<&'static str>,
    #[serde(skip)]
    is_new: bool,
}

/// A device, as it was found.
#[derive(Clone, Debug, Serialize)]
struct Found {
    device: String,
    /// Null if the state is lost, or was not looked at because the outcome was known.
    state: Option<&'static str>,
    /// The reason why the state is lost.
    lost: Option<&'static str>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let path = arguments.journal.as_path();
    let journal = Journal::open_existing(path).map_err(|error| match error {
        Error::JournalInUse { .. } => Failure::from(error).hint(
            "the migration may still be running: wait until `whimbrel send` or `whimbrel receive` ends",
        ),
        error => journal::failed(error, path),
    })?;
    let history = match journal.open_question().or_else(|| journal.unrecorded()) {
        Some(history) => history.clone(),
        None => return settled_before(&journal, arguments, output),
    };
    let targets = named(&history, &arguments.targets, path)?;
    let peer = arguments.peer_journal.as_deref().map(|path| read_peer(path, &history)).transpose()?;
    let decision = decision(arguments, history.side);

    let mut lost = Vec::new();
    let mut devices = Vec::new();
    for target in &targets {
        let why = lost_with_owner(target, arguments)?;
        devices.push(match why {
            Some(_) => None,
            None => Some(CallTimeout::default().open_alone(target)?.into_migratable()),
        });
        lost.push(why);
    }
    let resolve = Resolve::look(journal, devices).map_err(|error| journal::failed(error, path))?;
    let judgement = resolve.judgement().clone();
    let found = targets.iter().zip(&judgement.found).zip(&lost).map(|((target, state), lost)| Found {
        device: target.to_string(),
        state: state.map(State::name),
        lost: *lost,
    });
    let mut report = Report { devices: found.collect(), ..Report::of(path, &history) };
    report.evidence = Some(judgement.to_string());
    check(&judgement, decision, peer.as_ref(), &report, path)?;
    let mut operator = Operator { decision, peer };
    let resolved = resolve.settle(&mut operator);
    drop(resolved.devices);
    match resolved.result {
        Ok(Some(outcome)) => {
            report.outcome = Some(outcome.name());
            report.is_new = true;
            output.result(&report, &report)
        }
        Ok(None) => {
            output.partial(&report)?;
            Err(undecided(&judgement, &report, path))
        }
        Err(error) => {
            let hint = remedy::unsettled(&error, &targets, path);
            Err(Failure::from(error).hint(hint).result(&report))
        }
    }
}

/// Nothing is open: the last outcome is shown. A decision that contradicts it is refused.
fn settled_before(journal: &Journal, arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let path = arguments.journal.as_path();
    let Some(history) = journal.histories().last() else {
        return Err(Failure::new(format!("the journal {} records no migration", path.display()))
            .hint("no device was touched by a command with this journal"));
    };
    let report = Report::of(path, history);
    if let (Some(decision), Some(outcome)) = (decision(arguments, history.side), history.outcome())
        && owner_by(outcome) != Some(decision)
    {
        let option = option_of(decision, history.side);
        let failure = Failure::new(format!(
            "{option} contradicts the journal: it has '{outcome}' of migration {:032x}",
            history.migration
        ));
        return Err(failure.hint("nothing was changed").result(&report));
    }
    output.result(&report, &report)
}

/// Returns the devices that the journal names; those of the command line must be the same.
fn named(history: &History, given: &[Target], path: &Path) -> Result<Vec<Target>, Failure> {
    let parse = |text: &str| {
        text.parse::<Target>().map_err(|error| {
            Failure::new(format!(
                "the journal {} names {}: {error}",
                path.display(),
                printable(text, Record::MAX_TEXT)
            ))
            .hint("it was written by another program, which has to settle it")
        })
    };
    let recorded = history.devices.iter().map(|device| parse(&device.name)).collect::<Result<Vec<_>, _>>()?;
    let given = given.iter().map(Target::absolute).collect::<Result<Vec<_>, _>>()?;
    if recorded.is_empty() {
        return Err(Failure::new(format!("the journal {} names no devices", path.display()))
            .hint("it was written by another program, which has to settle it"));
    }
    if given.is_empty() || given == recorded {
        return Ok(recorded);
    }
    let names = |targets: &[Target]| targets.iter().map(Target::to_string).collect();
    let error =
        Error::OtherDevices { path: path.to_path_buf(), recorded: names(&recorded), given: names(&given) };
    Err(Failure::from(error).hint("leave the TARGETs out: the journal names them"))
}

/// Returns why the state of a device is lost, if its owner has ended. The operator confirms that a server has ended, by giving
/// the devices up.
fn lost_with_owner(target: &Target, arguments: &Arguments) -> Result<Option<&'static str>, Failure> {
    match target.closing() {
        Closing::Resets => Ok(Some("the kernel has reset the device when its owner ended")),
        Closing::Ends => Ok(Some("the model ended with its process")),
        Closing::Keeps if !target.has_no_server() => Ok(None),
        Closing::Keeps if arguments.run_there => Ok(Some("its server has ended")),
        Closing::Keeps => Err(Failure::new(format!(
            "{target}: no server is listening, so that the device's state cannot be read"
        ))
        .hint(
            "if its server has ended, the state is lost with it: `whimbrel resolve --run-there` gives the devices to the \
             other side; nothing was changed",
        )),
    }
}

/// Reads the other side's journal of the same migration.
fn read_peer(path: &Path, history: &History) -> Result<History, Failure> {
    let failed = |error: Error| journal::failed(error, path);
    let records = Journal::read(path).map_err(failed)?;
    let histories = History::of(&records)
        .map_err(|error| Failure::new(format!("the journal {}: {error}", path.display())))?;
    let side = history.side.other();
    let same = |peer: &&History| peer.migration == history.migration && peer.side == side;
    if let Some(peer) = histories.iter().find(same) {
        return Ok(peer.clone());
    }
    let hint = match histories.last() {
        Some(last) if last.side == side && side == Side::Destination && last.is_unrecorded() => {
            "its last migration ended before the devices could start there. If that was this one, run `whimbrel resolve` \
             there first, and then give --run-here instead of that journal"
        }
        _ => "give a copy of the journal that the other side's command was given",
    };
    Err(Failure::new(format!(
        "the journal {} has no record of migration {:032x} at the {}",
        path.display(),
        history.migration,
        side.name()
    ))
    .hint(hint))
}

/// The failure if nothing decides, with the way to a decision.
fn undecided(judgement: &Judgement, report: &Report, path: &Path) -> Failure {
    let (here, there, gave_up, took) = match judgement.side {
        Side::Source => ("source", "destination", "discarded", "started"),
        Side::Destination => ("destination", "source", "gone", "returned"),
    };
    let command = format!("whimbrel resolve --journal {}", path.display());
    Failure::new(format!(
        "it is unknown whether the devices of migration {} belong to this side, the {here}, or to the {there}: {judgement}",
        report.migration.as_deref().unwrap_or_default()
    ))
    .hint(format!(
        "run `whimbrel resolve` on the {there}, with its own journal.\n\
         If its outcome is '{gave_up}', run here `{command} --run-here`.\n\
         If its outcome is '{took}', run here `{command} --run-there`.\n\
         If it does not know the outcome either, choose the host that is to run the devices: give --run-there on the other \
         host first, and only then --run-here on the chosen one. Nothing was changed"
    ))
    .result(report)
}

impl Report {
    fn of(path: &Path, history: &History) -> Report {
        let is_known = !history.is_unrecorded();
        let device =
            |name: &str| Found { device: printable(name, Record::MAX_TEXT), state: None, lost: None };
        Report {
            journal: path.to_path_buf(),
            migration: is_known.then(|| format!("{:032x}", history.migration)),
            side: history.side.name(),
            peer: is_known.then(|| printable(&history.peer, Record::MAX_TEXT)),
            devices: history.devices.iter().map(|it| device(&it.name)).collect(),
            evidence: None,
            outcome: history.outcome().map(Entry::name),
            is_new: false,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (way, other) = match self.side {
            "source" => ("to", "destination"),
            _ => ("from", "source"),
        };
        match (&self.migration, &self.peer) {
            (Some(id), Some(peer)) => writeln!(f, "migration {id} {way} {peer} (this side: {})", self.side)?,
            _ => writeln!(f, "migration that was interrupted early (this side: {})", self.side)?,
        }
        for found in &self.devices {
            match (found.state, found.lost) {
                (Some(state), _) => writeln!(f, "  {}: found in {state}", found.device)?,
                (None, Some(why)) => writeln!(f, "  {}: its state is lost: {why}", found.device)?,
                (None, None) => writeln!(f, "  {}", found.device)?,
            }
        }
        if let Some(evidence) = &self.evidence {
            writeln!(f, "  {evidence}")?;
        }
        let is = if self.is_new { "" } else { "was settled before: " };
        match self.outcome {
            None => write!(f, "outcome: unknown"),
            Some("returned") if self.is_new => write!(f, "outcome: returned (the devices now run here)"),
            Some("returned") => write!(f, "outcome: returned ({is}the devices belong to this side)"),
            Some("gone") => {
                write!(f, "outcome: gone ({is}the devices belong to the {other} and stay stopped here)")
            }
            Some("started") if self.is_new => write!(f, "outcome: started (the devices now run here)"),
            Some("started") => write!(f, "outcome: started ({is}the devices belong to this side)"),
            Some(outcome) => {
                write!(
                    f,
                    "outcome: {outcome} ({is}the devices belong to the {other}; nothing of them is left here)"
                )
            }
        }
    }
}
