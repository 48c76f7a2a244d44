//! What the server answers to each command that is right.

use std::io::Read;
use std::os::fd::AsFd;

use whimbrel_device::{DeviceInfoFlags, Errno, IrqInfoFlags, RegionInfoFlags};
use whimbrel_uapi::device::IrqSetFlags;
use whimbrel_vfio_user::Capabilities;
use whimbrel_vfio_user::message::{
    IoFdKind, MessageBuffer, RegionAccess, Reply, Request, SetIrqs, WriteMulti, WriteOne,
};

use super::support::*;

#[test]
fn what_is_agreed_is_the_smaller_of_both() {
    let host = Host::new();
    let (stream, thread) = host.connect();
    let mut peer = Peer::new(stream, Some(thread));
    let proposed = Capabilities::default().max_msg_fds(8).max_dma_maps(3);
    let version = peer.agree(proposed.clone());
    assert_eq!((version.major, version.minor), (0, 1));
    assert_eq!(version.capabilities, proposed.max_dma_maps(3));
    peer.leave().unwrap();
}

#[test]
fn the_device_says_what_it_is() {
    let mut peer = Host::new().client();
    let answer = peer.ask(&Request::DeviceGetInfo { argsz: 16 }).unwrap();
    assert_eq!(answer.payload.len(), 16, "as long as the text says");
    let Reply::DeviceGetInfo(reply) = answer.reply() else { panic!() };
    assert_eq!(reply.info().flags, DeviceInfoFlags::PCI | DeviceInfoFlags::RESET);
    assert_eq!((reply.info().num_regions, reply.info().num_irqs), (9, 5));
    let answer = peer.ask(&Request::DeviceGetIrqInfo { argsz: 16, index: MSI }).unwrap();
    let Reply::DeviceGetIrqInfo(reply) = answer.reply() else { panic!() };
    assert_eq!((reply.index, reply.irq.count), (MSI, 4));
    assert!(reply.irq.flags.contains(IrqInfoFlags::NORESIZE));
    assert_eq!(peer.ask(&Request::DeviceGetIrqInfo { argsz: 16, index: 5 }).err(), Some(Errno::EINVAL));
}

#[test]
fn a_region_that_can_be_mapped_comes_with_its_file() {
    let mut peer = Host::new().client();
    let answer = peer.ask(&Request::DeviceGetRegionInfo { argsz: 4096, index: MAPPED }).unwrap();
    let Reply::DeviceGetRegionInfo(reply) = answer.reply() else { panic!() };
    assert!(reply.region().flags.contains(RegionInfoFlags::MMAP));
    assert_eq!((reply.region().offset, reply.region().capabilities.len()), (0, 1));
    assert_eq!(answer.fds.len(), 1);
    let mut file = std::fs::File::from(answer.fds.into_iter().next().unwrap());
    let mut all = Vec::new();
    file.read_to_end(&mut all).unwrap();
    assert_eq!(all.len() as u64, 2 * PAGE, "it is the device's own");
}

#[test]
fn a_region_that_no_one_file_holds_cannot_be_mapped() {
    let mut peer = Host::new().client();
    for index in [BAR, SCATTERED] {
        let answer = peer.ask(&Request::DeviceGetRegionInfo { argsz: 4096, index }).unwrap();
        let Reply::DeviceGetRegionInfo(reply) = answer.reply() else { panic!() };
        assert_eq!(reply.region().flags, RegionInfoFlags::READ | RegionInfoFlags::WRITE, "{index}");
        assert_eq!((answer.fds.len(), reply.region().capabilities.len()), (0, 0), "{index}");
    }
    let answer = peer.ask(&Request::DeviceGetRegionInfo { argsz: 32, index: 5 }).unwrap();
    let Reply::DeviceGetRegionInfo(reply) = answer.reply() else { panic!() };
    assert_eq!(reply.region().size, 0, "it is not there");
}

