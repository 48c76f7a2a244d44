//! The devices under test: they are opened for each case.

use std::fmt;
use std::sync::Arc;

use whimbrel_protocol::State;
use whimbrel_user::{Device, Error};

use crate::hooks::{DmaWriter, RegisterProbe};
use crate::stdin::Program;
use crate::stdin::complaint::Complaint;

/// Opens a device.
pub type Opener = Arc<dyn Fn() -> Result<Box<dyn Device>, Error> + Send + Sync>;

/// A second source for a device's migration state, such as debugfs; `None` if it does not tell.
pub type StateWitness = Arc<dyn Fn() -> Option<State> + Send + Sync>;

/// The device under test, and perhaps a second one of the same kind.
#[derive(Clone)]
pub struct Subjects {
    pub(crate) name: String,
    pub(crate) open: Opener,
    pub(crate) second: Option<(String, Opener)>,
    pub(crate) kernel: Option<String>,
    pub(crate) driver: Option<String>,
    pub(crate) state_witness: Option<StateWitness>,
    programs: Vec<Program>,
}

impl Subjects {
    /// Returns one device, opened anew for each case.
    pub fn new(
        name: impl Into<String>,
        open: impl Fn() -> Result<Box<dyn Device>, Error> + Send + Sync + 'static,
    ) -> Subjects {
        Subjects {
            name: name.into(),
            open: Arc::new(open),
            second: None,
            kernel: None,
            driver: None,
            state_witness: None,
            programs: Vec::new(),
        }
    }

    /// Returns a program that stands for a device, started anew for each case.
    pub fn program(program: &Program) -> Subjects {
        let own = program.clone();
        let subjects = Subjects::new(program.name(), move || own.open());
        Subjects { programs: vec![program.clone()], ..subjects }
    }

    /// Adds a program as the second device. It may be the same one, which is started twice then.
    #[must_use]
    pub fn second_program(mut self, program: &Program) -> Subjects {
        let own = program.clone();
        self.programs.push(program.clone());
        self.second(program.name(), move || own.open())
    }

    /// Returns the probe of the registers that a program under test has.
    pub(crate) fn registers(&self) -> Option<Arc<dyn RegisterProbe>> {
        Program::registers(&self.programs)
    }

    /// Returns the way to make a program under test write to memory, if it has one.
    pub(crate) fn writer(&self) -> Option<Arc<dyn DmaWriter>> {
        Program::writer(&self.programs)
    }

    /// Takes what was wrong with a program since the last call, apart from its answers.
    pub(crate) fn complaint(&self) -> Option<Complaint> {
        let complaints: Vec<Complaint> = self.programs.iter().filter_map(Program::complaint).collect();
        let broken = complaints.iter().find(|complaint| matches!(complaint, Complaint::Broken(_)));
        broken.or(complaints.first()).cloned()
    }

    /// Adds a second device of the same kind.
    #[must_use]
    pub fn second(
        self,
        name: impl Into<String>,
        open: impl Fn() -> Result<Box<dyn Device>, Error> + Send + Sync + 'static,
    ) -> Subjects {
        Subjects { second: Some((name.into(), Arc::new(open))), ..self }
    }

    /// Says that the device is the kernel's, with the kernel's release, which decides about known issues.
    #[must_use]
    pub fn kernel(self, release: impl Into<String>) -> Subjects {
        Subjects { kernel: Some(release.into()), ..self }
    }

    /// Says which driver of the kernel the device is bound to, which decides about the driver's known issues.
    #[must_use]
    pub fn driver(self, name: impl Into<String>) -> Subjects {
        Subjects { driver: Some(name.into()), ..self }
    }

    /// Compares the device's state with that of a second source at each query.
    #[must_use]
    pub fn state_witness(self, witness: impl Fn() -> Option<State> + Send + Sync + 'static) -> Subjects {
        Subjects { state_witness: Some(Arc::new(witness)), ..self }
    }
}

impl fmt::Debug for Subjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subjects")
            .field("name", &self.name)
            .field("second", &self.second.as_ref().map(|(name, _)| name))
            .field("kernel", &self.kernel)
            .field("driver", &self.driver)
            .finish_non_exhaustive()
    }
}
