//! The program of a serial card: it sends bytes through the ports in turn, and receives each one by the card's loopback.
//!
//! The ports' FIFOs are never empty, so that bytes in flight migrate in the card's state.

use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_user::Device;

use super::super::machine::{Memory, Share};
use super::super::messages::Finished;
use super::variables::Variables;
use crate::failure::Failure;

/// Data register of a 16550.
const DATA: u64 = 0;
/// FIFO control register.
const FIFO_CONTROL: u64 = 2;
/// Enables the FIFOs and clears both.
const ENABLE_AND_CLEAR: u8 = 0x07;
/// Line status register.
const LINE_STATUS: u64 = 5;
const DATA_READY: u8 = 0x01;

/// Bytes in flight in each port, half of its FIFO.
const IN_FLIGHT: u64 = 8;
/// Bytes that each port sends in a step.
const BYTES: u64 = 2;
/// Interval between two steps.
const TICK: Duration = Duration::from_millis(2);
/// Timeout for the last bytes.
const DRAINING: Duration = Duration::from_secs(10);

/// The program at a card.
pub(super) struct Program {
    device: Box<dyn Device>,
    memory: Arc<Memory>,
    share: Share,
    ports: u64,
    variables: Variables,
}

/// Prepares the card and its variables.
pub(super) fn set_up(
    mut device: Box<dyn Device>,
    memory: &Memory,
    share: Share,
    ports: u64,
) -> Result<(), Failure> {
    for port in 0..ports {
        device.write_region(port as u32, FIFO_CONTROL, &[ENABLE_AND_CLEAR])?;
    }
    Variables::default().store(memory, share)
}

/// Byte `number`, from 0: consecutive bytes of a port are distinct for longer than its FIFO.
fn byte(number: u64) -> u8 {
    number.wrapping_mul(167).wrapping_add(13) as u8
}

impl Program {
    /// Continues from the variables in memory.
    pub(super) fn new(
        device: Box<dyn Device>,
        memory: &Arc<Memory>,
        share: Share,
        ports: u64,
    ) -> Result<Program, Failure> {
        let variables = Variables::load(memory, share)?;
        Ok(Program { device, memory: memory.clone(), share, ports, variables })
    }

    fn port(&self, number: u64) -> u32 {
        (number % self.ports) as u32
    }

    fn send(&mut self) -> Result<(), Failure> {
        let number = self.variables.progress.submitted;
        self.device.write_region(self.port(number), DATA, &[byte(number)])?;
        self.variables.progress.submitted += 1;
        Ok(())
    }

    /// Receives the next byte, if it has arrived.
    fn receive(&mut self) -> Result<bool, Failure> {
        let number = self.variables.progress.completed;
        let (mut status, mut data) = ([0], [0]);
        self.device.read_region(self.port(number), LINE_STATUS, &mut status)?;
        if status[0] & DATA_READY == 0 {
            return Ok(false);
        }
        self.device.read_region(self.port(number), DATA, &mut data)?;
        self.variables.progress.completed += 1;
        match data[0] {
            due if due == byte(number) => {}
            other if is_near(number, self.ports, other) => self.variables.misplaced += 1,
            _ => self.variables.wrong += 1,
        }
        Ok(true)
    }
}

/// Returns whether a byte is one of those shortly before or after number `number` in its port.
fn is_near(number: u64, ports: u64, data: u8) -> bool {
    let near = 2 * IN_FLIGHT;
    (1..=near).any(|step| {
        let (before, after) = (number.wrapping_sub(step * ports), number.wrapping_add(step * ports));
        data == byte(before) || data == byte(after)
    })
}

impl super::Program for Program {
    fn wait(&self) {
        std::thread::sleep(TICK);
    }

    fn step(&mut self, more: bool) -> Result<(), Failure> {
        for _ in 0..if more { BYTES * self.ports } else { 0 } {
            self.send()?;
        }
        let keep = if more { IN_FLIGHT * self.ports } else { 0 };
        while self.variables.progress.pending() > keep && self.receive()? {}
        self.variables.store(&self.memory, self.share)
    }

    fn resumed(&mut self) {}

    fn finish(&mut self) -> Result<Finished, Failure> {
        let until = Instant::now() + DRAINING;
        while self.variables.progress.pending() > 0 && Instant::now() < until {
            self.step(false)?;
            super::Program::wait(self);
        }
        for port in 0..self.ports {
            let mut status = [0];
            self.device.read_region(port as u32, LINE_STATUS, &mut status)?;
            // A byte that was never sent, or arrived twice.
            self.variables.misplaced += u64::from(status[0] & DATA_READY != 0);
        }
        Ok(Finished {
            program: self.variables.books(),
            completed_by_device: None,
            blocks_checked: 0,
            blocks_wrong: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_out_of_order_is_told_from_a_wrong_one() {
        for ports in [1, 2] {
            assert!(is_near(40, ports, byte(40 + ports)) && is_near(40, ports, byte(40 - ports)));
            assert!(!is_near(40, ports, byte(40 + 64 * ports)));
        }
    }

    #[test]
    fn a_byte_that_is_lost_or_repeated_shows_in_the_next_one() {
        for number in 0..1000 {
            for ports in [1, 2] {
                let later = (1..=16).map(|step| byte(number + step * ports));
                assert!(later.into_iter().all(|other| other != byte(number)), "{number}");
            }
        }
    }
}
