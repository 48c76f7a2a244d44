//! Admin commands: what they answer, and with which status they fail.

use whimbrel_models::nvme::guest::Command;

use super::host::{Bench, DATA, IMAGE};

fn u16_at(data: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([data[at], data[at + 1]])
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().unwrap())
}

fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().unwrap())
}

#[test]
fn the_controller_identifies_itself_and_its_namespace() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device_of(bench.config().serial("SERIAL 1"), ""));
    let controller = host.driver.identify(1, 0).unwrap();
    assert_eq!(&controller[4..24], b"SERIAL 1            ");
    assert_eq!(controller[77], 6, "MDTS: 256 KiB");
    assert_eq!(u32_at(&controller, 80), 0x0001_0400, "1.4");
    assert_eq!((controller[512], controller[513]), (0x66, 0x44), "entry sizes");
    assert_eq!(u32_at(&controller, 516), 1, "namespaces");
    assert_eq!(u16_at(&controller, 256), 0, "no format, firmware or namespace management");
    assert_eq!(u16_at(&controller, 520), 0b101_1100);
    assert_eq!(controller[525] & 1, 1, "a volatile write cache");
    assert!(controller[768..].starts_with(b"nqn.2014.08.org.nvmexpress:"));

    let namespace = host.driver.identify(0, 1).unwrap();
    for at in [0, 8, 16] {
        assert_eq!(u64_at(&namespace, at), IMAGE / 512);
    }
    assert_eq!(u32_at(&namespace, 128), 9 << 16, "blocks of 512 bytes without metadata");
    assert_eq!(namespace[99], 0, "not write-protected");

    let list = host.driver.identify(2, 0).unwrap();
    assert_eq!((u32_at(&list, 0), u32_at(&list, 4)), (1, 0));
    assert_eq!(host.driver.identify(2, 1).unwrap(), [0; 4096]);

    let descriptors = host.driver.identify(3, 1).unwrap();
    assert_eq!(descriptors[..4], [3, 16, 0, 0], "a UUID");
    assert_eq!((descriptors[10] >> 4, descriptors[12] >> 6), (8, 2), "version 8 of RFC 9562");
    assert_eq!(descriptors[20..], [0; 4076]);
    let other = Bench::new();
    let mut other = other.admin_on(other.device_of(other.config().serial("SERIAL 2"), ""));
    assert_ne!(other.driver.identify(3, 1).unwrap(), descriptors, "another controller");
}

#[test]
fn the_serial_number_comes_from_the_name_of_the_image_alone() {
    let [first, second] = [Bench::new(), Bench::new()];
    let [first, second] = [&first, &second]
        .map(|bench| bench.admin_on(bench.device()).driver.identify(1, 0).unwrap()[4..24].to_vec());
    assert_eq!(first, second, "the same name in two folders");
    assert!(first.starts_with(b"WHIM"));
}

