//! The serial card as a user of the device sees it: its regions, its interrupts, and its state on the move.

use std::os::fd::AsFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use proptest::prelude::*;
use whimbrel_device::{DataFile, DeviceFile, Errno, IrqAction, IrqData, ResetRule, State};
use whimbrel_models::Model;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_protocol::precopy::PrecopyBytes;
use whimbrel_uapi::device::{DeviceInfoFlags, IrqInfoFlags};

const HEAD: usize = 24;

/// Saved by the mtty of a Linux 6.12: one port, "hello mtty" in the FIFO, 0x42 in the scratch register.
const RECORDED: [u8; 60] = [
    0x4e, 0x2c, 0x3e, 0x8c, 0x89, 0x09, 0x9d, 0x7e, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x42, 0x68, 0x65,
    0x6c, 0x6c, 0x6f, 0x20, 0x6d, 0x74, 0x74, 0x79, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0a, 0x00, 0x0a,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00,
];

fn open(model: &str) -> DeviceFile {
    model.parse::<Model>().unwrap().open("serial under test").unwrap().into_device()
}

fn write(device: &DeviceFile, port: u32, register: u64, value: u8) {
    assert_eq!(device.write_region(port, register, &[value]), Ok(1));
}

fn read(device: &DeviceFile, port: u32, register: u64) -> u8 {
    let mut value = [0];
    assert_eq!(device.read_region(port, register, &mut value), Ok(1));
    value[0]
}

/// Sends the text and sets the scratch register that [`RECORDED`] has.
fn fill(device: &DeviceFile, port: u32) {
    for byte in b"hello mtty" {
        write(device, port, 0, *byte);
    }
    write(device, port, 7, 0x42);
}

fn read_all(data: &DataFile) -> Vec<u8> {
    let mut state = Vec::new();
    let mut buffer = [0; 256];
    loop {
        match data.read(&mut buffer) {
            Ok(0) | Err(Errno::ENOMSG) => return state,
            Ok(count) => state.extend_from_slice(&buffer[..count]),
            Err(errno) => panic!("{errno}"),
        }
    }
}

fn save(device: &DeviceFile) -> Vec<u8> {
    read_all(&device.set_mig_state(State::StopCopy).unwrap().unwrap())
}

fn resuming(model: &str) -> (DeviceFile, DataFile) {
    let device = open(model);
    let data = device.set_mig_state(State::Resuming).unwrap().unwrap();
    (device, data)
}

/// Sizes of the regions and counts of the interrupts.
fn described(model: &str) -> (Vec<u64>, Vec<Result<u32, Errno>>) {
    let device = open(model);
    let info = device.info();
    assert!(info.flags.contains(DeviceInfoFlags::PCI));
    assert_eq!((info.num_regions, info.num_irqs), (9, 5));
    assert!(device.irq_info(1).unwrap().flags.contains(IrqInfoFlags::NORESIZE));
    let sizes = (0..9).map(|index| device.region_info(index).unwrap().size).collect();
    let counts = (0..5).map(|index| device.irq_info(index).map(|irq| irq.count)).collect();
    (sizes, counts)
}

#[test]
fn it_says_of_itself_what_vfio_pci_says_of_such_a_card() {
    for (model, second) in [("serial?ports=1", 0), ("serial?ports=2", 8)] {
        let (sizes, counts) = described(model);
        assert_eq!(sizes, [8, second, 0, 0, 0, 0, 0, 0x100, 0], "{model}");
        assert_eq!(counts, [Ok(1), Ok(1), Ok(0), Ok(0), Ok(0)], "{model}: 0 for what it lacks");
        assert_eq!(open(model).irq_info(5).err(), Some(Errno::EINVAL), "{model}: no index of a PCI device");
    }
}

