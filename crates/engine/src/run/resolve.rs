//! After a crash or a lost confirmation: the side that does not know continues by its journal, by the states of its
//! devices, and by the word of an arbiter.
//!
//! [`whimbrel_protocol::handover`] has the rules. This module looks at the devices and does what the rules say.

use std::fmt;
use std::time::Duration;

use whimbrel_protocol::handover::{
    Arbiter, Destination, DestinationAction, DeviceRecord, Entry, History, Ruling, Side, Source, SourceAction,
};
use whimbrel_user::{Migratable, MigrationFlags, State};

use super::ask::{Devices, ask_each};
use super::journal::Journal;
use super::thread;
use crate::error::Error;
use crate::guest::GuestError;
use crate::proto::judgement::{Evidence, Judgement, judge};

/// Timeout for a call into a driver.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A migration whose outcome is unknown to this side, with its devices.
///
/// ```no_run
/// use whimbrel_engine::{Journal, Resolve};
/// use whimbrel_protocol::handover::JournalArbiter;
/// use whimbrel_user::Migratable;
///
/// # fn devices() -> Vec<Option<Box<dyn Migratable>>> { Vec::new() }
/// let journal = Journal::open_existing("/var/lib/vmm/migration.journal")?;
/// let resolve = Resolve::look(journal, devices())?;
/// println!("{}", resolve.judgement());
/// // Where the journal and the devices leave it open, the other side's journal decides.
/// let mut arbiter = JournalArbiter::new();
/// let migration = resolve.history().migration;
/// for record in Journal::read("/mnt/host-b/migration.journal".as_ref())? {
///     // It may have other migrations.
///     record.entry().filter(|_| record.migration() == migration).into_iter().for_each(|entry| arbiter.read(entry));
/// }
/// let resolved = resolve.settle(&mut arbiter);
/// match resolved.result? {
///     Some(outcome) => println!("{outcome}"),
///     None => println!("not decided yet: the devices stay as they are"),
/// }
/// # Ok::<(), whimbrel_engine::Error>(())
/// ```
pub struct Resolve {
    journal: Journal,
    history: History,
    /// `None` for a device whose state was lost, or whose driver does not return.
    devices: Devices,
    judgement: Judgement,
}

/// A side that was to be settled.
#[non_exhaustive]
pub struct Resolved {
    /// The outcome, which the journal records now; `None` if it is not decided. After an error the outcome is still
    /// unknown to the journal.
    pub result: Result<Option<Entry>, Error>,
    /// The devices, in their order; `None` for one whose driver has not returned from a call, or whose state was lost.
    pub devices: Vec<Option<Box<dyn Migratable>>>,
}

impl Resolve {
    /// Looks at the devices of the migration whose outcome the journal does not know, or else of the last one if it was
    /// interrupted before anything could be handed over. They are given in the journal's order; `None` is one whose state
    /// was lost for good with its holder, such as a process that has ended.
    pub fn look(journal: Journal, devices: Vec<Option<Box<dyn Migratable>>>) -> Result<Resolve, Error> {
        let Some(history) = journal.open_question().or_else(|| journal.unrecorded()).cloned() else {
            return Err(Error::NothingToResolve { path: journal.path().to_path_buf() });
        };
        check_names(&journal, &history, &devices)?;
        let holders: Vec<Option<String>> =
            devices.iter().map(|device| device.as_ref().and_then(|device| device.holder())).collect();
        let side = history.side;
        let (devices, states) = each(devices, "GET of the state", move |device| {
            device.state().or_else(|error| match side {
                // A source whose device cannot be read must know that it is stopped.
                // It cannot be looked at: the driver's word has to do.
                Side::Source => device.set_state(State::Stop).map(|_| State::Stop).map_err(|_| error),
                Side::Destination => Err(error),
            })
        });
        let mut found = Vec::with_capacity(states.len());
        for state in states {
            found.push(state.transpose()?);
        }
        let judgement = judge(&history, &found, &holders);
        Ok(Resolve { journal, history, devices, judgement })
    }

    /// Returns the migration, as the journal records it.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Returns what is proven.
    pub fn judgement(&self) -> &Judgement {
        &self.judgement
    }