#[test]
fn invalid_admin_commands_get_the_status_of_the_specification() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    let admin = |opcode, dword10, dword11| Command {
        prp1: DATA,
        ..Command::admin(opcode, [dword10, dword11, 0, 0, 0, 0])
    };
    let on = |namespace, command: Command| Command { namespace, ..command };
    let identify = |structure, namespace| on(namespace, admin(0x06, structure, 0));
    let log = |page, dwords: u32| on(u32::MAX, admin(0x02, dwords << 16 | page, 0));
    let cases: [(&str, Command, (u8, u8)); 38] = [
        ("an unknown opcode", admin(0x7f, 0, 0), (0, 0x01)),
        ("format", admin(0x80, 0, 0), (0, 0x01)),
        ("firmware commit", admin(0x10, 0, 0), (0, 0x01)),
        ("a fused command", Command { flags: 1, ..admin(0x06, 1, 0) }, (0, 0x02)),
        ("a scatter-gather list", Command { flags: 0x40, ..admin(0x06, 1, 0) }, (0, 0x02)),
        ("an unknown structure", identify(0x1f, 0), (0, 0x02)),
        ("an I/O command set", identify(0x06, 0), (0, 0x02)),
        ("namespace 0", identify(0, 0), (0, 0x0b)),
        ("namespace 2", identify(0, 2), (0, 0x0b)),
        ("all namespaces", identify(0, u32::MAX), (0, 0x0b)),
        ("namespaces above the last", identify(2, 0xffff_fffe), (0, 0x0b)),
        ("identifiers of namespace 2", identify(3, 2), (0, 0x0b)),
        ("data that is not aligned", Command { prp1: DATA + 1, ..admin(0x06, 1, 0) }, (0, 0x13)),
        (
            "a second page that is not aligned",
            Command { prp1: DATA + 8, prp2: DATA + 8, ..admin(0x06, 1, 0) },
            (0, 0x13),
        ),
        ("data outside of memory", Command { prp1: 0x8_0000_0000, ..admin(0x06, 1, 0) }, (0, 0x04)),
        ("an unknown log page", log(0x42, 0), (1, 0x09)),
        ("log page 0", log(0, 0), (1, 0x09)),
        ("health of the namespace", on(1, admin(0x02, 2, 0)), (0, 0x02)),
        ("health of namespace 2", on(2, admin(0x02, 2, 0)), (0, 0x0b)),
        ("a log page of 4 GiB", on(u32::MAX, admin(0x02, 0xffff_0001, 0xff)), (0, 0x02)),
        ("a log page from an odd offset", Command { dwords: [1, 0, 2, 0, 0, 0], ..log(1, 0) }, (0, 0x02)),
        ("a log page from past its end", Command { dwords: [1, 0, 0, 1, 0, 0], ..log(1, 0) }, (0, 0x02)),
        ("an unknown feature", admin(0x0a, 0x7f, 0), (0, 0x02)),
        ("an unknown feature to set", admin(0x09, 0x7f, 0), (0, 0x02)),
        ("LBA ranges", admin(0x0a, 0x03, 0), (0, 0x02)),
        ("an unknown selection", admin(0x0a, 0x0407, 0), (0, 0x02)),
        ("a feature to save", admin(0x09, 0x8000_0006, 0), (1, 0x0d)),
        ("a feature of the controller in a namespace", on(1, admin(0x09, 0x06, 0)), (1, 0x0f)),
        ("a feature in namespace 2", on(2, admin(0x09, 0x05, 0)), (0, 0x0b)),
        ("65536 queues", admin(0x09, 0x07, 0xffff), (0, 0x02)),
        ("65536 completion queues", admin(0x09, 0x07, 0xffff_0000), (0, 0x02)),
        ("power state 1", admin(0x09, 0x02, 1), (0, 0x02)),
        ("a vector that does not exist", admin(0x09, 0x09, 5), (0, 0x02)),
        ("a vector that does not exist, to get", admin(0x0a, 0x09, 5), (0, 0x02)),
        ("a threshold of a reserved type", admin(0x09, 0x04, 0x20_0000), (0, 0x02)),
        ("a threshold of a reserved sensor", admin(0x0a, 0x04, 0x9_0000), (0, 0x02)),
        ("errors for deallocated blocks", admin(0x09, 0x05, 0x1_0000), (0, 0x02)),
        ("a doorbell buffer", admin(0x7c, 0, 0), (0, 0x01)),
    ];
    for (name, command, expected) in cases {
        let (kind, code, _) = host.admin(command);
        assert_eq!((kind, code), expected, "{name}");
    }
    assert_eq!(host.admin(identify(1, 0)), (0, 0, 0), "it goes on");
}

#[test]
fn an_abort_aborts_nothing_and_keep_alive_succeeds() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    assert_eq!(host.admin(Command::admin(0x08, [0x0001_0000, 0, 0, 0, 0, 0])), (0, 0, 1));
    assert_eq!(host.admin(Command::admin(0x18, [0; 6])), (0, 0, 0));
}

#[test]
fn features_keep_what_is_set_until_the_controller_is_reset() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    // Feature, dword 11, and the value that is read back by dword 11 without it.
    let cases = [
        (0x01, 0x0102_0304, 0, 0x0102_0304, 7),
        (0x04, 350, 0, 350, 343),
        (0x04, 0x10_0118, 0x10_0000, 280, 0),
        (0x05, 0x55, 0, 0x55, 0),
        (0x06, 0, 0, 0, 1),
        (0x08, 0x0203, 0, 0x0203, 0),
        (0x09, 0x1_0002, 2, 0x1_0002, 2),
        (0x0a, 1, 0, 1, 0),
        (0x0b, 0x11f, 0, 0x11f, 0),
        (0x0f, 60_000, 0, 60_000, 0),
    ];
    for (feature, value, select, read, default) in cases {
        assert_eq!(host.driver.feature(feature, select).unwrap(), default, "{feature:#x} before");
        host.driver.set_feature(feature, value).unwrap();
        assert_eq!(host.driver.feature(feature, select).unwrap(), read, "{feature:#x}");
        let get =
            |select_by: u32| Command::admin(0x0a, [select_by << 8 | u32::from(feature), select, 0, 0, 0, 0]);
        assert_eq!(host.admin(get(1)), (0, 0, default), "the default");
        assert_eq!(host.admin(get(2)), (0, 0, default), "the saved one");
        assert_eq!(host.admin(get(3)).2 & 0b101, 0b100, "changeable and not saveable");
    }
    drop(host);
    let mut host = bench.admin_on(bench.device());
    assert_eq!(host.driver.feature(0x06, 0).unwrap(), 1);
}