#[test]
fn regions_are_read_and_written_up_to_their_end() {
    let mut peer = Host::new().client();
    assert_eq!(peer.write(BAR, 0x10, b"whimbrel"), Ok(8));
    assert_eq!(peer.read(BAR, 0x12, 4).unwrap(), b"imbr");
    assert_eq!(peer.write(BAR, PAGE - 2, b"long"), Ok(2));
    assert_eq!(peer.read(BAR, PAGE - 2, 8).unwrap(), b"lo");
    assert_eq!(peer.read(BAR, 0, PAGE as u32).unwrap().len() as u64, PAGE);
}

#[test]
fn several_writes_in_one_message_are_done_in_their_order() {
    let mut peer = Host::new().client();
    let writes = [(0, b"aaaa".as_slice()), (2, b"bb"), (4, b"")]
        .map(|(offset, data)| WriteOne::new(BAR, offset, data).unwrap());
    let mut room = [[0; 24]; 3];
    let answer = peer.ask(&Request::RegionWriteMulti(WriteMulti::new(&writes, &mut room))).unwrap();
    assert_eq!(answer.reply(), Reply::RegionWriteMulti { completed: 3 });
    assert_eq!(peer.read(BAR, 0, 4).unwrap(), b"aabb");
    // The second fails, so the third is not done.
    let writes =
        [(BAR, 0), (99, 0), (BAR, 1)].map(|(region, offset)| WriteOne::new(region, offset, b"z").unwrap());
    let answer = peer.ask(&Request::RegionWriteMulti(WriteMulti::new(&writes, &mut room))).unwrap();
    assert_eq!(answer.reply(), Reply::RegionWriteMulti { completed: 1 });
    assert_eq!(peer.read(BAR, 0, 4).unwrap(), b"zabb");
}

#[test]
fn several_writes_in_one_message_are_refused_where_that_was_not_agreed() {
    let host = Host::new();
    let (stream, thread) = host.connect();
    let mut peer = Peer::new(stream, Some(thread));
    peer.agree(Capabilities::default());
    let writes = WriteMulti::new(&[], &mut []);
    assert_eq!(peer.ask(&Request::RegionWriteMulti(writes)).err(), Some(Errno::ENOTTY));
}

#[test]
fn what_needs_no_reply_gets_none_and_is_done_before_the_next() {
    let mut peer = Host::new().client();
    let mut out = MessageBuffer::new();
    for value in 0..100_u8 {
        let access = RegionAccess { offset: 8, region: BAR, count: 1 };
        out.request(u16::from(value), true, &Request::RegionWrite(access, &[value]));
        // One that fails gets none either.
        let access = RegionAccess { region: 77, ..access };
        out.request(u16::from(value), true, &Request::RegionWrite(access, &[value]));
    }
    peer.sender.send(out.as_bytes(), &[]).unwrap();
    assert_eq!(peer.read(BAR, 8, 1).unwrap(), [99]);
}

#[test]
fn requests_that_come_together_are_answered_in_their_order() {
    let mut peer = Host::new().client();
    let mut out = MessageBuffer::new();
    for id in 0..500_u16 {
        let access = RegionAccess { offset: 0, region: BAR, count: 200 };
        match id % 3 {
            0 => out.request(id, false, &Request::RegionRead(access)),
            1 => out.request(id, false, &Request::DeviceGetRegionInfo { argsz: 4096, index: MAPPED }),
            _ => out.request(id, false, &Request::RegionRead(RegionAccess { region: 9, ..access })),
        }
    }
    peer.sender.send(out.as_bytes(), &[]).unwrap();
    for id in 0..500_u16 {
        let command = Request::DeviceReset.command();
        let got = peer.receiver.receive().unwrap().unwrap();
        assert_eq!(got.header.id, id, "{command}");
        assert_eq!(got.descriptors.unwrap().len(), usize::from(id % 3 == 1), "{id}");
    }
}

