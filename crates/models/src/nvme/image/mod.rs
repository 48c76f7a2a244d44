//! The image: the file or block device with the namespace's blocks, and the engines that access it.
//!
//! An [`Engine`] stands between the rules and the I/O: the controller submits operations and collects their results, and
//! never waits for the disk while it serves requests. [`Image`] counts what is in flight, and holds the owner's lock.

mod file;
mod lock;
mod pool;
mod ring;
mod task;
#[cfg(test)]
mod tests;
mod uring;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use whimbrel_device::Errno;

pub use self::file::ImageError;
pub(super) use self::file::ImageFile;
use self::lock::OwnerLock;
use self::pool::Pool;
use self::uring::Uring;

/// Bytes of a logical block.
pub(super) const BLOCK_BYTES: u64 = 512;

/// An operation on the image. Offsets and lengths are in bytes and lie within the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Fills `data` from `offset` on. If `durable`, what was written there is on the disk first.
    Read { offset: u64, data: Vec<u8>, durable: bool },
    /// Writes all of `data`. If `durable`, it is on the disk when the operation ends.
    Write { offset: u64, data: Vec<u8>, durable: bool },
    /// Makes a range read as zeros, without space on the disk if `deallocate`.
    Zero { offset: u64, length: u64, deallocate: bool, durable: bool },
    /// Returns the space of ranges (offset, length) to the file system, as far as it can take it.
    Deallocate(Vec<(u64, u64)>),
    /// Brings everything that has ended to the disk.
    Flush,
}

impl Operation {
    /// Returns whether the operation can change what the image contains.
    pub(super) fn changes_image(&self) -> bool {
        !matches!(self, Operation::Read { .. } | Operation::Flush)
    }
}

/// The end of an operation, which comes back with its buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) tag: u64,
    pub(super) operation: Operation,
    pub(super) result: Result<(), Errno>,
}

/// The choice of the engine that executes a controller's operations on its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineKind {
    /// io_uring where this process can use it, and otherwise threads.
    #[default]
    Automatic,
    /// io_uring, or an error.
    IoUring,
    /// Four threads, each of which executes one operation at a time.
    Threads,
}

/// A way to execute operations on the image.
pub(super) trait Engine: Send + fmt::Debug {
    /// Adds an operation, which begins now or with the next call of another method. Operations in flight may end in any
    /// order.
    fn submit(&mut self, tag: u64, operation: Operation);

    /// Appends the operations that have ended since the last call.
    fn collect(&mut self, done: &mut Vec<Done>);

    /// Waits until an operation has ended that was not collected, or until the deadline.
    fn wait(&mut self, deadline: Instant);
}

/// The image of one controller.
#[derive(Debug)]
pub(super) struct Image {
    file: Arc<ImageFile>,
    engine: Box<dyn Engine>,
    lock: OwnerLock,
    in_flight: usize,
    /// Tags of operations in flight for whose results nobody waits. While there are any, nothing new may begin, since it
    /// could overtake them.
    abandoned: BTreeSet<u64>,
    next_tag: u64,
    collected: Vec<Done>,
}

impl Image {
    /// Returns the image behind a file, with an engine that accesses it. Threads of its own call `notify` when operations
    /// end.
    pub(super) fn new(
        file: ImageFile,
        kind: EngineKind,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> Result<Image, ImageError> {
        let (file, notify) = (Arc::new(file), Arc::new(notify));
        let notifier = || {
            let notify = notify.clone();
            move || notify()
        };
        let engine: Box<dyn Engine> = match kind {
            EngineKind::Automatic => match Uring::start(file.clone(), notifier()) {
                Ok(uring) => Box::new(uring),
                Err(error) => {
                    tracing::debug!(%error, "io_uring cannot be used: threads access the image");
                    Box::new(Pool::start(file.clone(), notifier()).map_err(ImageError::Threads)?)
                }
            },
            EngineKind::IoUring => {
                Box::new(Uring::start(file.clone(), notifier()).map_err(ImageError::IoUring)?)
            }
            EngineKind::Threads => {
                Box::new(Pool::start(file.clone(), notifier()).map_err(ImageError::Threads)?)
            }
        };
        Ok(Image::with_engine(file, engine))
    }

    /// Returns the image behind a file, accessed by an engine.
    pub(super) fn with_engine(file: Arc<ImageFile>, engine: Box<dyn Engine>) -> Image {
        Image {
            file,
            engine,
            lock: OwnerLock::default(),
            in_flight: 0,
            abandoned: BTreeSet::new(),
            next_tag: 0,
            collected: Vec::new(),
        }
    }

    /// Returns the open file, for accesses that wait for nothing.
    pub(super) fn file(&self) -> &File {
        self.file.file()
    }

    /// Returns the number of logical blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.file.bytes() / BLOCK_BYTES
    }

    /// Returns whether no operation is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Returns whether operations may begin: none that was abandoned is in flight.
    pub(super) fn takes_operations(&self) -> bool {
        self.abandoned.is_empty()
    }

    /// Returns whether this device owns the image.
    pub(super) fn is_owned(&self) -> bool {
        self.lock.is_held()
    }

    /// Makes this device the image's owner. EBUSY if another one is.
    pub(super) fn own(&mut self) -> Result<(), Errno> {
        self.lock.take(&self.file)
    }

    /// Ends the ownership, if nothing is in flight. Returns whether it has ended.
    pub(super) fn disown(&mut self) -> bool {
        if self.is_idle() {
            self.lock.release(&self.file);
        }
        self.is_idle()
    }

    /// Begins an operation and returns its tag.
    pub(super) fn submit(&mut self, operation: Operation) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.in_flight += 1;
        self.engine.submit(tag, operation);
        tag
    }

    /// Returns the operations that have ended, but for those that were abandoned.
    pub(super) fn collect(&mut self) -> Vec<Done> {
        let mut done = std::mem::take(&mut self.collected);
        self.engine.collect(&mut done);
        self.in_flight -= done.len();
        done.retain(|ended| !self.abandoned.remove(&ended.tag));
        done
    }

    /// Gives the memory of [`Image::collect`] back for its next call.
    pub(super) fn recycle(&mut self, mut done: Vec<Done>) {
        done.clear();
        self.collected = done;
    }

    /// Abandons operations in flight: they end, and nobody gets to know.
    pub(super) fn abandon(&mut self, tags: impl IntoIterator<Item = u64>) {
        self.abandoned.extend(tags);
    }

    /// Waits until an operation has ended, or until the deadline. Returns whether there is time left.
    pub(super) fn wait(&mut self, deadline: Instant) -> bool {
        self.engine.wait(deadline);
        Instant::now() < deadline
    }
}

/// Waits for what is in flight, which could otherwise change the image after its lock has gone to another owner.
impl Drop for Image {
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_TIMEOUT;
        while !self.is_idle() && self.wait(deadline) {
            let done = self.collect();
            self.recycle(done);
        }
        // The lock otherwise ends with the last operation: the engine's threads have the file open until then.
        self.disown();
    }
}

/// Time that the end of a device waits for its last operations.
const DROP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