#[test]
fn it_says_of_itself_what_mtty_says_where_that_is_asked_for() {
    let lacks = Err(Errno::EINVAL);
    for (model, second) in [("serial?answers=mtty", 0), ("serial?answers=mtty&ports=2", 8)] {
        let (sizes, counts) = described(model);
        assert_eq!(sizes, [8, second, 0, 0, 0, 0, 0, 0xff, 0], "{model}");
        assert_eq!(counts, [Ok(1), Ok(1), lacks, lacks, lacks], "{model}");
    }
}

#[test]
fn its_configuration_space_is_that_of_a_serial_controller() {
    let device = open("serial?ports=2");
    let mut head = [0; 0x40];
    assert_eq!(device.read_region(7, 0, &mut head), Ok(0x40));
    assert_eq!(head[..4], 0x3253_4348u32.to_le_bytes());
    assert_eq!(head[8..12], [0x10, 0x02, 0x00, 0x07]);
    assert_eq!(head[0x10..0x18], [1, 0, 0, 0, 1, 0, 0, 0]);
    device.write_region(7, 0x10, &[0xff; 4]).unwrap();
    device.write_region(7, 0x3c, &[0x0b, 0xff]).unwrap();
    device.read_region(7, 0, &mut head).unwrap();
    assert_eq!(head[0x10..0x14], 0xffff_fff9u32.to_le_bytes());
    assert_eq!(head[0x3c..0x3e], [0x0b, 0x01]);
    let mut name = [0; 15];
    device.read_region(7, 0x60, &mut name).unwrap();
    assert_eq!(&name, b"PCI Serial/UART");
}

#[test]
fn a_wide_access_reaches_one_register_in_each_aligned_part() {
    let device = open("serial");
    write(&device, 0, 7, 0x42);
    write(&device, 0, 4, 0x03);
    let mut all = [0xee; 8];
    assert_eq!(device.read_region(0, 0, &mut all), Ok(8));
    assert_eq!(all, [0, 0, 0, 0, 0x03, 0, 0, 0]);
    let mut end = [0xee; 3];
    assert_eq!(device.read_region(0, 5, &mut end), Ok(3));
    assert_eq!(end, [0x60, 0xb3, 0]);
    let past = device.read_region(0, 8, &mut end);
    assert_eq!(past, Err(Errno::EINVAL));
}

#[test]
fn ports_are_apart() {
    let device = open("serial?ports=2");
    write(&device, 1, 0, b'x');
    assert_eq!(read(&device, 0, 5), 0x60);
    assert_eq!(read(&device, 1, 5), 0x01);
    assert_eq!(read(&device, 1, 0), b'x');
}

#[test]
fn interrupts_reach_the_index_the_user_has_set_up() {
    for index in [0, 1] {
        let device = open("serial");
        let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        device.set_irq_triggers(index, 0, vec![Some(eventfd.as_fd().try_clone_to_owned().unwrap())]).unwrap();
        write(&device, 0, 2, 0x01);
        assert!(eventfd.read().is_err());
        write(&device, 0, 1, 0x01);
        write(&device, 0, 0, b'!');
        assert_eq!(eventfd.read().unwrap(), 1, "index {index}");
    }
}

/// A card whose INTx is set up, with the eventfd that is told.
fn open_with_line(model: &str) -> (DeviceFile, EventFd) {
    let device = open(model);
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    device.set_irq_triggers(0, 0, vec![Some(eventfd.as_fd().try_clone_to_owned().unwrap())]).unwrap();
    (device, eventfd)
}

fn unmask(device: &DeviceFile) {
    device.set_irqs(0, 0, IrqAction::Unmask, IrqData::None(1)).unwrap();
}

