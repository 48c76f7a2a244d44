//! The map of a process's memory, as `/proc/PID/maps` lists it.

/// A mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    /// First address.
    pub(super) start: u64,
    /// The address after the last.
    pub(super) end: u64,
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) shared: bool,
    /// Offset in the file, in bytes.
    pub(super) offset: u64,
    /// Device number of the file, major and minor.
    pub(super) device: (u32, u32),
    /// 0 without a file.
    pub(super) inode: u64,
}

/// Returns the mappings that `size` bytes from `start` lie in, in order; the first address without one as the error.
pub(super) fn covering(maps: &str, start: u64, size: u64) -> Result<Vec<Mapped>, u64> {
    let end = start.checked_add(size).ok_or(start)?;
    let mut at = start;
    let mut found = Vec::new();
    for mapped in maps.lines().filter_map(parse) {
        if at >= end {
            break;
        }
        if mapped.end <= at {
            continue;
        }
        if mapped.start > at {
            break;
        }
        at = mapped.end;
        found.push(mapped);
    }
    if at < end { Err(at) } else { Ok(found) }
}

fn parse(line: &str) -> Option<Mapped> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let rights = fields.next()?.as_bytes();
    let offset = fields.next()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some(Mapped {
        start: hex(start)?,
        end: hex(end)?,
        read: rights.first() == Some(&b'r'),
        write: rights.get(1) == Some(&b'w'),
        shared: rights.get(3) == Some(&b's'),
        offset: hex(offset)?,
        device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
00400000-00401000 r--p 00000000 fe:00 123                                /usr/bin/a name
7f0000000000-7f0000002000 rw-p 00000000 00:00 0 
7f0000002000-7f0000006000 rw-s 00003000 00:01 2056                       /memfd:ram (deleted)
7f0000008000-7f0000009000 ---p 00000000 00:00 0 
";

    #[test]
    fn a_range_over_two_mappings_is_covered_by_both() {
        let found = covering(MAPS, 0x7f00_0000_1000, 0x3000).unwrap();
        assert_eq!(found.len(), 2);
        assert!(!found[0].shared && found[1].shared && found[1].write);
        assert_eq!((found[1].offset, found[1].device, found[1].inode), (0x3000, (0, 1), 2056));
    }

    #[test]
    fn the_first_address_without_a_mapping_is_told() {
        assert_eq!(covering(MAPS, 0x7f00_0000_5000, 0x4000), Err(0x7f00_0000_6000));
        assert_eq!(covering(MAPS, 0x1000, 0x1000), Err(0x1000));
        assert_eq!(covering(MAPS, 0x7f00_0000_9000, 0x1000), Err(0x7f00_0000_9000));
        assert_eq!(covering(MAPS, u64::MAX - 0xfff, 0x2000), Err(u64::MAX - 0xfff));
    }

    #[test]
    fn lines_that_are_malformed_are_no_mappings() {
        assert_eq!(covering("7f00-\nx y z\n\n", 0x1000, 1), Err(0x1000));
    }
}
