//! What calls do: to devices, memory, logs, the owner and the journal.

use whimbrel_engine::Error;
use whimbrel_engine::proto::backlog::Piece;
use whimbrel_engine::proto::negotiate::Feature;
use whimbrel_engine::proto::operation::{Done, Operation, Place};
use whimbrel_protocol::State;

use super::coverage::Side;
use super::hands::{Next, injected};
use super::host::Item;
use super::link::Frame;
use super::plan::Lie;
use super::world::World;

impl World {
    /// The effect of a call.
    pub(crate) fn effect(&mut self, side: Side, place: Place, fails: bool) -> Next {
        let page_bytes = self.plan.page_bytes;
        let has_journal = self.plan.has_journal;
        let sends_setup = self.plan.features.iter().all(|side| side.contains(&Feature::Setup));
        let lie = self.plan.lie;
        let most_slowing = self.plan.slowing;
        let (half, breaks) = (self.rng.bool(), self.chance(30));
        let is_down = self.now < self.down_until;
        let mut rng = self.rng.fork();
        let host = self.host(side);
        let is_interrupted = |epoch: u64| epoch != host.epoch;
        let Some(current) = host.workers.get_mut(&place).and_then(|worker| worker.current.as_mut()) else {
            return Next::End(Err(Error::Interrupted));
        };
        let ok = Next::End(Ok(Done::Nothing));
        let error = || Next::End(Err(injected(place)));
        let (operation, epoch) = match &current.item {
            Item::Task { operation, epoch, .. } => (operation.clone(), *epoch),
            Item::State { block, value } => {
                let (block, value) = (*block, *value);
                let Place::Device(index) = place else { return error() };
                return if !fails && host.devices[index].write(block, value) { ok } else { error() };
            }
            Item::Setup { value } => {
                let value = *value;
                let Place::Device(index) = place else { return error() };
                host.devices[index].saved_setup = Some(value);
                return ok;
            }
        };
        if let Place::Device(index) = place {
            let device = &mut host.devices[index];
            let log = &mut host.device_logs[index];
            return match operation {
                Operation::SetState(state) => {
                    let worked = device.set_state(state, fails, breaks, &mut rng);
                    if worked { ok } else { error() }
                }
                Operation::Reset if lie == Some(Lie::FailedAndRuns) => ok,
                Operation::Reset => {
                    if !fails || half {
                        device.reset(side == Side::Source);
                        *log = None;
                    }
                    if fails { error() } else { ok }
                }
                Operation::CollectLog { stopped } if fails && !stopped => {
                    // The log is given up.
                    host.is_unlogged = true;
                    ok
                }
                Operation::RestoreSetup if lie == Some(Lie::RestoresNoSetup) => ok,
                Operation::RestoreSetup if device.is_unread || (fails && half) => error(),
                Operation::RestoreSetup => {
                    if let Some(setup) = device.saved_setup {
                        device.setup = setup;
                    }
                    if fails { error() } else { ok }
                }
                Operation::StopLog => {
                    *log = None;
                    if fails { error() } else { ok }
                }
                Operation::SaveSetup { send: false } if fails => {
                    device.is_unread = device.saved_setup.is_none();
                    ok
                }
                _ if fails => error(),
                Operation::QueryState => Next::End(Ok(Done::State(device.state))),
                Operation::EnableReinit => {
                    device.enable_reinit();
                    ok
                }
                Operation::QueryPrecopy => match device.query() {
                    Some((report, size)) => {
                        Next::End(Ok(Done::Precopy { report, data_size: half.then_some(size) }))
                    }
                    None => error(),
                },
                Operation::QueryDataSize => Next::End(Ok(Done::Bytes(device.data_size()))),
                Operation::StartLog => {
                    if device.model.has_log {
                        *log = Some(vec![false; host.memory.len()]);
                    } else {
                        host.is_unlogged = true;
                    }
                    ok
                }
                Operation::CollectLog { .. } => {
                    if let Some(log) = log {
                        for (dirty, written) in host.dirty.iter_mut().zip(log) {
                            *dirty |= std::mem::take(written);
                        }
                    }
                    ok
                }
                Operation::SaveSetup { send } => {
                    device.saved_setup = Some(device.setup);
                    if send && sends_setup {
                        Next::Frame(Frame::Setup { device: index, value: device.setup }, 64)
                    } else {
                        ok
                    }
                }
                Operation::SendState { limit } => {
                    if is_interrupted(epoch) {
                        return Next::End(Err(Error::Interrupted));
                    }
                    let sent = current.sent;
                    if !device.state.is_saving() {
                        return error();
                    }
                    let keeps =
                        limit.is_some() && host.machine.as_ref().is_some_and(super::host::Machine::keeps);
                    if keeps && !host.backlog.has_room() {
                        return Next::Room;
                    }
                    let is_last = limit.is_some_and(|limit| sent.bytes >= limit);
                    let lies = lie == Some(Lie::EndsEarly) && limit.is_none();
                    let bytes = device.model.block_bytes;
                    match if is_last { None } else { device.read() } {
                        Some((_, _)) if lies && sent.bytes >= bytes => Next::End(Ok(Done::Sent(sent))),
                        Some((block, value)) => {
                            device.passed.push((block, value));
                            if keeps {
                                let piece = Piece { length: bytes, ends: false, data: (block, value) };
                                host.backlog.push(index, piece);
                            }
                            Next::Frame(Frame::State { device: index, block, value, bytes }, bytes)
                        }
                        None => {
                            if lie == Some(Lie::WritesAfterStop) && device.state == State::StopCopy {
                                device.work(1, &mut rng);
                            }
                            Next::End(Ok(Done::Sent(sent)))
                        }
                    }
                }
                Operation::ResendState { from } => {
                    if is_interrupted(epoch) {
                        return Next::End(Err(Error::Interrupted));
                    }
                    return self.resend(index, from);
                }
                Operation::DrainState => Next::End(Ok(Done::Bytes(0))),
                _ => error(),
            };
        }
        match operation {
            Operation::Send(_) | Operation::SendMemory | Operation::SendPadding(_) if fails => error(),
            Operation::Reconnect { .. } => self.reconnect(fails),
            Operation::Unlink | Operation::Listen if fails => error(),
            Operation::Unlink => {
                self.unlink();
                ok
            }
            Operation::Listen => {
                self.listen_on_new(side);
                ok
            }
            Operation::Rejoin { .. } if fails => error(),
            Operation::Rejoin { round, number } => self.rejoin(round, number),
            Operation::RoundArrived | Operation::RoundLost if fails => error(),
            Operation::RoundArrived => {
                host.backlog.all_taken();
                host.unconfirmed.fill(false);
                ok
            }
            Operation::RoundLost => {
                for (dirty, unconfirmed) in host.dirty.iter_mut().zip(&mut host.unconfirmed) {
                    let is_lost = std::mem::take(unconfirmed);
                    *dirty |= is_lost && lie != Some(Lie::ForgetsLostRound);
                }
                let pages = host.dirty_pages();
                Next::End(Ok(Done::Bytes(pages as u64 * page_bytes)))
            }
            Operation::Send(control) => Next::Frame(Frame::Control(control), 64),
            // Refused for now, or for another reason.
            Operation::OpenLanes { .. } if (fails && half) || is_down => {
                Next::End(Err(Error::Lost { side: "destination" }))
            }
            Operation::OpenLanes { .. } | Operation::MarkLanes(_) if fails => error(),
            Operation::OpenLanes { .. } => {
                host.joined = 0;
                self.next_part(side, place)
            }
            Operation::SendMemory | Operation::SendPadding(_) | Operation::MarkLanes(_) => {
                self.next_part(side, place)
            }
            Operation::SendBlobs if fails => error(),
            Operation::SendBlobs => Next::Frame(Frame::Blob { value: host.blob.unwrap_or_default() }, 4),
            Operation::StartMemoryLogs => {
                host.cpu_log = Some(vec![false; host.memory.len()]);
                host.dirty.fill(true);
                if fails { error() } else { ok }
            }
            Operation::CollectMemoryLogs { .. } if fails => error(),
            Operation::CollectMemoryLogs { stopped } => {
                if let Some(log) = &mut host.cpu_log {
                    for (dirty, written) in host.dirty.iter_mut().zip(log) {
                        *dirty |= std::mem::take(written);
                    }
                }
                if host.is_unlogged && stopped {
                    host.dirty.fill(true);
                }
                if lie == Some(Lie::ForgetsPage)
                    && stopped
                    && let Some(page) = host.dirty.iter_mut().find(|is| **is)
                {
                    *page = false;
                }
                let bytes = host.dirty_pages() as u64 * page_bytes;
                Next::End(Ok(Done::Dirty { bytes, most: None, is_logged: !host.is_unlogged }))
            }
            Operation::StopMemoryLogs => {
                host.cpu_log = None;
                if fails { error() } else { ok }
            }
            Operation::Record { entry, .. } => {
                if has_journal && (!fails || half) {
                    host.journal.push(entry);
                }
                let (path, full) = ("journal".into(), std::io::ErrorKind::StorageFull.into());
                match (fails && has_journal, half) {
                    (false, _) => ok,
                    (true, true) => Next::End(Err(Error::JournalUncertain { path, entry, error: full })),
                    (true, false) => Next::End(Err(Error::Journal { path, error: full })),
                }
            }
            Operation::Slow(step) => {
                // An owner that can be slowed down takes some steps.
                let takes = step <= most_slowing;
                if (!fails || half) && takes {
                    host.slowing = step;
                }
                if fails { error() } else { Next::End(Ok(Done::Slowed(takes))) }
            }
            Operation::Pause => {
                if !fails || half {
                    host.guest = false;
                    host.blob = Some(host.guest_state);
                }
                if fails { error() } else { ok }
            }
            Operation::Resume => {
                host.guest |= !fails || half;
                if fails { error() } else { ok }
            }
            Operation::Inspect if fails => error(),
            Operation::Inspect if lie == Some(Lie::LoadsNoBlob) => ok,
            Operation::Inspect => {
                if let Some(blob) = host.blob {
                    host.guest_state = blob;
                }
                ok
            }
            Operation::Run => {
                host.guest |= !fails || half;
                if fails { error() } else { ok }
            }
            _ => error(),
        }
    }

    /// A call that was under way when its process died takes effect.
    pub(crate) fn take_effect(&mut self, side: Side, place: Place) {
        let _ = self.effect(side, place, false);
    }
}