#[test]
fn the_line_masks_itself_and_waits_until_the_guest_has_looked() {
    let (device, eventfd) = open_with_line("serial?ports=2");
    let (enable, identification, transmit_empty) = (1, 2, 2);
    write(&device, 0, enable, transmit_empty);
    assert_eq!(eventfd.read().unwrap(), 1);
    write(&device, 1, enable, transmit_empty);
    assert!(eventfd.read().is_err(), "the line masks itself");
    read(&device, 0, identification);
    unmask(&device);
    assert_eq!(eventfd.read().unwrap(), 1, "the other port still asserts it");
    read(&device, 1, identification);
    unmask(&device);
    assert!(eventfd.read().is_err(), "both have been looked at");
    write(&device, 0, enable, transmit_empty);
    assert_eq!(eventfd.read().unwrap(), 1);
    write(&device, 0, enable, 0);
    unmask(&device);
    assert!(eventfd.read().is_err(), "without a cause the line is low");
    write(&device, 0, enable, transmit_empty);
    assert_eq!(eventfd.read().unwrap(), 1);
    device.reset().unwrap();
    unmask(&device);
    assert!(eventfd.read().is_err(), "nor after a reset");
}

#[test]
fn a_cause_that_was_loaded_asserts_the_line_when_the_card_runs() {
    let source = open("serial");
    write(&source, 0, 1, 0x02);
    let state = save(&source);
    let (device, eventfd) = open_with_line("serial");
    let data = device.set_mig_state(State::Resuming).unwrap().unwrap();
    assert_eq!(data.write(&state), Ok(state.len()));
    device.set_mig_state(State::Stop).unwrap();
    assert!(eventfd.read().is_err(), "a stopped card does not interrupt");
    device.set_mig_state(State::Running).unwrap();
    assert_eq!(eventfd.read().unwrap(), 1);
}

#[test]
fn it_saves_what_the_kernel_saves() {
    let device = open("serial");
    fill(&device, 0);
    assert_eq!(save(&device), RECORDED);
}

#[test]
fn it_loads_what_the_kernel_saved() {
    let (device, data) = resuming("serial");
    assert_eq!(data.write(&RECORDED), Ok(60));
    device.set_mig_state(State::Running).unwrap();
    let received: Vec<u8> = (0..10).map(|_| read(&device, 0, 0)).collect();
    assert_eq!(received, b"hello mtty");
    assert_eq!(read(&device, 0, 7), 0x42);
    assert_eq!(read(&device, 0, 5), 0x60);
}

#[test]
fn a_card_with_two_ports_has_two_records() {
    let source = open("serial?ports=2");
    fill(&source, 1);
    let state = save(&source);
    assert_eq!(state.len(), 96);
    assert_eq!(state[16..20], 2u32.to_ne_bytes());
    assert_eq!(state[60..], RECORDED[HEAD..], "the second port is where the only one would be");
    let (destination, data) = resuming("serial?ports=2");
    data.write(&state).unwrap();
    assert_eq!(save(&destination), state);
}

#[test]
fn precopy_gives_the_head_and_stop_copy_the_rest() {
    let device = open("serial");
    fill(&device, 0);
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let initial = |expected| {
        let bytes = data.precopy_info().unwrap().bytes;
        assert_eq!(bytes, PrecopyBytes { initial: expected, dirty: 0 });
    };
    initial(24);
    let mut part = [0; 10];
    assert_eq!(data.read(&mut part), Ok(10));
    initial(14);
    assert_eq!(read_all(&data).len(), 14);
    initial(0);
    write(&device, 0, 7, 0x43);
    assert!(device.set_mig_state(State::StopCopy).unwrap().is_none(), "the session goes on");
    let rest = read_all(&data);
    assert_eq!(rest.len(), 36);
    assert_eq!(rest[7], 0x43, "the ports are as they were when the device stopped");
    assert_eq!(data.read(&mut part), Ok(0));
}

#[test]
fn the_data_size_is_that_of_the_whole_stream() {
    for (model, size) in [("serial?ports=1", 60), ("serial?ports=2", 96)] {
        assert_eq!(open(model).mig_data_size(), Ok(size));
    }
}

