//! The registers of the `serial` model, and of the kernel's mtty, which has the same.

use whimbrel_user::{Device, Error};

use crate::hooks::RegisterProbe;

/// The probe of the `serial` model.
///
/// A look takes the received bytes out of the FIFO and sends them again: the port is a loopback.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SerialProbe;

/// Receive and transmit, or the divisor's low byte.
const DATA: u64 = 0;
/// Interrupt enable, or the divisor's high byte.
const IER: u64 = 1;
/// Interrupt identification (read), FIFO control (write).
const IIR_FCR: u64 = 2;
/// Line control.
const LCR: u64 = 3;
/// Modem control.
const MCR: u64 = 4;
/// Line status.
const LSR: u64 = 5;
/// Modem status.
const MSR: u64 = 6;
/// Scratch.
const SCR: u64 = 7;

const LCR_DIVISOR_LATCH: u8 = 0x80;
const LSR_DATA_READY: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR: u8 = 0x06;
const FIFO_SIZE: usize = 16;
/// Regions of the two ports.
const PORTS: std::ops::Range<u32> = 0..2;

/// One port of a card.
struct Port<'a> {
    device: &'a mut dyn Device,
    region: u32,
}

impl Port<'_> {
    fn read(&mut self, register: u64) -> Result<u8, Error> {
        let mut value = [0];
        self.device.read_region(self.region, register, &mut value)?;
        Ok(value[0])
    }

    fn write(&mut self, register: u64, value: u8) -> Result<(), Error> {
        self.device.write_region(self.region, register, &[value])
    }

    fn change(&mut self, random: &mut fastrand::Rng) -> Result<(), Error> {
        self.write(LCR, 0)?;
        // One in four ports has no FIFO, and room for one byte.
        let has_fifo = random.u8(..4) > 0;
        self.write(IIR_FCR, FCR_CLEAR | if has_fifo { FCR_ENABLE } else { 0 })?;
        // Causes that come and go with the received bytes; those of the transmitter would interrupt at once.
        self.write(IER, random.u8(..) & 0x05)?;
        self.write(MCR, random.u8(..) & 0x3c)?;
        self.write(SCR, random.u8(1..))?;
        // One in four FIFOs has an overrun.
        let sent = if random.u8(..4) == 0 { FIFO_SIZE + 1 } else { random.usize(1..FIFO_SIZE) };
        for _ in 0..sent {
            self.write(DATA, random.u8(..))?;
        }
        let line = random.u8(..) & 0x1f;
        self.write(LCR, line)?;
        if random.bool() {
            // Opening the latch clears the divisor.
            self.write(LCR, line | LCR_DIVISOR_LATCH)?;
            self.write(DATA, random.u8(1..))?;
            self.write(IER, random.u8(..))?;
        }
        Ok(())
    }

    fn look(&mut self, seen: &mut Vec<u8>) -> Result<(), Error> {
        let line = self.read(LCR)?;
        seen.push(line);
        let has_latch = line & LCR_DIVISOR_LATCH != 0;
        let mut divisor = [0; 2];
        if has_latch {
            divisor = [self.read(DATA)?, self.read(IER)?];
            self.write(LCR, line & !LCR_DIVISOR_LATCH)?;
        }
        seen.extend(divisor);
        let status = self.read(LSR)?;
        seen.extend([status, self.read(IER)?, self.read(MCR)?, self.read(MSR)?, self.read(SCR)?]);
        let mut received = Vec::new();
        while received.len() < FIFO_SIZE && self.read(LSR)? & LSR_DATA_READY != 0 {
            received.push(self.read(DATA)?);
        }
        for byte in &received {
            self.write(DATA, *byte)?;
        }
        if status & LSR_OVERRUN != 0 {
            // Sending has cleared the overrun, which only a full FIFO has: one byte too many sets it again.
            self.write(DATA, 0)?;
        }
        seen.push(received.len() as u8);
        seen.extend(received);
        if has_latch {
            self.write(LCR, line)?;
            self.write(DATA, divisor[0])?;
            self.write(IER, divisor[1])?;
        }
        Ok(())
    }
}

/// Calls a function for each port of a card.
fn each_port(
    device: &mut dyn Device,
    mut act: impl FnMut(&mut Port<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    for region in PORTS {
        if device.region_info(region)?.size > 0 {
            act(&mut Port { device: &mut *device, region })?;
        }
    }
    Ok(())
}

impl RegisterProbe for SerialProbe {
    fn change(&self, device: &mut dyn Device, seed: u64) -> Result<(), Error> {
        let mut random = fastrand::Rng::with_seed(seed);
        each_port(device, |port| port.change(&mut random))
    }

    fn look(&self, device: &mut dyn Device) -> Result<Vec<u8>, Error> {
        let mut seen = Vec::new();
        each_port(device, |port| port.look(&mut seen))?;
        Ok(seen)
    }
}
