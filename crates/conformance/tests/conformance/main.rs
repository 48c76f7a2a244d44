//! Tests of the suite on devices that are known to be sound.

mod models;
