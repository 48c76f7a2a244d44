//! The rules against tables from a running kernel, searches over every interleaving, and each other.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a failed test")]

mod fsm;
mod handover;
mod region_v1;
