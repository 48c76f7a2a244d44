//! The NVM Express controller behind a socket: the tests that it passes in its own process, with the same host.
//!
//! Only `device` is written for the socket. Memory comes by file descriptor, or is read and written by messages.

mod device;

#[path = "../../../../models/tests/models/nvme/admin.rs"]
mod admin;
#[path = "../../../../models/tests/models/nvme/events.rs"]
mod events;
#[path = "../../../../models/tests/models/nvme/host.rs"]
mod host;
#[path = "../../../../models/tests/models/nvme/hostile.rs"]
mod hostile;
#[path = "../../../../models/tests/models/nvme/io.rs"]
mod io;
#[path = "../../../../models/tests/models/nvme/migration.rs"]
mod migration;
#[path = "../../../../models/tests/models/nvme/moving.rs"]
mod moving;
#[path = "../../../../models/tests/models/nvme/owner.rs"]
mod owner;
#[path = "../../../../models/tests/models/nvme/queues.rs"]
mod queues;
#[path = "../../../../models/tests/models/nvme/reset.rs"]
mod reset;
