//! A 16550 port: its registers, its FIFO and its interrupts.
//!
//! The registers behave as in the kernel's mtty (`samples/vfio-mdev/mtty.c`). The port is a loopback: the transmitter
//! feeds the receiver's FIFO. In three places it behaves as a 16550 and mtty does not:
//!
//! - A full FIFO of 16 bytes can be read. mtty treats it as empty until a reset.
//! - The interrupt identification has only the cause with the highest priority. mtty combines all of them.
//! - A receiver without data is not a cause, even before the first write to the FIFO control register.

/// Size of a port's register block in bytes.
pub(super) const REGISTERS: u64 = 8;

/// Size of the FIFO in bytes.
pub(super) const FIFO_SIZE: usize = 16;

/// Receive and transmit, or the divisor's low byte.
const DATA: u64 = 0;
/// Interrupt enable, or the divisor's high byte.
const IER: u64 = 1;
/// Interrupt identification (read), FIFO control (write).
const IIR_FCR: u64 = 2;
/// Register where the guest reads the interrupt cause.
pub(super) const IDENTIFICATION: u64 = IIR_FCR;
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

const IER_RECEIVED: u8 = 0x01;
const IER_TRANSMITTER_EMPTY: u8 = 0x02;
const IER_LINE_STATUS: u8 = 0x04;
const IER_MODEM_STATUS: u8 = 0x08;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_FIFOS: u8 = 0xc0;

const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR: u8 = 0x06;

const LCR_DIVISOR_LATCH: u8 = 0x80;

const MCR_READY: u8 = 0x03;
const MCR_OUT2: u8 = 0x08;
const MCR_AUTOFLOW: u8 = 0x20;

const LSR_DATA_READY: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_EMPTY: u8 = 0x60;

/// Data carrier detect, data set ready, and a change of the latter.
const MSR_ALWAYS: u8 = 0xa2;
/// Clear to send, and a change of it.
const MSR_CLEAR_TO_SEND: u8 = 0x11;

/// The interrupt that an access causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interrupt {
    /// The port interrupts.
    Raise,
    /// No interrupt.
    None,
}

impl Interrupt {
    fn when(condition: bool) -> Interrupt {
        if condition { Interrupt::Raise } else { Interrupt::None }
    }
}

/// The whole state of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    /// Values of the registers that read back as written: interrupt enable, line control, modem control, scratch.
    pub(super) registers: [u8; 8],
    pub(super) fifo: [u8; FIFO_SIZE],
    /// Position of the next byte to store; below [`FIFO_SIZE`].
    pub(super) head: u8,
    /// Position of the next byte to read; below [`FIFO_SIZE`].
    pub(super) tail: u8,
    /// Bytes in the FIFO, up to [`FIFO_SIZE`]; `tail + count` is `head`, modulo the size.
    pub(super) count: u8,
    pub(super) divisor_latch: bool,
    pub(super) overrun: bool,
    pub(super) divisor: u16,
    pub(super) fifo_control: u8,
    /// Capacity of the FIFO in bytes: 1 with FIFOs off, else [`FIFO_SIZE`].
    pub(super) capacity: u8,
    /// Fill level of the FIFO at which a received byte interrupts; 0 for never.
    pub(super) trigger_level: u8,
}

impl Default for Port {
    /// Returns a port after power-on. As in mtty, the FIFOs are on although the control register says off.
    fn default() -> Port {
        Port {
            registers: [0; 8],
            fifo: [0; FIFO_SIZE],
            head: 0,
            tail: 0,
            count: 0,
            divisor_latch: false,
            overrun: false,
            divisor: 0,
            fifo_control: 0,
            capacity: FIFO_SIZE as u8,
            trigger_level: 0,
        }
    }
}

impl Port {
    fn enabled(&self, interrupt: u8) -> bool {
        self.registers[IER as usize] & interrupt != 0
    }

    /// Writes a register for the guest.
    pub(super) fn write(&mut self, register: u64, value: u8) -> Interrupt {
        match register {
            DATA if self.divisor_latch => self.divisor |= u16::from(value),
            IER if self.divisor_latch => self.divisor |= u16::from(value) << 8,
            DATA => return self.transmit(value),
            IER => {
                self.registers[IER as usize] = value;
                return Interrupt::when(self.enabled(IER_TRANSMITTER_EMPTY) && self.count == 0);
            }
            IIR_FCR => self.control_fifo(value),
            LCR => {
                self.divisor_latch = value & LCR_DIVISOR_LATCH != 0;
                if self.divisor_latch {
                    self.divisor = 0;
                }
                self.registers[LCR as usize] = value;
            }
            MCR => {
                self.registers[MCR as usize] = value;
                return Interrupt::when(
                    self.enabled(IER_MODEM_STATUS) && value & (MCR_OUT2 | MCR_READY) != 0,
                );
            }
            SCR => self.registers[SCR as usize] = value,
            // The status registers are read only; no others exist.
            _ => {}
        }
        Interrupt::None
    }