#[test]
fn interrupts_arrive_at_the_eventfds_they_were_tied_to() {
    let mut peer = Host::new().client();
    let signals = [Signal::new(), Signal::new()];
    let set =
        |flags: IrqSetFlags, count| SetIrqs { flags: flags.bits(), index: MSI, start: 0, count, data: &[] };
    let trigger = IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER;
    let fds: Vec<_> = signals.iter().map(AsFd::as_fd).collect();
    peer.ask_with(&Request::DeviceSetIrqs(set(trigger, 2)), &fds).unwrap();
    peer.write(BAR, DOORBELL, &[0; 8]).unwrap();
    assert_eq!(signals.each_ref().map(Signal::take), [1, 0]);
    // Loopback, by a bool for each.
    let loopback = IrqSetFlags::DATA_BOOL | IrqSetFlags::ACTION_TRIGGER;
    peer.ask(&Request::DeviceSetIrqs(SetIrqs { data: &[0, 1], ..set(loopback, 2) })).unwrap();
    assert_eq!(signals.each_ref().map(Signal::take), [0, 1]);
    // Eventfds without any descriptor untie.
    peer.ask(&Request::DeviceSetIrqs(set(trigger, 2))).unwrap();
    peer.write(BAR, DOORBELL, &[0; 8]).unwrap();
    assert_eq!(signals.each_ref().map(Signal::take), [0, 0]);
    // And the index is disabled.
    let none = IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_TRIGGER;
    peer.ask(&Request::DeviceSetIrqs(set(none, 0))).unwrap();
}

#[test]
fn an_ioeventfd_makes_the_write_it_stands_for() {
    let host = Host::new();
    let mut peer = host.client();
    let memory = memory(PAGE);
    peer.map(0x10_0000, PAGE, &memory).unwrap();
    let short = peer.ask(&Request::DeviceGetRegionIoFds { argsz: 16, index: BAR }).unwrap();
    let Reply::DeviceGetRegionIoFds(reply) = short.reply() else { panic!() };
    assert_eq!((reply.is_whole(), reply.needed(), short.fds.len()), (false, 56, 0));
    for _ in 0..2 {
        let answer = peer.ask(&Request::DeviceGetRegionIoFds { argsz: 56, index: BAR }).unwrap();
        let Reply::DeviceGetRegionIoFds(reply) = answer.reply() else { panic!() };
        let [sub_region] = reply.sub_regions() else { panic!("{reply:?}") };
        assert_eq!((sub_region.offset, sub_region.size, sub_region.fd_index), (DOORBELL, 8, 0));
        let expected = IoFdKind::Ioeventfd { flags: IoFdKind::DATAMATCH, datamatch: 0x10_0000 };
        assert_eq!(sub_region.kind, expected);
        let msi = Signal::new();
        let trigger = (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits();
        let set = SetIrqs { flags: trigger, index: MSI, start: 0, count: 1, data: &[] };
        peer.ask_with(&Request::DeviceSetIrqs(set), &[msi.as_fd()]).unwrap();
        rustix::io::write(&answer.fds[0], &1_u64.to_ne_bytes()).unwrap();
        msi.wait();
        assert_eq!(mark_in(&memory), MARK);
    }
    let answer = peer.ask(&Request::DeviceGetRegionIoFds { argsz: 16, index: MAPPED }).unwrap();
    assert_eq!((answer.payload.len(), answer.fds.len()), (16, 0), "a region without any");
    assert_eq!(peer.ask(&Request::DeviceGetRegionIoFds { argsz: 16, index: 9 }).err(), Some(Errno::EINVAL));
}

#[test]
fn a_reset_brings_the_device_back() {
    let mut peer = Host::new().client();
    peer.write(BAR, 0, b"x").unwrap();
    peer.ask(&Request::DeviceReset).unwrap();
    assert_eq!(peer.read(BAR, 0, 1).unwrap(), [0]);
}
