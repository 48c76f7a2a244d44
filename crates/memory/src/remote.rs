//! Memory that has no address in this process: a device reaches it by asking who has it, such as the client
//! of a vfio-user server. What it is asked with is not known here.

use std::fmt;
use std::time::Instant;

use whimbrel_protocol::Errno;

/// Memory that is read and written by asking for it, at addresses as the device has them.
///
/// Both may be called from several threads at a time, and by a thread that executes a request on the device. While they
/// wait, no mapping of the device can be taken away, so they have to come to an end by the deadline, which is one for all
/// that a device's access asks for.
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
    /// Reads all of `data`, from `iova` on. Only what is mapped with that right is asked for. ETIMEDOUT at the deadline.
    fn read(&self, iova: u64, data: &mut [u8], deadline: Instant) -> Result<(), Errno>;

    /// Writes all of `data`, from `iova` on. After an error some of it may have been written.
    fn write(&self, iova: u64, data: &[u8], deadline: Instant) -> Result<(), Errno>;
}