    fn transmit(&mut self, value: u8) -> Interrupt {
        if self.count >= self.capacity {
            self.overrun = true;
            return Interrupt::when(self.enabled(IER_LINE_STATUS));
        }
        self.fifo[usize::from(self.head)] = value;
        self.head = (self.head + 1) % FIFO_SIZE as u8;
        self.count += 1;
        self.overrun = false;
        Interrupt::when(self.enabled(IER_RECEIVED) && self.count == self.trigger_level)
    }

    fn control_fifo(&mut self, value: u8) {
        self.fifo_control = value;
        if value & FCR_CLEAR != 0 {
            (self.head, self.tail, self.count) = (0, 0, 0);
        }
        // Whatever level the guest chose: the port has no receive timeout, so bytes below the level would wait forever.
        self.trigger_level = 1;
        self.capacity = if value & FCR_ENABLE != 0 { FIFO_SIZE as u8 } else { 1 };
    }

    /// Reads a register for the guest.
    pub(super) fn read(&mut self, register: u64) -> (u8, Interrupt) {
        let value = match register {
            DATA if self.divisor_latch => self.divisor as u8,
            IER if self.divisor_latch => (self.divisor >> 8) as u8,
            DATA => return self.receive(),
            IER => self.registers[IER as usize] & 0x0f,
            IIR_FCR => self.cause() | IIR_FIFOS,
            LCR | MCR | SCR => self.registers[register as usize],
            LSR => self.line_status(),
            MSR => self.modem_status(),
            _ => 0,
        };
        (value, Interrupt::None)
    }

    fn receive(&mut self) -> (u8, Interrupt) {
        let mut value = 0;
        if self.count > 0 {
            value = self.fifo[usize::from(self.tail)];
            self.tail = (self.tail + 1) % FIFO_SIZE as u8;
            self.count -= 1;
        }
        (value, Interrupt::when(self.enabled(IER_TRANSMITTER_EMPTY) && self.count == 0))
    }

    /// Returns whether an interrupt cause is pending, as the guest sees it.
    pub(super) fn has_cause(&self) -> bool {
        self.cause() != IIR_NONE
    }

