//! The space as `lspci` (of the package pciutils) reads it from a dump: eyes that are not ours.
//!
//! Where there is no `lspci` this is skipped, and says so; with WHIMBREL_REQUIRE_ALL it fails.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use super::sample::everything;

fn lspci(dump: &str) -> io::Result<String> {
    let mut child = Command::new("lspci")
        .args(["-F", "/dev/stdin", "-n", "-vvv"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().expect("it is piped").write_all(dump.as_bytes())?;
    let output = child.wait_with_output()?;
    assert!(output.status.success(), "lspci: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn lspci_reads_what_was_built() {
    let mut space = everything();
    space.write(0x04, &[0x07]);
    space.write(0x10, &0xfe00_0000_u32.to_le_bytes());
    space.write(0x14, &0xc040_u32.to_le_bytes());
    space.write(0x18, &0x38_0000_0000_u64.to_le_bytes());
    space.write(0x54, &0xfee0_1000_u64.to_le_bytes());
    space.write(0x52, &[0x21]);
    let mut dump = String::from("01:00.0 a device\n");
    for (line, bytes) in space.to_bytes().chunks(16).enumerate() {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(dump, "{:02x}: {}", line * 16, hex.join(" ")).unwrap();
    }
    dump.push('\n');
    let text = match lspci(&dump) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            assert!(
                std::env::var_os("WHIMBREL_REQUIRE_ALL").is_none(),
                "there is no lspci (package pciutils), and WHIMBREL_REQUIRE_ALL is set"
            );
            eprintln!("SKIPPED: there is no lspci; the package pciutils has it");
            return;
        }
        Err(error) => panic!("lspci: {error}"),
    };
    let expected = [
        "01:00.0 1234: 1234:acce (rev 78)",
        "Subsystem: 5678:9abc",
        "Control: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx-",
        "Status: Cap+",
        "Interrupt: pin B",
        "Region 0: Memory at fe000000 (32-bit, non-prefetchable)",
        "Region 1: I/O ports at c040",
        "Region 2: Memory at 3800000000 (64-bit, prefetchable)",
        "Capabilities: [40] Power Management version 3",
        "D1+ D2+ AuxCurrent=0mA PME(D0+,D1+,D2+,D3hot+,D3cold-)",
        "Status: D0 NoSoftRst- PME-Enable- DSel=0 DScale=0 PME-",
        "Capabilities: [50] MSI: Enable+ Count=4/32 Maskable+ 64bit+",
        "Address: 00000000fee01000",
        "Capabilities: [70] MSI-X: Enable- Count=65 Masked-",
        "Vector table: BAR=4 offset=00000800",
        "PBA: BAR=4 offset=00000000",
        "Capabilities: [80] Express (v2) Endpoint",
        "MaxPayload 256 bytes",
        "ExtTag+",
        "FLReset+",
        "Speed 8GT/s, Width x4",
        "Supported Link Speeds: 2.5-8GT/s",
        "Capabilities: [c0] Vendor Specific Information: Len=08",
        "Capabilities: [100 v1] Device Serial Number 00-11-22-ff-fe-33-44-55",
    ];
    for line in expected {
        assert!(text.contains(line), "lspci does not say {line:?} but:\n{text}");
    }
}
