//! Features: settings that the host reads and changes.

use std::time::Duration;

use super::super::command::{Status, SubmissionEntry};
use super::super::controller::Controller;
use super::super::limits::{Limits, NAMESPACE};
use super::super::outcome::Outcome;
use super::events::Event;
use super::log_page::{TEMPERATURE, WARNING_TEMPERATURE};

const ARBITRATION: u8 = 0x01;
const POWER_MANAGEMENT: u8 = 0x02;
const TEMPERATURE_THRESHOLD: u8 = 0x04;
const ERROR_RECOVERY: u8 = 0x05;
const WRITE_CACHE: u8 = 0x06;
const NUMBER_OF_QUEUES: u8 = 0x07;
const INTERRUPT_COALESCING: u8 = 0x08;
const VECTOR_CONFIGURATION: u8 = 0x09;
const WRITE_ATOMICITY: u8 = 0x0a;
const EVENT_CONFIGURATION: u8 = 0x0b;
const TIMESTAMP: u8 = 0x0e;
const KEEP_ALIVE: u8 = 0x0f;

/// SV in dword 10 of Set Features.
const SAVE: u32 = 1 << 31;
/// In the answer to the supported capabilities: the feature can be changed, or is that of a namespace.
const CHANGEABLE: u32 = 1 << 2;
const PER_NAMESPACE: u32 = 1 << 1;

/// Health events: the bit of the temperature, as in the critical warnings.
const TEMPERATURE_EVENT: u32 = 1 << 1;
/// Events that the host may enable: critical warnings, and changed namespace attributes.
const KNOWN_EVENTS: u32 = 0x1f | 1 << 8;

const TIMESTAMP_BYTES: u64 = 8;

/// The values of all features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Features {
    pub(in super::super) arbitration: u32,
    /// Thresholds in kelvins.
    pub(in super::super) over_temperature: u16,
    pub(in super::super) under_temperature: u16,
    pub(in super::super) error_recovery: u32,
    pub(in super::super) write_cache: bool,
    /// I/O queues that the host may create.
    pub(in super::super) submission_queues: u16,
    pub(in super::super) completion_queues: u16,
    pub(in super::super) coalescing: u32,
    /// Vectors without coalescing, one bit each.
    pub(in super::super) not_coalesced: u128,
    pub(in super::super) write_atomicity: u32,
    pub(in super::super) event_configuration: u32,
    pub(in super::super) timestamp: Timestamp,
    /// Timeout in milliseconds; 0 if it is disabled.
    pub(in super::super) keep_alive: u32,
}

/// The host's clock, as the controller continues it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Timestamp {
    /// Milliseconds at `at`.
    pub(in super::super) milliseconds: u64,
    /// The controller's time when the host set it, or when the controller was reset.
    pub(in super::super) at: Duration,
    pub(in super::super) is_set: bool,
}

impl Timestamp {
    /// Returns the milliseconds at this time, of which 48 bits are kept.
    pub(in super::super) fn milliseconds_at(&self, now: Duration) -> u64 {
        let passed = now.saturating_sub(self.at).as_millis() as u64;
        self.milliseconds.wrapping_add(passed) & 0xffff_ffff_ffff
    }
}

impl Features {
    /// Returns the values after a reset of the controller.
    pub(in super::super) fn new(limits: &Limits) -> Features {
        Features {
            arbitration: 0x7,
            over_temperature: WARNING_TEMPERATURE,
            under_temperature: 0,
            error_recovery: 0,
            write_cache: true,
            submission_queues: limits.queues,
            completion_queues: limits.queues,
            coalescing: 0,
            not_coalesced: 0,
            write_atomicity: 0,
            event_configuration: 0,
            timestamp: Timestamp::default(),
            keep_alive: 0,
        }
    }

    /// Returns whether the temperature has crossed a threshold.
    pub(super) fn temperature_is_critical(&self) -> bool {
        TEMPERATURE >= self.over_temperature || TEMPERATURE <= self.under_temperature
    }

