//! Drivers that wrap another driver: mediation, migration regions, fault injection.

pub mod fault;
mod forward;
pub mod mediate;
pub mod migration_region;
