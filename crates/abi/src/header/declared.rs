//! The declarations of a header, as data. `declarations` reads them.

use std::rc::Rc;

use super::clash::Clash;
use super::layout::Field;
use super::unread::Unread;

/// A structure or union with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Structure {
    pub(crate) name: Rc<str>,
    pub(crate) line: u32,
    /// The size in bytes.
    pub(crate) size: u64,
    /// The alignment in bytes.
    pub(crate) alignment: u64,
    /// Its fields, including those of nested structures and unions without a name.
    pub(crate) fields: Vec<Field>,
}

/// An enumerator: a name for a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Enumerator {
    pub(crate) name: Rc<str>,
    pub(crate) line: u32,
    pub(crate) value: i64,
    /// The name of its enumeration, if it has one.
    pub(crate) enumeration: Option<Rc<str>>,
}

/// All declarations of a header, in their order.
#[derive(Debug, Default)]
pub(super) struct Declared {
    pub(super) structures: Vec<Structure>,
    pub(super) enumerators: Vec<Enumerator>,
    pub(super) clashes: Vec<Clash>,
    pub(super) unread: Vec<Unread>,
}