    /// Returns whether a controller with these limits can have these values.
    pub(in super::super) fn are_sound(&self, limits: &Limits) -> bool {
        let queues = 1..=limits.queues;
        queues.contains(&self.submission_queues) && queues.contains(&self.completion_queues)
    }
}

pub(super) fn get(
    controller: &Controller,
    entry: &SubmissionEntry,
    now: Duration,
) -> Result<Outcome, Status> {
    let feature = entry.dword10 as u8;
    check_namespace(feature, entry.namespace, Status::INVALID_FIELD)?;
    let defaults = Features::new(&controller.limits);
    let features = match entry.dword10 >> 8 & 0x7 {
        0 => &controller.features,
        // Nothing can be saved: the saved values are the defaults.
        1 | 2 => &defaults,
        3 => return capabilities(feature).map(Outcome::Complete),
        _ => return Err(Status::INVALID_FIELD),
    };
    let result = match feature {
        ARBITRATION => features.arbitration,
        POWER_MANAGEMENT => 0,
        TEMPERATURE_THRESHOLD => match threshold(entry.dword11)? {
            Threshold::Over => u32::from(features.over_temperature),
            Threshold::Under => u32::from(features.under_temperature),
            Threshold::AbsentSensor { over } => {
                if over {
                    0xffff
                } else {
                    0
                }
            }
        },
        ERROR_RECOVERY => features.error_recovery,
        WRITE_CACHE => features.write_cache.into(),
        NUMBER_OF_QUEUES => number_of_queues(features),
        INTERRUPT_COALESCING => features.coalescing,
        VECTOR_CONFIGURATION => {
            let vector = vector(&controller.limits, entry.dword11)?;
            u32::from(vector) | u32::from(features.not_coalesced >> vector & 1 == 1) << 16
        }
        WRITE_ATOMICITY => features.write_atomicity,
        EVENT_CONFIGURATION => features.event_configuration,
        TIMESTAMP => {
            let timestamp = features.timestamp;
            let mut data = timestamp.milliseconds_at(now).to_le_bytes().to_vec();
            // It may have stopped meanwhile, with the device; and its origin: set by the host, or cleared by a reset.
            data[6] = 1 | u8::from(timestamp.is_set) << 1;
            data[7] = 0;
            return Ok(Outcome::ToHost(data));
        }
        KEEP_ALIVE => features.keep_alive,
        _ => return Err(Status::INVALID_FIELD),
    };
    Ok(Outcome::Complete(result))
}

