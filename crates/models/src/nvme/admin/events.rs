//! Asynchronous events: the host's requests that wait for one, and the events that wait for a request.

use std::collections::VecDeque;

use super::super::command::Status;

/// Number of requests that may wait (AERL + 1).
pub(in super::super) const MAX_REQUESTS: usize = 4;
/// Number of events that may wait; more of them are dropped.
pub(in super::super) const MAX_EVENTS: usize = 8;

/// An event, by type, information and the log page that tells more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Event {
    /// 0 error, 1 health.
    pub(in super::super) kind: u8,
    pub(in super::super) information: u8,
    pub(in super::super) log_page: u8,
}

impl Event {
    /// A write to the doorbell of a queue that does not exist.
    pub(in super::super) const INVALID_DOORBELL: Event = Event { kind: 0, information: 0, log_page: 1 };
    /// A write of an invalid value to a doorbell.
    pub(in super::super) const INVALID_DOORBELL_VALUE: Event = Event { kind: 0, information: 1, log_page: 1 };
    /// The temperature has crossed a threshold.
    pub(in super::super) const TEMPERATURE: Event = Event { kind: 1, information: 1, log_page: 2 };

    const ALL: [Event; 3] = [Event::INVALID_DOORBELL, Event::INVALID_DOORBELL_VALUE, Event::TEMPERATURE];

    /// Returns dword 0 of the completion that reports the event.
    pub(in super::super) fn result(self) -> u32 {
        u32::from(self.kind) | u32::from(self.information) << 8 | u32::from(self.log_page) << 16
    }

    /// Returns the event with this dword 0; `None` if this controller never has it.
    pub(in super::super) fn from_result(result: u32) -> Option<Event> {
        Event::ALL.into_iter().find(|event| event.result() == result)
    }
}

/// Requests and events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Events {
    /// The command identifiers of the requests that wait.
    pub(in super::super) requests: VecDeque<u16>,
    /// The events that wait.
    pub(in super::super) pending: VecDeque<Event>,
    /// The types that are not reported again until their log page is read, one bit each.
    pub(in super::super) masked: u8,
}

impl Events {
    /// Adds a request.
    pub(super) fn request(&mut self, command_id: u16) -> Result<(), Status> {
        if self.requests.len() == MAX_REQUESTS {
            return Err(Status::EVENT_LIMIT_EXCEEDED);
        }
        self.requests.push_back(command_id);
        Ok(())
    }

    /// Adds an event, unless the same one waits.
    pub(in super::super) fn raise(&mut self, event: Event) {
        if !self.pending.contains(&event) && self.pending.len() < MAX_EVENTS {
            self.pending.push_back(event);
        }
    }

    /// Takes a request and the event that answers it, if both wait.
    pub(in super::super) fn take(&mut self) -> Option<(u16, Event)> {
        let at = self.pending.iter().position(|event| self.masked >> event.kind & 1 == 0)?;
        let request = self.requests.pop_front()?;
        let event = self.pending.remove(at)?;
        self.masked |= 1 << event.kind;
        Some((request, event))
    }

    /// Returns whether events and requests wait.
    pub(in super::super) fn can_report(&self) -> bool {
        !self.pending.is_empty() && !self.requests.is_empty()
    }

    /// Lets the events of a log page be reported again, because the page was read.
    pub(super) fn log_read(&mut self, log_page: u8) {
        for event in Event::ALL {
            if event.log_page == log_page {
                self.masked &= !(1 << event.kind);
            }
        }
    }

    /// Returns whether a controller can have these.
    pub(in super::super) fn are_sound(&self) -> bool {
        self.requests.len() <= MAX_REQUESTS && self.pending.len() <= MAX_EVENTS && self.masked & !0b11 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_reported_once_until_its_log_page_is_read() {
        let mut events = Events::default();
        events.raise(Event::INVALID_DOORBELL);
        assert_eq!(events.take(), None, "nobody asks");
        events.request(7).unwrap();
        events.request(8).unwrap();
        assert_eq!(events.take(), Some((7, Event::INVALID_DOORBELL)));
        events.raise(Event::INVALID_DOORBELL_VALUE);
        assert_eq!(events.take(), None, "masked: its type was reported");
        events.raise(Event::TEMPERATURE);
        assert_eq!(events.take(), Some((8, Event::TEMPERATURE)), "another type");
        events.log_read(1);
        events.request(9).unwrap();
        assert_eq!(events.take(), Some((9, Event::INVALID_DOORBELL_VALUE)));
        assert!(events.are_sound());
    }

    #[test]
    fn requests_and_events_are_bounded() {
        let mut events = Events::default();
        for command_id in 0..4 {
            assert_eq!(events.request(command_id), Ok(()));
        }
        assert_eq!(events.request(4), Err(Status::EVENT_LIMIT_EXCEEDED));
        for _ in 0..100 {
            events.raise(Event::TEMPERATURE);
        }
        assert_eq!(events.pending.len(), 1);
    }
}