    /// Settles this side by the rules of the handover: runs the devices here, keeps them stopped, or resets them, and records
    /// the outcome. The arbiter is asked only if nothing is proven. Without a decision nothing changes.
    pub fn settle<A: Arbiter>(mut self, arbiter: &mut A) -> Resolved
    where
        A::Error: Into<GuestError>,
    {
        let result = match self.judgement.side {
            _ if self.judgement.evidence == Evidence::Unrecorded => self.undo().map(Some),
            // Another outcome would not make it any clearer.
            _ if matches!(
                self.judgement.evidence,
                Evidence::Contradictory | Evidence::OtherDevices { .. }
            ) =>
            {
                Ok(None)
            }
            Side::Source => self.settle_source(arbiter),
            Side::Destination => self.settle_destination(arbiter),
        };
        Resolved { result, devices: self.devices }
    }

    fn settle_source<A: Arbiter>(&mut self, arbiter: &mut A) -> Result<Option<Entry>, Error>
    where
        A::Error: Into<GuestError>,
    {
        let (mut rule, mut action) = Source::restart(&self.history.entries, &self.judgement.counted());
        if action == SourceAction::ReportUnknown {
            // Nothing is left here that could run.
            let is_lost = self.judgement.owner == Some(Side::Destination);
            let asked = rule.ask();
            let ruling = match (is_lost, asked) {
                (true, _) => Ruling::Theirs,
                (false, Some(side)) => arbiter.ask(side).map_err(|error| Error::Arbiter(error.into()))?,
                (false, None) => Ruling::NotDecided,
            };
            action = rule.ruled(ruling);
        }
        match action {
            SourceAction::RunHere => {
                for result in self.run() {
                    result.map_err(|error| Error::NotStarted(Box::new(error)))?;
                }
            }
            SourceAction::Release => {
                for result in self.call("SET of STOP", |device| match device.state()? {
                    State::Stop | State::Error => Ok(()),
                    _ => device.go_to(State::Stop).map(drop),
                }) {
                    result?;
                }
            }
            _ => return Ok(None),
        }
        self.record(rule.outcome(), arbiter)
    }

    fn settle_destination<A: Arbiter>(&mut self, arbiter: &mut A) -> Result<Option<Entry>, Error>
    where
        A::Error: Into<GuestError>,
    {
        let (mut rule, mut action) = Destination::restart(&self.history.entries, &self.judgement.counted());
        if action == DestinationAction::ReportUnknown
            && let Some(side) = rule.ask()
        {
            let ruling = arbiter.ask(side).map_err(|error| Error::Arbiter(error.into()))?;
            action = rule.ruled(ruling);
        }
        match action {
            DestinationAction::Start => {
                for (index, result) in self.run().into_iter().enumerate() {
                    rule.started(index, result.is_ok());
                    result.map_err(|error| Error::NotStarted(Box::new(error)))?;
                }
            }
            DestinationAction::Discard => self.discard(&mut rule, arbiter)?,
            _ => return Ok(None),
        }
        self.record(rule.outcome(), arbiter)
    }

    /// Undoes a migration in which nothing can have been handed over. Nothing is recorded: there was no question.
    fn undo(&mut self) -> Result<Entry, Error> {
        let (results, entry) = match self.judgement.side {
            Side::Source => {
                // A device that stands in another state was not brought there by this migration.
                let results = self.call("SET of RUNNING", |device| match device.state()? {
                    State::PreCopy | State::PreCopyP2p => device.go_to(State::Running).map(drop),
                    _ => Ok(()),
                });
                (results, Entry::Returned)
            }
            Side::Destination => {
                let results = self.call("RESET", |device| match device.state()? {
                    State::Resuming | State::Stop | State::Error => device.reset(),
                    _ => Ok(()),
                });
                (results, Entry::Discarded)
            }
        };
        for result in results {
            result?;
        }
        Ok(entry)
    }

