//! What the declarations of a header declare, as data. How it is read is for `declarations`.

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
    /// Its fields; those of nested structures and unions without a name are among them.
    pub(crate) fields: Vec<Field>,
}

/// A name that an enumeration gives to a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Enumerator {
    pub(crate) name: Rc<str>,
    pub(crate) line: u32,
    pub(crate) value: i64,
    /// The name of its enumeration, if it has one.
    pub(crate) enumeration: Option<Rc<str>>,
}

/// All that the declarations of a header say, in their order.
#[derive(Debug, Default)]
pub(super) struct Declared {
    pub(super) structures: Vec<Structure>,
    pub(super) enumerators: Vec<Enumerator>,
    pub(super) clashes: Vec<Clash>,
    pub(super) unread: Vec<Unread>,
}
