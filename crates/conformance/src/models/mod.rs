//! Probes of the registers of Whimbrel's device models, and a way to make one write to memory (feature `models`): examples
//! of a driver author's own.
//!
//! ```
//! use std::sync::Arc;
//!
//! use whimbrel_conformance::models::SerialProbe;
//! use whimbrel_conformance::{Config, run};
//! use whimbrel_models::Model;
//! use whimbrel_user::Local;
//!
//! let model: Model = "serial?ports=2".parse()?;
//! let mut config = Config::default();
//! config.registers = Some(Arc::new(SerialProbe::default()));
//! config.only = vec!["v2/round-trip/registers".parse()?];
//! let report = run(move || Local::new(model.open("serial 0").expect("memory for a device")), &config);
//! assert_eq!(report.summary().passed, 1, "{report}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod accel;
mod accel_writer;
mod known;
mod serial;

pub use accel::AccelProbe;
pub use accel_writer::AccelWriter;
pub use known::set_hooks;
pub use serial::SerialProbe;
