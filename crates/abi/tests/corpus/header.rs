//! The fuzz target `abi_header`: any bytes as a header.
//!
//! A header with no known name is not compared, so each input is read alone and behind a line that has one.

use whimbrel_abi::{Clash, CompareError, Comparison, compare};

/// The known name.
const PRELUDE: &[u8] = b"#define VFIO_API_VERSION 0\n";

/// Reads the bytes as a header.
pub(crate) fn run(bytes: &[u8]) {
    match compare(bytes) {
        Ok(comparison) => check(&comparison, bytes),
        Err(error) => assert_eq!(error, CompareError::NothingKnown, "{} bytes", bytes.len()),
    }
    let known = [PRELUDE, bytes].concat();
    let comparison = compare(&known).expect("the first line has a name that is known");
    check(&comparison, &known);
    assert_eq!(compare(&known), Ok(comparison), "what is read twice is not the same");
}

/// Checks the properties of every header.
fn check(comparison: &Comparison, header: &[u8]) {
    let last = header.split(|byte| *byte == b'\n').count();
    let mut lines: [Vec<u32>; 4] = [
        comparison.differences.iter().map(|own| own.line).collect(),
        comparison.clashes.iter().map(Clash::line).collect(),
        comparison.unread.iter().map(|own| own.line).collect(),
        comparison.unknown.iter().map(|own| own.line).collect(),
    ];
    for lines in &mut lines {
        assert!(lines.is_sorted(), "not in the order of lines: {comparison:?}");
        let within = |line: &u32| (1..=last).contains(&(*line as usize));
        assert!(lines.iter().all(within), "a line that is not there: {comparison:?}");
    }
    let [differences, clashes, unread, _] = lines.map(|lines| lines.len());
    assert_eq!(comparison.agrees(), differences + clashes + unread == 0);
    // A hundred declarations and as many directives, the two lines that say so, and a comment without an end.
    assert!(unread <= 203, "{unread} places that cannot be read");
    assert!(comparison.unread.iter().all(|own| own.why.len() < 1000), "{:?}", comparison.unread);

    // Windows' line ends say nothing else.
    if !header.contains(&b'\r') {
        let text = header.split(|byte| *byte == b'\n').collect::<Vec<_>>().join(&b"\r\n"[..]);
        assert_eq!(compare(text).as_ref(), Ok(comparison), "line ends change what is read");
    }
}
