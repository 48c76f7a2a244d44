//! A program in Python, by fcntl.ioctl and os.pread.

use crate::support::{command, said, skip, spawn, wait};

const SCRIPT: &str = r#"
import fcntl, os, struct
address = "0100:00:00.0"
group = os.open("/dev/vfio/" + os.path.basename(os.readlink(f"/sys/bus/pci/devices/{address}/iommu_group")), os.O_RDWR)
container = os.open("/dev/vfio/vfio", os.O_RDWR)
request = lambda number: (ord(";") << 8) + 100 + number
assert fcntl.ioctl(container, request(0)) == 0
assert fcntl.ioctl(container, request(1), 3) == 1
status = bytearray(struct.pack("II", 8, 0))
fcntl.ioctl(group, request(3), status)
assert struct.unpack("II", status)[1] == 1
fcntl.ioctl(group, request(4), struct.pack("i", container))
fcntl.ioctl(container, request(2), 3)
device = fcntl.ioctl(group, request(6), bytearray(address.encode() + b"\0"))
region = bytearray(struct.pack("IIIIQQ", 32, 0, 7, 0, 0, 0))
fcntl.ioctl(device, request(8), region)
size, offset = struct.unpack("IIIIQQ", region)[4:]
assert size == 256
assert os.pread(device, 4, offset) == bytes.fromhex("48435332")
try:
    os.pread(device, 4, offset + size)
except OSError as error:
    assert error.errno == 22
else:
    assert False
"#;

#[test]
fn a_program_in_python_uses_a_device() {
    if std::process::Command::new("python3").arg("--version").output().is_err() {
        return skip("a program in Python", "no python3 (apt-get install python3)");
    }
    let (mut command, _) = command("python3", "serial");
    command.args(["-c", SCRIPT]);
    let Some(mut child) = spawn(command) else { return };
    let status = wait(&mut child);
    assert!(status.success(), "{status}; {}", said(&mut child));
}
