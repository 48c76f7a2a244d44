//! The requests of a case with their answers, in order.

use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Requests kept from the beginning of a case.
const FIRST: usize = 40;
/// Requests kept from its end.
const LAST: usize = 120;
/// Bytes that a file with the requests has at most. It starts over then, with the latest ones.
const LOG_BYTES: u64 = 1 << 20;

/// Stands between a request and its answer.
const ANSWER: &str = " = ";

/// The requests of a case. A clone is another handle to the same list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transcript(Arc<Mutex<Steps>>);

#[derive(Debug, Default)]
struct Steps {
    first: Vec<Step>,
    last: VecDeque<Step>,
    omitted: usize,
    /// The requests that have not returned, the oldest first: more than one only where threads share a data file.
    pending: Vec<Pending>,
    /// The number of requests so far.
    count: u64,
    log: Option<Log>,
}

/// A request that has not returned.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) request: String,
    since: Instant,
    number: u64,
}

impl Pending {
    /// Returns the time since the request began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}

/// The requests in a file, for a process that outlives this one: each is there before it is made.
#[derive(Debug)]
struct Log {
    file: Arc<File>,
    size: u64,
}

#[derive(Debug)]
struct Step {
    text: String,
    times: usize,
}

impl Transcript {
    /// Returns an empty list, which is also written to a file.
    pub(crate) fn logged(file: Option<Arc<File>>) -> Transcript {
        let transcript = Transcript::default();
        transcript.0.lock().log = file.map(Log::new);
        transcript
    }

    /// Returns the lines of a list whose process has ended, from the file.
    pub(crate) fn read(file: &File) -> Vec<String> {
        let mut bytes = vec![0; file.metadata().map_or(0, |file| file.len().min(2 * LOG_BYTES)) as usize];
        let transcript = Transcript::default();
        // What cannot be read is left out: a report without requests is better than none.
        if file.read_exact_at(&mut bytes, 0).is_ok() {
            let mut steps = transcript.0.lock();
            for line in String::from_utf8_lossy(&bytes).lines() {
                if line.contains(ANSWER) {
                    steps.add(line.to_string());
                } else {
                    steps.begin(line.to_string());
                }
            }
        }
        transcript.lines()
    }

    /// Makes a request, and records it with its answer.
    pub(crate) fn record<T, A: Display>(
        &self,
        request: impl Display,
        make: impl FnOnce() -> T,
        answer: impl FnOnce(&T) -> A,
    ) -> T {
        let request = request.to_string();
        let number = {
            let mut steps = self.0.lock();
            steps.log(&request);
            steps.begin(request.clone())
        };
        let result = make();
        let answer = format!("{ANSWER}{}", answer(&result));
        let mut steps = self.0.lock();
        steps.log(&format!("{answer}\n"));
        steps.end(number);
        steps.add(request + &answer);
        result
    }

    /// Makes a call that belongs to no request, but may hang likewise. Several threads may do so at once.
    pub(crate) fn during<T>(&self, what: &str, make: impl FnOnce() -> T) -> T {
        let number = self.0.lock().begin(what.to_string());
        let result = make();
        self.0.lock().end(number);
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
        lines.extend(steps.pending.iter().map(|pending| format!("{} has not returned", pending.request)));
        lines
    }

    /// Returns the oldest request that has not returned, if any.
    pub(crate) fn pending(&self) -> Option<Pending> {
        self.0.lock().pending.first().cloned()
    }

    /// Returns the number of requests so far.
    pub(crate) fn count(&self) -> u64 {
        self.0.lock().count
    }
}

impl Log {
    fn new(file: Arc<File>) -> Log {
        // Should it fail, the requests of the case before are overwritten.
        let _ = file.set_len(0);
        Log { file, size: 0 }
    }

    fn add(&mut self, text: &str) -> io::Result<()> {
        if self.size >= LOG_BYTES {
            self.file.set_len(0)?;
            self.size = 0;
        }
        self.file.write_all_at(text.as_bytes(), self.size)?;
        self.size += text.len() as u64;
        Ok(())
    }
}

impl Steps {
    /// Notes that a request begins, and returns its number.
    fn begin(&mut self, request: String) -> u64 {
        self.count += 1;
        let number = self.count;
        self.pending.push(Pending { request, since: Instant::now(), number });
        number
    }

    fn end(&mut self, number: u64) {
        self.pending.retain(|pending| pending.number != number);
    }

    fn log(&mut self, text: &str) {
        if self.log.as_mut().is_some_and(|log| log.add(text).is_err()) {
            self.log = None;
        }
    }

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

/// Formats the first few of a list, and the number of all.
pub(crate) fn some_of(items: impl ExactSizeIterator<Item = String>, what: &str) -> String {
    const SHOWN: usize = 8;
    let count = items.len();
    let mut shown: Vec<String> = items.take(SHOWN).collect();
    if count > SHOWN {
        shown.push(format!(".. ({count} {what})"));
    }
    shown.join(", ")
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
    fn the_requests_of_a_process_that_has_ended_are_read_from_its_file() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let transcript = Transcript::logged(Some(file.clone()));
        add(&transcript, "read", 1);
        add(&transcript, "read", 1);
        let during = transcript.clone();
        during.record(
            "reset",
            || assert_eq!(Transcript::read(&file), seen("reset has not returned")),
            |()| 0,
        );
        assert_eq!(Transcript::read(&file), seen("reset = 0"));
        for _ in 0..3 * LOG_BYTES / 10 {
            add(&transcript, "write", 2);
        }
        assert!(file.metadata().unwrap().len() < 2 * LOG_BYTES);
        assert!(Transcript::read(&file).last().is_some_and(|line| line.starts_with("write = 2")));
        let next = Transcript::logged(Some(file.clone()));
        assert_eq!(Transcript::read(&file), Vec::<String>::new());
        drop(next);
    }

    fn seen(last: &str) -> Vec<String> {
        vec!["read = 1 (2 times)".to_string(), last.to_string()]
    }

    #[test]
    fn a_request_that_hangs_is_named() {
        let transcript = Transcript::default();
        let seen = transcript.clone();
        let pending = |transcript: &Transcript| transcript.pending().map(|pending| pending.request);
        transcript.record("reset", || assert_eq!(pending(&seen).as_deref(), Some("reset")), |()| "done");
        assert_eq!(pending(&transcript), None);
        // The oldest of several, however they end.
        transcript.during("a read", || {
            transcript.during("another read", || assert_eq!(pending(&seen).as_deref(), Some("a read")));
            assert_eq!(pending(&seen).as_deref(), Some("a read"));
        });
        assert_eq!((pending(&transcript), transcript.count()), (None, 3));
    }
}
