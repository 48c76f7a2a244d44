//! Memory without an address in this process: a device accesses it by requests to its owner, such as the client of a
//! vfio-user server. The implementor defines the transport.

use std::fmt;
use std::time::Instant;

use whimbrel_protocol::Errno;

/// Memory that is read and written by requests to its owner, at device addresses.
///
/// Reads and writes may be called from several threads at once, and by a thread that executes a request on the device.
/// While they wait, no mapping of the device can be removed, unless [`RemoteMemory::may_outlive_mapping`] allows it, so
/// they must return by the deadline. All requests of one device access share one deadline.
///
/// ```
/// use std::sync::Mutex;
/// use std::time::{Duration, Instant};
/// use whimbrel_memory::RemoteMemory;
/// use whimbrel_protocol::Errno;
///
/// /// Eight bytes at address 0x1000.
/// #[derive(Debug, Default)]
/// struct Word(Mutex<[u8; 8]>);
///
/// impl RemoteMemory for Word {
///     fn read(&self, iova: u64, data: &mut [u8], _deadline: Instant) -> Result<(), Errno> {
///         let word = self.0.lock().map_err(|_| Errno::EIO)?;
///         data.copy_from_slice(&word[iova as usize - 0x1000..][..data.len()]);
///         Ok(())
///     }
///     fn write(&self, iova: u64, data: &[u8], _deadline: Instant) -> Result<(), Errno> {
///         let mut word = self.0.lock().map_err(|_| Errno::EIO)?;
///         word[iova as usize - 0x1000..][..data.len()].copy_from_slice(data);
///         Ok(())
///     }
/// }
///
/// let (word, deadline) = (Word::default(), Instant::now() + Duration::from_secs(5));
/// word.write(0x1002, b"far", deadline)?;
/// let mut back = [0; 8];
/// word.read(0x1000, &mut back, deadline)?;
/// assert_eq!(&back, b"\0\0far\0\0\0");
/// # Ok::<(), Errno>(())
/// ```
pub trait RemoteMemory: fmt::Debug + Send + Sync {
    /// Reads all of `data`, from `iova` on. The caller requests only memory that is mapped with that permission, and at
    /// most [`RemoteMemory::max_bytes`]. ETIMEDOUT at the deadline.
    fn read(&self, iova: u64, data: &mut [u8], deadline: Instant) -> Result<(), Errno>;

    /// Writes all of `data`, from `iova` on. After an error a part of it may have been written.
    fn write(&self, iova: u64, data: &[u8], deadline: Instant) -> Result<(), Errno>;

    /// Returns the maximum number of bytes of one read or write, which is not 0. A longer access is made in parts, each of
    /// which looks its mapping up again.
    fn max_bytes(&self) -> usize {
        usize::MAX
    }

    /// Returns whether an access may still wait for the owner after its mapping was removed: then no change of the
    /// mappings waits for it. Only for an owner that removes the mapping itself, and decides about each request.
    fn may_outlive_mapping(&self) -> bool {
        false
    }
}