#[test]
fn a_head_that_does_not_fit_is_refused_at_its_first_wrong_byte_and_poisons_the_load() {
    for at in 0..HEAD {
        let mut state = RECORDED;
        state[at] ^= 0x10;
        let (device, data) = resuming("serial");
        for (index, byte) in state.iter().enumerate() {
            let expected = if index < at { Ok(1) } else { Err(Errno::EINVAL) };
            assert_eq!(data.write(&[*byte]), expected, "byte {index}, wrong from {at}");
        }
        assert_eq!(device.set_mig_state(State::Running).unwrap_err(), Errno::EINVAL);
        assert_eq!(device.mig_state(), Ok(State::Resuming));
        device.reset().unwrap();
        assert_eq!(device.mig_state(), Ok(State::Running));
        assert_eq!(read(&device, 0, 7), 0, "nothing of it was loaded");
    }
}

#[test]
fn the_state_of_a_card_with_another_number_of_ports_is_refused() {
    for (from, to) in [("serial?ports=1", "serial?ports=2"), ("serial?ports=2", "serial?ports=1")] {
        let (_device, data) = resuming(to);
        assert_eq!(data.write(&save(&open(from))[..HEAD]), Err(Errno::EINVAL));
    }
}

#[test]
fn contents_that_no_port_can_have_are_refused() {
    // Offsets in a port's record.
    let (head, tail, count, latch, overrun, capacity, level) = (24, 25, 26, 27, 28, 33, 34);
    let cases: [&[(usize, u8)]; 11] = [
        &[(head, 16)],
        &[(head, 255), (count, 255)],
        &[(tail, 16)],
        &[(count, 17)],
        &[(count, 9)],
        &[(head, 11)],
        &[(latch, 2)],
        &[(overrun, 255)],
        &[(capacity, 0)],
        &[(capacity, 17)],
        &[(level, 17)],
    ];
    for case in cases {
        let mut state = RECORDED;
        for (offset, value) in case {
            state[HEAD + offset] = *value;
        }
        let (device, data) = resuming("serial");
        assert_eq!(data.write(&state), Err(Errno::EINVAL), "{case:?}");
        assert_eq!(data.write(&RECORDED), Err(Errno::EINVAL), "{case:?}: the right one comes too late");
        assert_eq!(device.set_mig_state(State::Stop).unwrap_err(), Errno::EINVAL, "{case:?}");
    }
}

#[test]
fn a_short_stream_leaves_the_device_resuming_until_the_rest_is_there() {
    for length in 0..RECORDED.len() {
        let (device, data) = resuming("serial");
        assert_eq!(data.write(&RECORDED[..length]), Ok(length));
        assert_eq!(device.set_mig_state(State::Stop).unwrap_err(), Errno::EINVAL, "{length} bytes");
        assert_eq!(device.mig_state(), Ok(State::Resuming));
        assert_eq!(data.write(&RECORDED[length..]), Ok(60 - length));
        device.set_mig_state(State::Stop).unwrap();
    }
}

#[test]
fn bytes_past_the_end_are_refused_and_the_load_still_succeeds() {
    let (device, data) = resuming("serial");
    assert_eq!(data.write(&[&RECORDED[..], &[0]].concat()), Err(Errno::ENOMEM));
    data.write(&RECORDED).unwrap();
    assert_eq!(data.write(&[0]), Err(Errno::ENOMEM));
    device.set_mig_state(State::Running).unwrap();
}

#[test]
fn reset_leads_back_to_power_on_from_every_state() {
    for state in State::ALL.into_iter().filter(|state| *state != State::Error) {
        let device = open("serial");
        fill(&device, 0);
        let data = device.set_mig_state(state).unwrap();
        device.reset().unwrap();
        assert_eq!(device.mig_state(), Ok(State::Running), "{state}");
        assert_eq!((read(&device, 0, 5), read(&device, 0, 7)), (0x60, 0), "{state}");
        if let Some(data) = data {
            let ended = match state {
                State::Resuming => data.write(&[0]),
                _ => data.read(&mut [0]),
            };
            assert_eq!(ended, Err(Errno::ENODEV), "{state}");
        }
    }
}