    fn cause(&self) -> u8 {
        if self.enabled(IER_LINE_STATUS) && self.overrun {
            IIR_LINE_STATUS
        } else if self.enabled(IER_RECEIVED) && self.count > 0 && self.count >= self.trigger_level {
            IIR_RECEIVED
        } else if self.enabled(IER_TRANSMITTER_EMPTY) && self.count == 0 {
            IIR_TRANSMITTER_EMPTY
        } else if self.enabled(IER_MODEM_STATUS) && self.registers[MCR as usize] & MCR_READY != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    fn line_status(&self) -> u8 {
        let mut status = if self.count > 0 { LSR_DATA_READY } else { LSR_EMPTY };
        if self.overrun {
            status |= LSR_OVERRUN;
        }
        status
    }

    fn modem_status(&self) -> u8 {
        let held_off = self.registers[MCR as usize] & MCR_AUTOFLOW != 0 && self.count >= self.capacity;
        if held_off { MSR_ALWAYS } else { MSR_ALWAYS | MSR_CLEAR_TO_SEND }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(port: &mut Port, bytes: &[u8]) -> Vec<Interrupt> {
        bytes.iter().map(|byte| port.write(DATA, *byte)).collect()
    }

    fn read(port: &mut Port, register: u64) -> u8 {
        port.read(register).0
    }

    #[test]
    fn what_is_sent_is_received_in_order_also_from_a_full_fifo() {
        let mut port = Port::default();
        let sent: Vec<u8> = (1..=16).collect();
        send(&mut port, &sent);
        let received: Vec<u8> = (0..16).map(|_| read(&mut port, DATA)).collect();
        assert_eq!(received, sent);
        assert_eq!(read(&mut port, DATA), 0, "an empty receiver gives zero");
    }

    #[test]
    fn a_byte_too_many_is_lost_and_is_an_overrun_until_one_fits_again() {
        let mut port = Port::default();
        send(&mut port, &[7; 17]);
        assert_eq!(port.count, 16);
        assert_eq!(read(&mut port, LSR), LSR_DATA_READY | LSR_OVERRUN);
        read(&mut port, DATA);
        send(&mut port, &[8]);
        assert_eq!(read(&mut port, LSR), LSR_DATA_READY);
    }

    #[test]
    fn without_fifos_there_is_room_for_one_byte() {
        let mut port = Port::default();
        port.write(IIR_FCR, 0);
        send(&mut port, &[1, 2]);
        assert_eq!((port.count, port.overrun), (1, true));
    }

    #[test]
    fn the_fifo_control_register_empties_the_fifo() {
        for clear in [0x02, 0x04, 0x06] {
            let mut port = Port::default();
            send(&mut port, b"abc");
            port.write(IIR_FCR, FCR_ENABLE | clear);
            assert_eq!(read(&mut port, LSR), LSR_EMPTY);
            assert_eq!(port.fifo_control, FCR_ENABLE | clear);
        }
    }

    #[test]
    fn the_divisor_stands_behind_the_first_two_registers_while_its_latch_is_open() {
        let mut port = Port::default();
        port.write(LCR, 0x83);
        port.write(DATA, 0x0c);
        port.write(IER, 0x01);
        assert_eq!((read(&mut port, DATA), read(&mut port, IER)), (0x0c, 0x01));
        port.write(LCR, 0x03);
        assert_eq!(port.divisor, 0x010c);
        assert_eq!(read(&mut port, IER), 0, "the interrupt enable register was not touched");
        assert_eq!(read(&mut port, LSR), LSR_EMPTY, "nothing was sent");
        assert_eq!(read(&mut port, LCR), 0x03);
        port.write(LCR, 0x80);
        assert_eq!(port.divisor, 0, "opening the latch clears the divisor");
    }

    #[test]
    fn registers_that_keep_what_is_written_give_it_back() {
        for (register, written, back) in
            [(IER, 0xff, 0x0f), (LCR, 0x1b, 0x1b), (MCR, 0x1f, 0x1f), (SCR, 0x42, 0x42)]
        {
            let mut port = Port::default();
            port.write(register, written);
            assert_eq!(read(&mut port, register), back, "register {register}");
        }
    }

    #[test]
    fn the_status_registers_cannot_be_written() {
        let mut port = Port::default();
        port.write(LSR, 0xff);
        port.write(MSR, 0);
        assert_eq!(read(&mut port, LSR), LSR_EMPTY);
        assert_eq!(read(&mut port, MSR), 0xb3);
    }

    #[test]
    fn automatic_flow_control_holds_the_sender_off_a_full_fifo() {
        let mut port = Port::default();
        port.write(MCR, MCR_AUTOFLOW);
        send(&mut port, &[0; 15]);
        assert_eq!(read(&mut port, MSR), 0xb3);
        send(&mut port, &[0]);
        assert_eq!(read(&mut port, MSR), 0xa2);
    }

    #[test]
    fn the_cause_with_the_highest_priority_is_identified() {
        let mut port = Port::default();
        assert_eq!(read(&mut port, IIR_FCR), 0xc1);
        port.write(MCR, 0x01);
        port.write(IER, 0x0f);
        assert_eq!(read(&mut port, IIR_FCR), 0xc2);
        send(&mut port, &[1]);
        assert_eq!(read(&mut port, IIR_FCR), 0xc4);
        send(&mut port, &[1; 16]);
        assert_eq!(read(&mut port, IIR_FCR), 0xc6);
        port.write(IER, 0x08);
        assert_eq!(read(&mut port, IIR_FCR), 0xc0);
    }

    #[test]
    fn a_received_byte_interrupts_once_the_fifo_control_register_was_written() {
        let mut port = Port::default();
        port.write(IER, IER_RECEIVED);
        assert_eq!(send(&mut port, &[1]), [Interrupt::None]);
        port.write(IIR_FCR, 0xc0 | FCR_ENABLE | FCR_CLEAR);
        assert_eq!(send(&mut port, &[1, 2]), [Interrupt::Raise, Interrupt::None]);
    }

    #[test]
    fn interrupts_come_only_for_causes_that_are_enabled() {
        let mut port = Port::default();
        assert_eq!(send(&mut port, &[0; 17])[16], Interrupt::None);
        assert_eq!(port.write(IER, IER_LINE_STATUS), Interrupt::None);
        assert_eq!(send(&mut port, &[0]), [Interrupt::Raise], "overrun");
        port.write(IIR_FCR, FCR_ENABLE | FCR_CLEAR);
        assert_eq!(port.write(MCR, MCR_OUT2), Interrupt::None);
        assert_eq!(port.write(IER, IER_TRANSMITTER_EMPTY), Interrupt::Raise, "empty already");
        send(&mut port, &[0, 0]);
        assert_eq!(port.read(DATA).1, Interrupt::None);
        assert_eq!(port.read(DATA).1, Interrupt::Raise, "empty now");
        port.write(IER, IER_MODEM_STATUS);
        for value in [0x08, 0x02, 0x01] {
            assert_eq!(port.write(MCR, value), Interrupt::Raise, "modem control {value}");
        }
        assert_eq!(port.write(MCR, 0x10), Interrupt::None);
    }
}
