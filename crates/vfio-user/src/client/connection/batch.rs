//! Several requests in flight at once: the next ones are sent before the first is answered.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use whimbrel_protocol::Errno;
use whimbrel_user::{Error, Result};

use super::outgoing::{Outgoing, check};
use super::{Command, Connection, Failed, Step, malformed};
use crate::message::{Reply, Request};
use crate::socket::SocketError;

/// Maximum requests in flight. Enough that neither side waits for the other to wake up, and within the kernel's limit
/// on descriptors in flight.
const WINDOW: usize = 64;
/// Bytes to collect before they are sent.
const BYTES: usize = 64 << 10;

/// A batch of requests of one kind.
pub(in crate::client) struct Batch<W, R, T> {
    /// The number of requests.
    pub(in crate::client) count: usize,
    /// Returns the name of a request for error messages.
    pub(in crate::client) what: W,
    /// Returns a request, with the descriptor that goes with it.
    pub(in crate::client) request: R,
    /// Processes the reply to a request, or says what is wrong with it.
    pub(in crate::client) take: T,
}

impl Connection {
    /// Sends all requests in order and processes their replies. Requests after a failed one are still sent; the first
    /// error is returned.
    pub(in crate::client) fn ask_all<'a, W, R, T>(&mut self, mut batch: Batch<W, R, T>) -> Result<()>
    where
        W: Fn(usize) -> String,
        R: Fn(usize) -> (Request<'a>, Option<BorrowedFd<'a>>),
        T: FnMut(usize, Reply<'_>) -> std::result::Result<(), String>,
    {
        if batch.count == 0 {
            return Ok(());
        }
        self.check(|| (batch.what)(0))?;
        let mut out = Outgoing::new(std::mem::take(&mut self.out));
        let mut done = 0;
        let mut first = None;
        let ended = self.run(&mut batch, &mut out, &mut done, &mut first);
        self.out = out.into_buffer();
        if let Err(failed) = ended {
            return Err(self.failed((batch.what)(done.min(batch.count - 1)), failed));
        }
        self.serve_read_ahead();
        first.map_or(Ok(()), Err)
    }

    fn run<'a, W, R, T>(
        &mut self,
        batch: &mut Batch<W, R, T>,
        out: &mut Outgoing<'a>,
        done: &mut usize,
        first: &mut Option<Error>,
    ) -> std::result::Result<(), Failed>
    where
        W: Fn(usize) -> String,
        R: Fn(usize) -> (Request<'a>, Option<BorrowedFd<'a>>),
        T: FnMut(usize, Reply<'_>) -> std::result::Result<(), String>,
    {
        let mut under_way: VecDeque<(u16, Command)> = VecDeque::with_capacity(batch.count.min(WINDOW));
        let mut next = 0;
        let mut deadline = self.deadline();
        while *done < batch.count {
            while next < batch.count && under_way.len() < WINDOW && out.len() < BYTES {
                let (request, descriptor) = (batch.request)(next);
                if descriptor.is_some() && !out.is_empty() {
                    break;
                }
                let id = self.new_id();
                out.buffer().request(id, false, &request);
                if let Some(descriptor) = descriptor {
                    out.attach(&[descriptor]);
                }
                under_way.push_back((id, request.command()));
                next += 1;
            }
            match self.push(out) {
                // It may have said something before, which is still to be read.
                Err(Failed::Socket(SocketError::HungUp { .. })) => out.forget(),
                pushed => pushed?,
            }
            if out.is_empty() && next < batch.count && under_way.len() < WINDOW {
                continue;
            }
            loop {
                let awaited = under_way.front().copied();
                let reply = match self.exchange(awaited, deadline, out)? {
                    Some(Step::Reply(_)) => Ok(()),
                    Some(Step::Refused(errno)) => Err(errno),
                    Some(Step::Served) | None => {
                        check(deadline)?;
                        break;
                    }
                };
                if let Some((_, command)) = under_way.pop_front()
                    && let Err(error) = self.judge(batch, *done, command, reply)
                {
                    first.get_or_insert(error);
                }
                *done += 1;
                deadline = self.deadline();
                if under_way.is_empty() || !self.receiver.is_ready() {
                    break;
                }
            }
        }
        // Answers to the server.
        self.drain(out, self.deadline())
    }

    /// Converts a reply into the result of its request.
    fn judge<W, R, T>(
        &self,
        batch: &mut Batch<W, R, T>,
        number: usize,
        command: Command,
        reply: std::result::Result<(), u32>,
    ) -> Result<()>
    where
        W: Fn(usize) -> String,
        T: FnMut(usize, Reply<'_>) -> std::result::Result<(), String>,
    {
        let what = || (batch.what)(number);
        reply.map_err(|errno| self.refusal(what(), command, errno, Errno::EIO))?;
        let reply = Reply::parse(command, &self.payload, self.limits());
        let reply = reply.map_err(|error| malformed(&self.name, what(), &error))?;
        (batch.take)(number, reply).map_err(|wrong| self.invalid_reply((batch.what)(number), wrong))
    }
}
