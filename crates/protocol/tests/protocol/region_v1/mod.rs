//! Migration through a region: v1 and the draft, each half by itself and the two against each other.

mod draft;
mod halves;
mod hostile;
mod qemu;
mod qemu_record;
mod sentences;
mod support;
