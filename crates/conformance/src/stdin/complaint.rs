//! Defects of a program under test, apart from its answers. They decide about the case that ran.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// The reason a program gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Complaint {
    /// The program does not implement this request.
    Unimplemented(String),
    /// The program broke the protocol, ended or was silent.
    Broken(String),
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Complaint::Unimplemented(request) => write!(f, "the program does not implement '{request}'"),
            Complaint::Broken(why) => f.write_str(why),
        }
    }
}

/// The complaints about all processes of a program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Complaints(Arc<Mutex<Option<Complaint>>>);

impl Complaints {
    /// Adds a complaint. The first one about a broken program counts, else the first one.
    pub(super) fn add(&self, complaint: &Complaint) {
        let mut kept = self.0.lock();
        if !matches!(&*kept, Some(Complaint::Broken(_)))
            && (kept.is_none() || matches!(complaint, Complaint::Broken(_)))
        {
            *kept = Some(complaint.clone());
        }
    }

    /// Takes the complaint since the last call.
    pub(crate) fn take(&self) -> Option<Complaint> {
        self.0.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_program_counts_for_more_than_one_that_lacks_a_request() {
        let complaints = Complaints::default();
        let lacks = Complaint::Unimplemented("reset".to_string());
        let broken = Complaint::Broken("it ended".to_string());
        complaints.add(&lacks);
        complaints.add(&broken);
        complaints.add(&lacks);
        complaints.add(&Complaint::Broken("later".to_string()));
        assert_eq!(complaints.take(), Some(broken));
        assert_eq!(complaints.take(), None);
    }
}
