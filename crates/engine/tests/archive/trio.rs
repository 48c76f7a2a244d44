//! Three devices that are saved and restored together, and what was asked of them in which order.

use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_engine::archive::{Restore, Save};
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::info::Info;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::{DataFile, Local, Migratable, MigrationFlags, Result, State};

use crate::control::Control;
use crate::decoder::{Account, account, decode};
use crate::device::{Shape, open};

pub(crate) const NAMES: [&str; 3] = ["zero", "one", "two"];

/// What was asked of whom, in order.
pub(crate) type Log = Arc<Mutex<Vec<String>>>;

/// A device whose requests for a state are noted, together with those of others.
pub(crate) struct Noted {
    device: Local,
    log: Log,
}

impl Migratable for Noted {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn info(&mut self) -> Result<Info> {
        self.device.info()
    }

    fn reset(&mut self) -> Result<()> {
        self.log.lock().push(format!("{} reset", self.name()));
        self.device.reset()
    }

    fn probe_feature(&mut self, feature: Feature, directions: FeatureFlags) -> Result<bool> {
        self.device.probe_feature(feature, directions)
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        self.device.migration_flags()
    }

    fn state(&mut self) -> Result<State> {
        self.device.state()
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        self.log.lock().push(format!("{} {state}", self.name()));
        self.device.set_state(state)
    }

    fn data_size(&mut self) -> Result<u64> {
        self.device.data_size()
    }

    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        self.device.enable_precopy_info_v2()
    }

    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        self.device.dma_logging_start(page_size, ranges)
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        self.device.dma_logging_stop()
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        self.device.dma_logging_report(report)
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
