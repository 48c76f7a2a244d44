//! Three devices that are saved and restored together, and what was asked of them in which order.

use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_engine::archive::{Restore, Save};
use whimbrel_user::{DataFile, Local, Migratable, Result, State};

use crate::control::Control;
use crate::decoder::{Account, account, decode};
use crate::device::{Shape, open};
use crate::forward::forward;

pub(crate) const NAMES: [&str; 3] = ["zero", "one", "two"];

/// What was asked of whom, in order.
pub(crate) type Log = Arc<Mutex<Vec<String>>>;

/// A device whose requests for a state are noted, together with those of others.
pub(crate) struct Noted {
    device: Local,
    log: Log,
}

impl Migratable for Noted {
    forward!(device: name, info, probe_feature, migration_flags, state, data_size);
    forward!(device: enable_precopy_info_v2, dma_logging_start, dma_logging_stop, dma_logging_report);

    fn reset(&mut self) -> Result<()> {
        self.log.lock().push(format!("{} reset", self.name()));
        self.device.reset()
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        self.log.lock().push(format!("{} {state}", self.name()));
        self.device.set_state(state)
    }
}

/// Three devices, and what a test holds of them.
pub(crate) struct Trio {
    pub(crate) devices: Vec<Noted>,
    pub(crate) controls: Vec<Control>,
    pub(crate) log: Log,
}

impl Trio {
    /// With states of their own.
    pub(crate) fn new() -> Trio {
        Trio::of(&Shape { size: 4, ..Shape::default() })
    }

    pub(crate) fn of(last: &Shape) -> Trio {
        let log = Log::default();
        let shapes =
            [Shape { size: 4, ..Shape::default() }, Shape { size: 4, ..Shape::default() }, last.clone()];
        let (devices, controls) = NAMES
            .iter()
            .zip(&shapes)
            .map(|(name, shape)| {
                let (device, control) = open(name, shape);
                (Noted { device, log: log.clone() }, control)
            })
            .unzip();
        let trio = Trio { devices, controls, log };
        for (index, control) in trio.controls.iter().enumerate() {
            control.set_state(&[index as u8 + 1; 4]);
        }
        trio
    }

    pub(crate) fn save(&mut self) -> Save<'_> {
        Save::new(self.devices.iter_mut().map(|device| device as &mut dyn Migratable))
    }

    pub(crate) fn restore(&mut self) -> Restore<'_> {
        Restore::new(self.devices.iter_mut().map(|device| device as &mut dyn Migratable))
    }

    pub(crate) fn saved(&mut self) -> Vec<u8> {
        let mut file = Vec::new();
        self.save().write_to(&mut file).unwrap();
        file
    }

    pub(crate) fn assert_works(&mut self, what: &str) {
        for (index, device) in self.devices.iter_mut().enumerate() {
            assert_eq!(device.state().unwrap(), State::Running, "{what}: {index}");
            assert_eq!(self.controls[index].state(), [index as u8 + 1; 4], "{what}: {index}");
        }
    }

    pub(crate) fn assert_fresh(&mut self, what: &str) {
        for (index, device) in self.devices.iter_mut().enumerate() {
            assert_eq!(device.state().unwrap(), State::Running, "{what}: {index}");
            assert!(self.controls[index].is_fresh(), "{what}: {index}");
        }
    }

    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock())
    }
}

pub(crate) fn decoded(file: &[u8]) -> Account {
    account(&decode(file).unwrap()).unwrap()
}
