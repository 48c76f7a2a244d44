//! The connection to a program that a device and its data files share.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use whimbrel_protocol::Errno;
use whimbrel_user::{Error, Operation};

use super::codec::{Answer, Request};
use super::complaint::{Complaint, Complaints};
use super::process::Process;

/// The connection to one process of a program, which ends with the last clone.
#[derive(Clone)]
pub(super) struct Connection {
    process: Arc<Mutex<Running>>,
    complaints: Complaints,
    /// The id of the process.
    id: u32,
}

struct Running {
    process: Process,
    complaints: Complaints,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(complaint) = self.process.finish() {
            self.complaints.add(&complaint);
        }
    }
}

/// A connection that ends when nobody else has it.
pub(super) struct WeakConnection {
    process: Weak<Mutex<Running>>,
    complaints: Complaints,
    id: u32,
}

impl WeakConnection {
    /// Returns the connection, unless it has ended.
    pub(super) fn upgrade(&self) -> Option<Connection> {
        let process = self.process.upgrade()?;
        Some(Connection { process, complaints: self.complaints.clone(), id: self.id })
    }

    /// Returns whether the connection has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.process.strong_count() == 0
    }

    /// Returns the id of the process.
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

/// A request without a successful answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The driver's error.
    Errno(Errno),
    /// The program gave no answer.
    Complaint(Complaint),
}

/// A successful answer.
pub(super) struct Reply {
    numbers: Vec<i128>,
    pub(super) bytes: Vec<u8>,
    request: String,
}

impl Connection {
    pub(super) fn new(process: Process, complaints: Complaints) -> Connection {
        let id = process.id();
        let running = Running { process, complaints: complaints.clone() };
        Connection { process: Arc::new(Mutex::new(running)), complaints, id }
    }

    /// Returns the id of the process.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    pub(super) fn downgrade(&self) -> WeakConnection {
        let (process, complaints) = (Arc::downgrade(&self.process), self.complaints.clone());
        WeakConnection { process, complaints, id: self.id }
    }

    /// Makes a request.
    pub(super) fn ask(&self, request: &Request<'_>) -> Result<Reply, Failure> {
        self.ask_quietly(request).inspect_err(|failure| {
            if let Failure::Complaint(complaint) = failure {
                self.complaints.add(complaint);
            }
        })
    }

    /// Makes a request that the program need not implement.
    pub(super) fn ask_quietly(&self, request: &Request<'_>) -> Result<Reply, Failure> {
        match self.process.lock().process.ask(request) {
            Ok((Answer::Ok(numbers), bytes)) => Ok(Reply { numbers, bytes, request: request.to_string() }),
            Ok((Answer::Errno(errno), _)) => Err(Failure::Errno(errno)),
            Ok((Answer::Unimplemented, _)) => {
                Err(Failure::Complaint(Complaint::Unimplemented(request.to_string())))
            }
            Err(complaint @ Complaint::Broken(_)) => {
                self.complaints.add(&complaint);
                Err(Failure::Complaint(complaint))
            }
            Err(complaint) => Err(Failure::Complaint(complaint)),
        }
    }

    /// Records that an answer is invalid.
    pub(super) fn invalid(&self, why: String) -> Failure {
        let complaint = Complaint::Broken(why);
        self.complaints.add(&complaint);
        Failure::Complaint(complaint)
    }

    /// Returns a number of an answer, or records that it is invalid.
    pub(super) fn number<T: TryFrom<i128>>(&self, reply: &Reply, at: usize) -> Result<T, Failure> {
        let number = reply.numbers.get(at).copied();
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
            let found = number.map_or_else(|| "nothing".to_string(), |number| number.to_string());
            self.invalid(format!("invalid answer to '{}': {found} is out of range", reply.request))
        })
    }
}

impl Failure {
    /// Returns the error of a device's request.
    pub(super) fn of(self, device: &str, request: impl Into<Operation>) -> Error {
        match self {
            Failure::Errno(errno) => Error::request(device, request, errno),
            Failure::Complaint(Complaint::Broken(why)) => Error::answer(device, request, why),
            Failure::Complaint(complaint) => Error::unusable(device, complaint.to_string()),
        }
    }

    /// Returns the errno of a data file's request.
    pub(super) fn errno(&self) -> Errno {
        match self {
            Failure::Errno(errno) => *errno,
            Failure::Complaint(_) => Errno::EPROTO,
        }
    }
}
