//! The record of what QEMU 7.2 was seen to ask of a migration region. The lab's tests hold QEMU to it, and those of the
//! region what they do.

const RECORD: &str = include_str!("qemu_7.2.txt");

/// Returns the accesses of a case.
pub(crate) fn recorded(name: &str) -> &'static str {
    let line = RECORD.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("{name} is not recorded"))
}

/// Returns the words without what is repeated, as the record has them.
pub(crate) fn once(mut words: Vec<String>) -> String {
    for length in 1..=8 {
        let mut at = 0;
        while at + 2 * length <= words.len() {
            if words[at..at + length] == words[at + length..at + 2 * length] {
                words.drain(at..at + length);
            } else {
                at += 1;
            }
        }
    }
    words.join(" ")
}
