//! The order of the source's phases: what each one starts, when it is done, and what follows.

use super::{Phase, Source};
use crate::proto::control::Control;
use crate::proto::negotiate::Feature;
use crate::proto::operation::{Command, Operation, Place};

impl Source {
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.spans.enter(self.shown_phase(), self.phase);
        self.phase_began = self.now;
        self.answered = false;
        let in_downtime = self.stopped_at.map(|stopped| stopped + self.stop_budget);
        let (timeout, call) = (self.plan.options.timeout, self.plan.options.call_timeout);
        self.deadline = match phase {
            Phase::Hello | Phase::Table | Phase::RoundEnd | Phase::Ping | Phase::Committed => {
                Some(self.now + timeout)
            }
            // Each frame and each call has a deadline of its own.
            Phase::RoundSend
            | Phase::Resend
            | Phase::Precopy
            | Phase::RoundQuery
            | Phase::RoundLeft
            | Phase::RoundMemoryLeft
            | Phase::Slow
            | Phase::Record
            | Phase::Over => None,
            Phase::Pause | Phase::Quiesce | Phase::Stop | Phase::Rest => in_downtime,
            // READY is an answer like any other, however large the budget is.
            Phase::End => in_downtime.into_iter().chain([self.now + timeout]).min(),
            Phase::Broken | Phase::Reconnect => self.resumption_ends(),
            // Lanes are opened anew, too, before a lost connection counts as replaced.
            Phase::Join | Phase::Lanes => {
                self.resumption_ends().into_iter().chain([self.now + timeout]).min()
            }
            Phase::Release | Phase::Settle(_) | Phase::Park => Some(self.now + call),
            Phase::Back(back) => Some(self.now + back.timeout(call)),
        };
        if let Some(end) = self.end_of_precopy() {
            self.deadline = Some(self.deadline.map_or(end, |deadline| deadline.min(end)));
        }
        match phase {
            Phase::Hello => self.say(Control::Hello(self.plan.offer.clone())),
            Phase::Table => self.say(Control::Table(self.plan.table.clone())),
            Phase::Lanes => self.open_lanes(),
            Phase::Precopy => self.start_precopy(),
            Phase::RoundQuery => self.query_round(),
            Phase::RoundSend => self.send_round(),
            Phase::RoundEnd => self.end_round(),
            Phase::Ping => self.say(Control::Ping { id: self.round.number }),
            Phase::RoundLeft => self.query_left(),
            Phase::RoundMemoryLeft => self.query_memory_left(),
            Phase::Slow => self.slow_down(),
            Phase::Record => self.record(),
            Phase::Pause => self.pause(),
            Phase::Quiesce => self.quiesce(),
            Phase::Stop => self.stop(),
            Phase::Rest => self.send_rest(),
            Phase::End => self.say_end(),
            Phase::Committed => self.commit(),
            Phase::Release => self.release(),
            Phase::Broken => self.give_up_connections(),
            Phase::Settle(_) => self.pending.command(Command::Interrupt),
            Phase::Reconnect => self.reconnect(),
            Phase::Join => self.pending.start(Place::Stream, Operation::Listen),
            Phase::Resend => self.resend(),
            Phase::Back(back) => self.bring_back(back),
            Phase::Park => self.park(),
            Phase::Over => self.pending.command(Command::Finish),
        }
    }

    pub(super) fn phase_is_done(&self) -> bool {
        let awaits_answer = matches!(
            self.phase,
            Phase::Hello
                | Phase::Table
                | Phase::RoundEnd
                | Phase::Ping
                | Phase::Join
                | Phase::End
                | Phase::Committed
        );
        match self.phase {
            _ if self.lost.is_some() => false,
            Phase::Over => false,
            // The state that is sent meanwhile is awaited later.
            Phase::Stop => {
                !self.pending.any(|_, operation| !matches!(operation, Operation::SendState { .. }))
            }
            _ if awaits_answer => self.answered && self.pending.is_empty(),
            _ => self.pending.is_empty(),
        }
    }

    /// Proceeds to the next phase: the current one has everything that it awaits.
    pub(super) fn advance(&mut self) {
        match self.phase {
            Phase::Hello => self.enter(Phase::Table),
            Phase::Join => self.go_on_after_join(),
            Phase::Table if self.channels() > 1 => self.enter(Phase::Lanes),
            Phase::Lanes if self.is_unlinked() => self.enter(Phase::Resend),
            Phase::Table | Phase::Lanes => self.enter(Phase::Precopy),
            Phase::RoundQuery => self.enter(Phase::RoundSend),
            Phase::RoundSend => {
                if !self.pads() {
                    self.enter(Phase::RoundEnd);
                }
            }
            Phase::RoundEnd if self.features.contains(&Feature::Ping) => self.enter(Phase::Ping),
            Phase::RoundEnd | Phase::Ping => self.enter(Phase::RoundLeft),
            Phase::RoundLeft => self.enter(Phase::RoundMemoryLeft),
            Phase::RoundMemoryLeft => self.judge_round(),
            Phase::Slow => self.slowed(),
            Phase::Broken => self.enter(Phase::Reconnect),
            Phase::Reconnect => self.enter(Phase::Join),
            Phase::Resend => self.go_on_with_round(),
            Phase::Record if self.initial_is_done() => self.enter(Phase::Pause),
            Phase::Precopy | Phase::Record => self.next_round(),
            Phase::Pause if self.quiesces() => self.enter(Phase::Quiesce),
            Phase::Pause | Phase::Quiesce => self.enter(Phase::Stop),
            Phase::Stop => self.enter(Phase::Rest),
            Phase::Rest => self.enter(Phase::End),
            Phase::End => match self.left_stop_copy() {
                Some(error) => self.fail(error),
                None => self.enter(Phase::Committed),
            },
            Phase::Committed => self.enter(Phase::Release),
            Phase::Release | Phase::Park => self.enter(Phase::Over),
            Phase::Settle(then) => self.settled(then),
            Phase::Back(back) => self.back_again(back),
            Phase::Over => {}
        }
    }
}
