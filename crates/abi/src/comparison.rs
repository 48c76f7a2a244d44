//! The result of a comparison, as data and as JSON. `compare` makes it; the program that prints it chooses its text.

use std::fmt;

use serde::{Serialize, Serializer};
use whimbrel_uapi::table;

use crate::header::{Clash, Unread};

/// The comparison of a header with Whimbrel's table.
///
/// Lists with lines are sorted by line. It serializes to one object with stable keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// The kernel header with which it has most names in common.
    #[serde(serialize_with = "path_of")]
    pub header: table::Header,
    /// The migration protocols that it has names for.
    pub protocols: Vec<Protocol>,
    /// Number of compared items.
    pub compared: Compared,
    /// The differences.
    pub differences: Vec<Difference>,
    /// Names of the header that clash.
    pub clashes: Vec<Clash>,
    /// Parts of the header that could not be read.
    pub unread: Vec<Unread>,
    /// Names that only the header has.
    pub unknown: Vec<UnknownName>,
    /// Names that only Whimbrel has.
    pub lacks: Lacks,
}

impl Comparison {
    /// Returns whether all common names agree and the whole header could be read.
    pub fn agrees(&self) -> bool {
        self.differences.is_empty() && self.clashes.is_empty() && self.unread.is_empty()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn path_of<S: Serializer>(header: &table::Header, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(header.path())
}

/// A migration protocol, by the names a header has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Protocol {
    /// The region of the draft of 2019, with dirty pages.
    Draft,
    /// Macros for the bits of `device_state`, Linux 5.8 to 5.17.
    V1,
    /// The enumeration of states, since Linux 5.18.
    V2,
}

/// Number of compared items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Compared {
    /// The number of structures.
    pub structures: usize,
    /// The number of their fields.
    pub fields: usize,
    /// The number of constants.
    pub constants: usize,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// The property that differs.
    pub kind: Property,
    /// The constant; the structure; or `structure.field`.
    pub name: String,
    /// The line of the header, counted from 1.
    pub line: u32,
    /// The header's value.
    pub header: String,
    /// Whimbrel's value.
    pub whimbrel: String,
}

/// A property of a constant, structure or field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Property {
    /// The value of a constant.
    Value,
    /// The size of a structure, in bytes.
    Size,
    /// The alignment of a structure, in bytes.
    Alignment,
    /// The bytes before a field in its structure.
    Offset,
    /// The size of a field, in bytes.
    FieldSize,
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Property::Value => "value",
            Property::Size | Property::FieldSize => "size in bytes",
            Property::Alignment => "alignment in bytes",
            Property::Offset => "offset in bytes",
        })
    }
}

/// A name that only the header has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct UnknownName {
    /// The line where it is defined, counted from 1.
    pub line: u32,
    /// The constant; the structure; or `structure.field`.
    pub name: String,
}

/// The names that a header lacks and other versions of it have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Lacks {
    /// The structures.
    pub structures: Vec<&'static str>,
    /// `structure.field`, of structures that the header has.
    pub fields: Vec<String>,
    /// The constants.
    pub constants: Vec<String>,
}

impl Lacks {
    /// Returns whether no name is lacking.
    pub fn is_empty(&self) -> bool {
        self.structures.is_empty() && self.fields.is_empty() && self.constants.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::compare;

    #[test]
    fn the_json_form_is_that_of_the_command_line() {
        let text = "#define VFIO_API_VERSION 1\n#define VFIO_NEW 1\n#define VFIO_NEW 2\n#pragma x\n\
                    struct vfio_group_status { __u32 argsz; };";
        let mut value = serde_json::to_value(compare(text).expect("names are known")).expect("plain data");
        // All the constants there are.
        value["lacks"]["constants"] = json!(null);
        value["lacks"]["structures"] = json!(null);
        let expected = json!({
            "header": "linux/vfio.h",
            "protocols": [],
            "compared": { "structures": 1, "fields": 1, "constants": 1 },
            "differences": [{
                "kind": "value", "name": "VFIO_API_VERSION", "line": 1, "header": "1", "whimbrel": "0",
            }],
            "clashes": [{
                "kind": "macro_redefined",
                "name": "VFIO_NEW",
                "line": 3,
                "text": "the macro VFIO_NEW is 2 from here on; line 2 defines it as 1",
            }],
            "unread": [{ "line": 4, "why": "unknown directive #pragma" }],
            "unknown": [{ "line": 3, "name": "VFIO_NEW" }],
            "lacks": { "structures": null, "fields": ["vfio_group_status.flags"], "constants": null },
        });
        assert_eq!(value, expected);
    }
}
