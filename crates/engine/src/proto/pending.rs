//! The unfinished operations of a machine.

use std::collections::{BTreeMap, VecDeque};

use super::operation::{Command, Operation, OperationId, Place};

/// Started operations, and the queued commands.
#[derive(Debug, Default)]
pub(super) struct Pending {
    next: u64,
    open: BTreeMap<OperationId, (Place, Operation)>,
    commands: VecDeque<Command>,
}

impl Pending {
    /// Starts an operation.
    pub(super) fn start(&mut self, place: Place, operation: Operation) {
        let id = OperationId(self.next);
        self.next += 1;
        self.open.insert(id, (place, operation.clone()));
        self.commands.push_back(Command::Start { id, place, operation });
    }

    /// Queues another command.
    pub(super) fn command(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    /// Returns the next command to execute.
    pub(super) fn poll(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Takes in that an operation has ended; `None` if it is no longer awaited.
    pub(super) fn end(&mut self, id: OperationId) -> Option<(Place, Operation)> {
        self.open.remove(&id)
    }

    /// Returns an unfinished operation.
    pub(super) fn get(&self, id: OperationId) -> Option<&(Place, Operation)> {
        self.open.get(&id)
    }

    /// Returns whether no operation is left.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Returns whether `is_awaited` selects one of the unfinished operations.
    pub(super) fn any(&self, is_awaited: impl Fn(Place, &Operation) -> bool) -> bool {
        self.open.values().any(|(place, operation)| is_awaited(*place, operation))
    }

    /// Abandons all unfinished operations, and returns the first of each place.
    pub(super) fn abandon(&mut self) -> Vec<(Place, Operation)> {
        let mut first: BTreeMap<Place, Operation> = BTreeMap::new();
        for (place, operation) in std::mem::take(&mut self.open).into_values() {
            first.entry(place).or_insert(operation);
        }
        first.into_iter().collect()
    }
}
