//! What the tests on a real kernel share: the sample driver's devices, and the same work done on any
//! [`Device`].

use whimbrel_user::{DataFile, Device, SavingRead, State};

/// The devices that the lab makes, of one port each.
pub(crate) const FIRST: &str = "00000000-0000-4000-8000-000000000001";
pub(crate) const SECOND: &str = "00000000-0000-4000-8000-000000000002";

/// What a one-port device with "hello mtty" in its FIFO and 0x42 in its scratch register saved, on Linux
/// 6.12.
pub(crate) const RECORDED: [u8; 60] =
    *b"\x4e\x2c\x3e\x8c\x89\x09\x9d\x7e\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\
    \0\0\0\0\0\0\0\x42hello mtty\0\0\0\0\0\0\x0a\0\x0a\0\0\0\0\0\0\x10\0\0";

/// Bytes of the stream before the first port: what a pre-copy state gives.
pub(crate) const HEAD: usize = 24;

/// The stream of a device that nobody has touched.
pub(crate) fn untouched() -> [u8; 60] {
    let mut stream = [0; 60];
    stream[..HEAD].copy_from_slice(&RECORDED[..HEAD]);
    stream[57] = 16; // max_fifo_size
    stream
}

/// Brings a device that may come from another test to RUNNING, as if nobody had touched it. A reset alone
/// keeps the registers.
pub(crate) fn make_fresh(device: &mut dyn Device) {
    device.reset().unwrap();
    restore(device, &untouched());
}

const DATA: u64 = 0;
const LINE_STATUS: u64 = 5;
const SCRATCH: u64 = 7;

pub(crate) fn write_register(device: &mut dyn Device, register: u64, value: u8) {
    device.write_region(0, register, &[value]).unwrap();
}

pub(crate) fn read_register(device: &mut dyn Device, register: u64) -> u8 {
    let mut value = [0];
    device.read_region(0, register, &mut value).unwrap();
    value[0]
}

/// Puts text into the FIFO (the port is a loop) and a value into the scratch register.
pub(crate) fn fill(device: &mut dyn Device, text: &[u8], scratch: u8) {
    for byte in text {
        write_register(device, DATA, *byte);
    }
    write_register(device, SCRATCH, scratch);
}

/// Takes out what [`fill`] put in, as a program does.
pub(crate) fn empty(device: &mut dyn Device) -> (Vec<u8>, u8) {
    let mut text = Vec::new();
    while read_register(device, LINE_STATUS) & 1 != 0 {
        text.push(read_register(device, DATA));
        assert!(text.len() <= 16, "more than the FIFO holds");
    }
    (text, read_register(device, SCRATCH))
}

/// Reads up to the next end, and says which end it was.
pub(crate) fn read_on(data: &mut DataFile, into: &mut Vec<u8>) -> SavingRead {
    let mut buffer = [0; 7];
    loop {
        match data.read(&mut buffer).unwrap() {
            SavingRead::Data(count) => into.extend_from_slice(&buffer[..count]),
            end => return end,
        }
    }
}

/// Saves a running device and lets it run again.
pub(crate) fn save(device: &mut dyn Device) -> Vec<u8> {
    let mut data = device.set_state(State::StopCopy).unwrap().expect("a data file");
    let mut stream = Vec::new();
    assert_eq!(read_on(&mut data, &mut stream), SavingRead::End);
    assert!(device.set_state(State::Running).unwrap().is_none());
    stream
}

/// Saves a running device through `before`, one of the pre-copy states, and lets it run again. Returns what
/// could be read before it stopped, and the rest.
pub(crate) fn save_through(device: &mut dyn Device, before: State) -> (Vec<u8>, Vec<u8>) {
    let mut data = device.set_state(before).unwrap().expect("a data file");
    let mut early = Vec::new();
    assert_eq!(read_on(&mut data, &mut early), SavingRead::TemporaryEnd);
    assert!(device.set_state(State::StopCopy).unwrap().is_none(), "the data file goes on");
    let mut rest = Vec::new();
    assert_eq!(read_on(&mut data, &mut rest), SavingRead::End);
    assert!(device.set_state(State::Running).unwrap().is_none());
    (early, rest)
}

/// Loads a state into a running device and lets it run again.
pub(crate) fn restore(device: &mut dyn Device, stream: &[u8]) {
    let mut data = device.set_state(State::Resuming).unwrap().expect("a data file");
    data.write_all(stream).unwrap();
    assert!(device.set_state(State::Running).unwrap().is_none());
}