    fn discard<A: Arbiter>(&mut self, rule: &mut Destination, arbiter: &mut A) -> Result<(), Error>
    where
        A::Error: Into<GuestError>,
    {
        let has = |entry| self.history.entries.contains(&entry);
        if has(Entry::MayStart) && !has(Entry::Discarding) {
            self.record(Some(Entry::Discarding), arbiter)?;
        }
        let resets = self.call("RESET", |device| {
            device.reset().or_else(|error| {
                device.set_state(State::Stop).map_err(|_| error)?;
                Ok(())
            })
        });
        for (index, result) in resets.into_iter().enumerate() {
            rule.discarded(index, result.is_ok());
            result?;
        }
        Ok(())
    }

    fn record<A: Arbiter>(&mut self, entry: Option<Entry>, arbiter: &mut A) -> Result<Option<Entry>, Error>
    where
        A::Error: Into<GuestError>,
    {
        if let Some(entry) = entry {
            self.journal.append(self.history.migration, entry)?;
            arbiter.recorded(entry).map_err(|error| Error::Arbiter(error.into()))?;
        }
        Ok(entry)
    }

    /// Lets every device run: those with P2P enter RUNNING_P2P before the first one runs.
    fn run(&mut self) -> Vec<Result<(), Error>> {
        if self.devices.len() > 1 {
            let quiesced = self.call("SET of RUNNING_P2P", |device| {
                let has_p2p =
                    device.migration_flags()?.is_some_and(|flags| flags.contains(MigrationFlags::P2P));
                if has_p2p && matches!(device.state()?, State::Stop | State::StopCopy) {
                    device.go_to(State::RunningP2p)?;
                }
                Ok(())
            });
            if quiesced.iter().any(Result::is_err) {
                return quiesced;
            }
        }
        self.call("SET of RUNNING", |device| match device.state()? {
            State::Running => Ok(()),
            _ => device.go_to(State::Running).map(drop),
        })
    }

    /// Calls each device that is there.
    fn call(
        &mut self,
        call: &str,
        question: impl Fn(&mut dyn Migratable) -> whimbrel_user::Result<()> + Clone + Send + 'static,
    ) -> Vec<Result<(), Error>> {
        let (devices, results) = each(std::mem::take(&mut self.devices), call, question);
        self.devices = devices;
        results.into_iter().map(|result| result.unwrap_or(Ok(()))).collect()
    }
}

/// Calls each device; `None` for one that is missing.
fn each<T: Send + 'static>(
    devices: Devices,
    call: &str,
    question: impl Fn(&mut dyn Migratable) -> whimbrel_user::Result<T> + Clone + Send + 'static,
) -> (Devices, Vec<Option<Result<T, Error>>>) {
    let places: Vec<bool> = devices.iter().map(Option::is_some).collect();
    let there: Vec<_> = devices.into_iter().flatten().collect();
    let answers =
        ask_each(there, call, CALL_TIMEOUT, &mut thread::named, move |device| Ok(question(device)?));
    let mut answers = answers.into_iter();
    let all = places.into_iter().map(|is_there| match is_there.then(|| answers.next()).flatten() {
        Some((device, answer)) => (device, Some(answer)),
        None => (None, None),
    });
    all.unzip()
}

fn check_names(journal: &Journal, history: &History, devices: &Devices) -> Result<(), Error> {
    let is_same = |recorded: &DeviceRecord, device: &Option<Box<dyn Migratable>>| {
        device.as_ref().is_none_or(|device| device.name() == recorded.name)
    };
    let recorded = &history.devices;
    let fits = recorded.len() == devices.len() && recorded.iter().zip(devices).all(|(a, b)| is_same(a, b));
    if fits || recorded.is_empty() {
        return Ok(());
    }
    Err(Error::OtherDevices {
        path: journal.path().to_path_buf(),
        recorded: recorded.iter().map(|device| device.name.clone()).collect(),
        given: devices
            .iter()
            .map(|device| device.as_ref().map_or("a lost device", |device| device.name()).to_string())
            .collect(),
    })
}

impl fmt::Debug for Resolve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolve")
            .field("history", &self.history)
            .field("judgement", &self.judgement)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolved").field("result", &self.result).finish_non_exhaustive()
    }
}
