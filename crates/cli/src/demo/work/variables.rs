//! A program's variables, at a fixed place in its device's share of memory.

use vm_memory::{Bytes, GuestAddress};
use whimbrel_models::accel::guest::Progress;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::super::machine::{Memory, Share};
use super::super::messages::Books;
use crate::failure::Failure;

/// Offset of the variables in a share.
const OFFSET: u64 = 0x1000;

/// The variables of a program.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Variables {
    pub(super) progress: Progress,
    pub(super) misplaced: u64,
    pub(super) wrong: u64,
}

impl Variables {
    pub(super) fn load(memory: &Memory, share: Share) -> Result<Variables, Failure> {
        let mut variables = Variables::new_zeroed();
        memory
            .read_slice(variables.as_mut_bytes(), GuestAddress(share.start + OFFSET))
            .map_err(|error| Failure::from_error(&error))?;
        Ok(variables)
    }

    pub(super) fn store(&self, memory: &Memory, share: Share) -> Result<(), Failure> {
        memory
            .write_slice(self.as_bytes(), GuestAddress(share.start + OFFSET))
            .map_err(|error| Failure::from_error(&error))
    }

    pub(super) fn books(&self) -> Books {
        let Variables { progress, misplaced, wrong } = *self;
        Books { submitted: progress.submitted, completed: progress.completed, misplaced, wrong }
    }
}