#[test]
fn the_host_gets_as_many_queues_as_there_are_and_asks_before_it_creates_some() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    assert_eq!(host.driver.set_feature(0x07, 0x0001_0063).unwrap(), 0x0001_0003, "4 and 2");
    assert_eq!(host.driver.feature(0x07, 0).unwrap(), 0x0001_0003);
    host.driver.create_queue(1, 8, None).unwrap();
    let again = Command::admin(0x09, [0x07, 0, 0, 0, 0, 0]);
    assert_eq!(host.admin(again), (0, 0x0c, 0), "too late");
    host.driver.create_queue(2, 8, None).unwrap();
    let third = Command { prp1: DATA, ..Command::admin(0x05, [7 << 16 | 3, 1, 0, 0, 0, 0]) };
    assert_eq!(host.admin(third), (1, 0x01, 0), "more than were allocated");
}

#[test]
fn the_clock_that_the_host_sets_goes_on() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    let get = Command { prp1: DATA, ..Command::admin(0x0a, [0x0e, 0, 0, 0, 0, 0]) };
    assert_eq!(host.admin(get), (0, 0, 0));
    assert_eq!(host.memory.read(DATA + 6, 2), [1, 0], "cleared by a reset");
    host.memory.write(DATA, &0x1234_5678_9abc_u64.to_le_bytes());
    assert_eq!(host.admin(Command { opcode: 0x09, ..get }), (0, 0, 0));
    host.device().advance(std::time::Duration::from_millis(250));
    host.memory.write(DATA, &[0xff; 8]);
    // Without going back in time.
    host.driver.submit_as_it_is(0, get).unwrap();
    host.device().advance(std::time::Duration::from_millis(250));
    let told = u64_at(&host.memory.read(DATA, 8), 0);
    assert_eq!(told & 0xffff_ffff_ffff, 0x1234_5678_9abc + 250);
    assert_eq!(told >> 48, 0b11, "set by the host, and it may have stopped");
}

#[test]
fn the_health_log_counts_what_was_read_and_written() {
    let bench = Bench::new();
    let mut host = bench.host();
    for _ in 0..3 {
        host.write(0, &[1; 8192]);
    }
    host.read(0, 512);
    let log = host.driver.log_page(2, 512).unwrap();
    assert_eq!(log[0], 0, "no warning");
    assert_eq!((u64_at(&log, 64), u64_at(&log, 80)), (1, 3), "reads and writes");
    assert_eq!((u64_at(&log, 32), u64_at(&log, 48)), (1, 1), "thousands of blocks, rounded up");
    assert_eq!(u64_at(&log, 160), 0, "media errors");
}

#[test]
fn the_error_log_has_the_last_errors_and_counts_all() {
    let bench = Bench::new();
    let mut host = bench.host();
    for start in 0..6 {
        let end = host.io(Command::read(IMAGE / 512 + start, 1), DATA, 512);
        assert_eq!((end.kind, end.code), (0, 0x80));
    }
    let log = host.driver.log_page(1, 256).unwrap();
    for (index, entry) in log.chunks(64).enumerate() {
        let number = 6 - index as u64;
        assert_eq!(u64_at(entry, 0), number);
        assert_eq!(u16_at(entry, 8), 1, "the queue");
        assert_eq!(u16_at(entry, 12) >> 1 & 0x7ff, 0x80, "the status");
        assert_eq!(u64_at(entry, 16), IMAGE / 512 + number - 1);
        assert_eq!(u32_at(entry, 24), 1);
    }
    assert_eq!(u64_at(&host.driver.log_page(2, 512).unwrap(), 176), 6);
}

#[test]
fn log_pages_are_read_in_parts_and_tell_the_supported_commands() {
    let bench = Bench::new();
    let mut host = bench.host();
    let whole = host.driver.log_page(5, 4096).unwrap();
    let supported: Vec<usize> = (0..512).filter(|at| u32_at(&whole, at * 4) & 1 == 1).collect();
    let io = [0x00, 0x01, 0x02, 0x08, 0x09].map(|opcode| opcode + 256);
    assert_eq!(supported, [&[0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x18][..], &io].concat());
    let part =
        Command { prp1: DATA, namespace: u32::MAX, ..Command::admin(0x02, [3 << 16 | 5, 0, 1024, 0, 0, 0]) };
    assert_eq!(host.admin(part), (0, 0, 0));
    assert_eq!(host.memory.read(DATA, 16), whole[1024..1040]);
    assert_eq!(host.driver.log_page(3, 64).unwrap()[0], 1, "firmware slot 1");
    assert_eq!(host.driver.log_page(4, 4096).unwrap(), [0; 4096], "no namespace has changed");
}
