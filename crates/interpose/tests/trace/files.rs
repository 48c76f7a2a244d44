//! The files behind descriptors, and the accesses to them.

use libtest_mimic::Trial;
use whimbrel_interpose::trace::{Ended, Options};

use super::programs::CANNOT_MOUNT;
use super::{Traced, command, skip, test, trace_command, trace_with};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("files::by_default_requests_and_accesses_to_regions_are_shown", by_default),
        test("files::with_all_io_every_access_to_a_vfio_file_is_shown_and_no_other", all_io),
        test("files::duplicates_of_other_files_are_not_shown", duplicates),
    ]
}

/// Traces a program that uses plain files under the names of VFIO's.
fn vfio_files(options: Options) -> Option<Traced> {
    let traced = trace_command(&command("vfio_files"), options).unwrap();
    if traced.ended == Ended::Exited(CANNOT_MOUNT) {
        skip("files under the names of VFIO's", "a mount namespace cannot be made");
        return None;
    }
    assert_eq!(traced.ended, Ended::Exited(0));
    Some(traced)
}

/// The lines without time, thread and duration.
fn lines(traced: &Traced) -> Vec<String> {
    let short = |line: String| -> String {
        let line = line.split_once(" fd ").unwrap().1.split_once(' ').unwrap().1.to_string();
        line.rsplit_once(" <").unwrap().0.to_string()
    };
    traced
        .records()
        .iter()
        .map(|record| short(record.to_string().lines().next().unwrap().to_string()))
        .collect()
}

const REFUSED: &str = "-1 ENOTTY: Inappropriate ioctl for device";

fn by_default() {
    let Some(traced) = vfio_files(Options::default()) else { return };
    let lines = lines(&traced);
    let expected = [
        format!("group 12: VFIO_GROUP_GET_STATUS(argsz 8) = {REFUSED}"),
        format!("device vfio3: VFIO_DEVICE_RESET() = {REFUSED}"),
        format!("iommufd: IOMMU_IOAS_ALLOC(cannot be read) = {REFUSED}"),
        "device vfio3: pread64(8 bytes at 0x70000000000) = 0".to_string(),
        // On a duplicate.
        format!("device vfio3: VFIO_DEVICE_RESET() = {REFUSED}"),
    ];
    assert_eq!(lines, expected);
}

/// Replaces descriptors that are results: they depend on what else is open.
fn without_new_descriptors(lines: Vec<String>) -> Vec<String> {
    let shown = |line: String| match ["dup() = ", "openat() = "]
        .iter()
        .find_map(|call| line.find(call).map(|at| at + call.len()))
    {
        Some(end) => format!("{}N", &line[..end]),
        None => line,
    };
    lines.into_iter().map(shown).collect()
}

fn all_io() {
    let Some(traced) = vfio_files(Options::default().all_io(true).hex(true)) else { return };
    let lines = without_new_descriptors(lines(&traced));
    let accesses: Vec<&str> =
        lines.iter().map(String::as_str).filter(|line| line.starts_with("device vfio3: ")).collect();
    let reset = format!("device vfio3: VFIO_DEVICE_RESET() = {REFUSED}");
    let expected = [
        // Its contents are written first.
        "device vfio3: openat() = N",
        "device vfio3: write(16 bytes) = 16",
        "device vfio3: close() = 0",
        "device vfio3: openat() = N",
        &reset,
        "device vfio3: pread64(8 bytes at 0x0) = 8",
        "device vfio3: pread64(8 bytes at 0x70000000000) = 0",
        "device vfio3: pwrite64(2 bytes at 0x2) = 2",
        "device vfio3: readv(3 bytes) = 3",
        "device vfio3: dup() = N",
        &reset,
        "device vfio3: close() = 0",
        "device vfio3: close() = 0",
    ];
    assert_eq!(accesses, expected);
    for line in ["group 12: dup2(to 200) = 200", "group 12: close_range() = 0"] {
        assert!(lines.iter().any(|found| found == line), "{line} in {lines:?}");
    }
    assert!(!lines.iter().any(|line| line.contains("/dev/other")), "{lines:?}");
    let text: String = traced.records().iter().map(|record| format!("{record}\n")).collect();
    for data in
        ["data     0000  30 31 32 33 34 35 36 37\n", "data     0000  78 79\n", "data     0000  30 31 78\n"]
    {
        assert!(text.contains(data), "{data} in\n{text}");
    }
}

fn duplicates() {
    assert_eq!(trace_with("duplicates", Options::default().all_io(true), 0).records().len(), 0);
}