pub(super) fn set(
    controller: &mut Controller,
    entry: &SubmissionEntry,
    now: Duration,
) -> Result<Outcome, Status> {
    let (feature, value) = (entry.dword10 as u8, entry.dword11);
    capabilities(feature)?;
    if entry.dword10 & SAVE != 0 {
        return Err(Status::FEATURE_NOT_SAVEABLE);
    }
    check_namespace(feature, entry.namespace, Status::FEATURE_NOT_PER_NAMESPACE)?;
    let has_io_queues = controller.submissions.len() + controller.completions.len() > 2;
    let limits = &controller.limits;
    let features = &mut controller.features;
    match feature {
        ARBITRATION => features.arbitration = value,
        // There is one power state.
        POWER_MANAGEMENT if value & 0x1f != 0 => return Err(Status::INVALID_FIELD),
        POWER_MANAGEMENT => {}
        TEMPERATURE_THRESHOLD => {
            match threshold(value)? {
                Threshold::Over => features.over_temperature = value as u16,
                Threshold::Under => features.under_temperature = value as u16,
                Threshold::AbsentSensor { .. } => {}
            }
            if features.temperature_is_critical() && features.event_configuration & TEMPERATURE_EVENT != 0 {
                controller.events.raise(Event::TEMPERATURE);
            }
        }
        // DULBE is not supported.
        ERROR_RECOVERY if value & 1 << 16 != 0 => return Err(Status::INVALID_FIELD),
        ERROR_RECOVERY => features.error_recovery = value & 0xffff,
        WRITE_CACHE => features.write_cache = value & 1 != 0,
        NUMBER_OF_QUEUES => {
            if has_io_queues {
                return Err(Status::SEQUENCE_ERROR);
            }
            let [submissions, completions] = [value as u16, (value >> 16) as u16];
            if submissions == u16::MAX || completions == u16::MAX {
                return Err(Status::INVALID_FIELD);
            }
            features.submission_queues = (submissions + 1).min(limits.queues);
            features.completion_queues = (completions + 1).min(limits.queues);
            return Ok(Outcome::Complete(number_of_queues(features)));
        }
        INTERRUPT_COALESCING => features.coalescing = value & 0xffff,
        VECTOR_CONFIGURATION => {
            let bit = 1 << vector(limits, value)?;
            let is_set = value >> 16 & 1 == 1;
            features.not_coalesced =
                if is_set { features.not_coalesced | bit } else { features.not_coalesced & !bit };
        }
        WRITE_ATOMICITY => features.write_atomicity = value & 1,
        EVENT_CONFIGURATION => features.event_configuration = value & KNOWN_EVENTS,
        TIMESTAMP => return Ok(Outcome::FromHost { bytes: TIMESTAMP_BYTES }),
        _ => {
            features.keep_alive = value;
            controller.alive_at = now;
        }
    }
    Ok(Outcome::Complete(0))
}

/// Takes the data of the timestamp, the only feature that has some.
pub(super) fn take_data(controller: &mut Controller, data: &[u8], now: Duration) -> Result<Outcome, Status> {
    let Some((bytes, _)) = data.split_first_chunk::<8>() else { return Err(Status::INVALID_FIELD) };
    let milliseconds = u64::from_le_bytes(*bytes) & 0xffff_ffff_ffff;
    controller.features.timestamp = Timestamp { milliseconds, at: now, is_set: true };
    Ok(Outcome::Complete(0))
}

/// Returns what can be done with a feature.
fn capabilities(feature: u8) -> Result<u32, Status> {
    match feature {
        ERROR_RECOVERY => Ok(CHANGEABLE | PER_NAMESPACE),
        ARBITRATION..=POWER_MANAGEMENT
        | TEMPERATURE_THRESHOLD..=EVENT_CONFIGURATION
        | TIMESTAMP
        | KEEP_ALIVE => Ok(CHANGEABLE),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// Checks the namespace of a command on a feature. `refused` is the status for one that names the namespace of a feature
/// of the controller.
fn check_namespace(feature: u8, namespace: u32, refused: Status) -> Result<(), Status> {
    match namespace {
        0 | u32::MAX => Ok(()),
        NAMESPACE if feature == ERROR_RECOVERY || refused == Status::INVALID_FIELD => Ok(()),
        NAMESPACE => Err(refused),
        _ => Err(Status::INVALID_NAMESPACE),
    }
}

enum Threshold {
    Over,
    Under,
    /// A sensor that this controller does not have.
    AbsentSensor {
        over: bool,
    },
}

fn threshold(value: u32) -> Result<Threshold, Status> {
    let over = match value >> 20 & 0x3 {
        0 => true,
        1 => false,
        _ => return Err(Status::INVALID_FIELD),
    };
    match value >> 16 & 0xf {
        0 => Ok(if over { Threshold::Over } else { Threshold::Under }),
        1..=8 | 0xf => Ok(Threshold::AbsentSensor { over }),
        _ => Err(Status::INVALID_FIELD),
    }
}

fn vector(limits: &Limits, value: u32) -> Result<u16, Status> {
    let vector = value as u16;
    if vector < limits.vectors() { Ok(vector) } else { Err(Status::INVALID_FIELD) }
}

fn number_of_queues(features: &Features) -> u32 {
    u32::from(features.submission_queues - 1) | u32::from(features.completion_queues - 1) << 16
}