#[test]
fn a_reset_that_keeps_precopy_keeps_what_was_read_and_the_ports_are_those_after_it() {
    for state in [State::PreCopy, State::PreCopyP2p] {
        let device = open("serial");
        device.set_reset_rule(ResetRule::KeepsPrecopy).unwrap();
        fill(&device, 0);
        let data = device.set_mig_state(state).unwrap().unwrap();
        let mut stream = vec![0; 10];
        assert_eq!(data.read(&mut stream), Ok(10));
        device.reset().unwrap();
        assert_eq!(device.mig_state(), Ok(state));
        assert_eq!((read(&device, 0, 5), read(&device, 0, 7)), (0x60, 0), "{state}");
        let bytes = data.precopy_info().unwrap().bytes;
        assert_eq!(bytes, PrecopyBytes { initial: 14, dirty: 0 }, "{state}");
        write(&device, 0, 7, 0x24);
        device.set_mig_state(State::StopCopy).unwrap();
        stream.extend(read_all(&data));
        let (there, incoming) = resuming("serial");
        incoming.write(&stream).unwrap();
        there.set_mig_state(State::Running).unwrap();
        assert_eq!((read(&there, 0, 5), read(&there, 0, 7)), (0x60, 0x24), "{state}");
    }
}

#[test]
fn it_logs_no_dma_because_it_does_none() {
    let device = open("serial");
    let mut ranges = LoggingRanges::new(4096, 1).unwrap();
    ranges.push(0, 0x10000).unwrap();
    for _ in 0..2 {
        assert_eq!(device.dma_logging_start(&ranges), Ok(4096));
    }
    let mut words = [0];
    device.dma_logging_report(&mut DirtyReport::new(0, 0x10000, 4096, &mut words).unwrap()).unwrap();
    assert_eq!(words, [0]);
    device.dma_logging_stop().unwrap();
    device.dma_logging_stop().unwrap();
}

/// What a guest does to one port.
#[derive(Clone, Copy, Debug)]
enum Access {
    Read(u64),
    Write(u64, u8),
}

fn accesses() -> impl Strategy<Value = Vec<Access>> {
    let access = prop_oneof![
        (0u64..8).prop_map(Access::Read),
        (0u64..8, any::<u8>()).prop_map(|(register, value)| Access::Write(register, value)),
        any::<u8>().prop_map(|value| Access::Write(0, value)),
    ];
    proptest::collection::vec(access, 0..120)
}

proptest! {
    #[test]
    fn after_any_use_a_card_moves_and_goes_on_as_it_would_have(
        before in accesses(),
        after in accesses(),
        read_cut in 1usize..61,
        write_cut in 1usize..61,
    ) {
        let source = open("serial");
        let apply = |device: &DeviceFile, accesses: &[Access]| -> Vec<u8> {
            accesses.iter().filter_map(|access| match *access {
                Access::Read(register) => Some(read(device, 0, register)),
                Access::Write(register, value) => {
                    write(device, 0, register, value);
                    None
                }
            }).collect()
        };
        apply(&source, &before);
        let data = source.set_mig_state(State::StopCopy).unwrap().unwrap();
        let mut state = Vec::new();
        let mut buffer = vec![0; read_cut];
        loop {
            match data.read(&mut buffer).unwrap() {
                0 => break,
                count => state.extend_from_slice(&buffer[..count]),
            }
        }
        let (destination, data) = resuming("serial");
        for part in state.chunks(write_cut) {
            prop_assert_eq!(data.write(part), Ok(part.len()));
        }
        destination.set_mig_state(State::Running).unwrap();
        source.set_mig_state(State::Running).unwrap();
        prop_assert_eq!(apply(&destination, &after), apply(&source, &after));
        prop_assert_eq!(save(&destination), save(&source));
    }
}
