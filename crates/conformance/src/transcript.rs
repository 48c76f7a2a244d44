//! The requests of a case with their answers, in order.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;

use parking_lot::Mutex;

/// Requests kept from the beginning of a case.
const FIRST: usize = 40;
/// Requests kept from its end.
const LAST: usize = 120;

/// The requests of a case. A clone is another handle to the same list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transcript(Arc<Mutex<Steps>>);

#[derive(Debug, Default)]
struct Steps {
    first: Vec<Step>,
    last: VecDeque<Step>,
    omitted: usize,
    /// The request that has not returned.
    pending: Option<String>,
}

#[derive(Debug)]
struct Step {
    text: String,
    times: usize,
}

impl Transcript {
    /// Makes a request, and records it with its answer.
    pub(crate) fn record<T, A: Display>(
        &self,
        request: impl Display,
        make: impl FnOnce() -> T,
        answer: impl FnOnce(&T) -> A,
    ) -> T {
        let request = request.to_string();
        self.0.lock().pending = Some(request.clone());
        let result = make();
        let text = format!("{request} = {}", answer(&result));
        let mut steps = self.0.lock();
        steps.pending = None;
        steps.add(text);
        result
    }

    /// Does something that belongs to no request, but may hang likewise.
    pub(crate) fn during<T>(&self, what: &str, make: impl FnOnce() -> T) -> T {
        self.0.lock().pending = Some(what.to_string());
        let result = make();
        self.0.lock().pending = None;
        result
    }

    /// Returns the lines of the list: a request each, repeated ones counted.
    pub(crate) fn lines(&self) -> Vec<String> {
        let steps = self.0.lock();
        let mut lines: Vec<String> = steps.first.iter().map(Step::line).collect();
        if steps.omitted > 0 {
            lines.push(format!("[{} requests omitted]", steps.omitted));
        }
        lines.extend(steps.last.iter().map(Step::line));
        lines.extend(steps.pending.iter().map(|request| format!("{request} has not returned")));
        lines
    }

    /// Returns the request that has not returned, if any.
    pub(crate) fn pending(&self) -> Option<String> {
        self.0.lock().pending.clone()
    }
}

impl Steps {
    fn add(&mut self, text: String) {
        let previous = self.last.back_mut().or(self.first.last_mut());
        if let Some(previous) = previous.filter(|step| step.text == text) {
            previous.times += 1;
            return;
        }
        let step = Step { text, times: 1 };
        if self.first.len() < FIRST {
            self.first.push(step);
            return;
        }
        if self.last.len() == LAST {
            self.omitted += self.last.pop_front().map_or(0, |step| step.times);
        }
        self.last.push_back(step);
    }
}

impl Step {
    fn line(&self) -> String {
        match self.times {
            1 => self.text.clone(),
            times => format!("{} ({times} times)", self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(transcript: &Transcript, request: &str, answer: u32) {
        transcript.record(request, || answer, |answer| *answer);
    }

    #[test]
    fn repeated_requests_are_counted_and_the_middle_is_left_out() {
        let transcript = Transcript::default();
        add(&transcript, "read", 1);
        add(&transcript, "read", 1);
        assert_eq!(transcript.lines(), ["read = 1 (2 times)"]);
        for number in 0..500 {
            add(&transcript, "write", number);
        }
        let lines = transcript.lines();
        assert_eq!(lines.len(), FIRST + 1 + LAST);
        assert_eq!(lines[FIRST], format!("[{} requests omitted]", 501 - FIRST - LAST));
        assert_eq!(lines.last().map(String::as_str), Some("write = 499"));
    }

    #[test]
    fn a_request_that_hangs_is_named() {
        let transcript = Transcript::default();
        let seen = transcript.clone();
        transcript.record("reset", || assert_eq!(seen.pending().as_deref(), Some("reset")), |()| "done");
        assert_eq!(transcript.pending(), None);
    }
}
