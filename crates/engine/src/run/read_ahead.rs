//! Reading dirty memory ahead of the network: a thread copies it and looks for zeros while the one before it is sent.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use crate::error::Error;
use crate::set::{Batch, RamError, Scan};

/// The number of bytes from which reading ahead is worth a thread.
const WORTH_A_THREAD: u64 = 8 << 20;
/// The number of batches read ahead. Each has a buffer of at most 1 MiB, as has the one that is being sent.
const AHEAD: usize = 2;

/// Sends all batches of a walk in order, and returns the time the walk spent on zeros.
pub(super) fn send_batches(
    mut scan: Scan<'_>,
    mut send: impl FnMut(&Batch) -> Result<(), Error>,
) -> Result<Duration, Error> {
    if scan.bytes() >= WORTH_A_THREAD
        && let Some(result) = std::thread::scope(|scope| {
            let (filled_sender, filled) = sync_channel(AHEAD);
            let (used, used_receiver) = channel();
            let scan = &mut scan;
            let reader = std::thread::Builder::new()
                .name("read ahead".into())
                .spawn_scoped(scope, move || read(scan, &filled_sender, &used_receiver))
                // Without it the migration is slower, but still correct.
                .ok()?;
            let result = send_filled(&filled, &used, &mut send);
            // The reader ends with its next batch.
            drop(filled);
            if let Err(panic) = reader.join() {
                std::panic::resume_unwind(panic);
            }
            Some(result)
        })
    {
        return result.map(|()| scan.scanning());
    }
    let mut batch = Batch::default();
    while scan.fill(&mut batch)? {
        send(&batch)?;
    }
    Ok(scan.scanning())
}

/// Fills batches until the end of the walk, or until nobody wants them.
fn read(scan: &mut Scan<'_>, filled: &SyncSender<Result<Batch, RamError>>, used: &Receiver<Batch>) {
    loop {
        let mut batch = used.try_recv().unwrap_or_default();
        let result = match scan.fill(&mut batch) {
            Ok(false) => return,
            Ok(true) => Ok(batch),
            Err(error) => Err(error),
        };
        if filled.send(result).is_err() {
            return;
        }
    }
}

fn send_filled(
    filled: &Receiver<Result<Batch, RamError>>,
    used: &Sender<Batch>,
    mut send: impl FnMut(&Batch) -> Result<(), Error>,
) -> Result<(), Error> {
    for batch in filled {
        let batch = batch?;
        send(&batch)?;
        // Nobody reads any more after the last one.
        let _ = used.send(batch);
    }
    Ok(())
}

#[cfg(feature = "vm-memory")]
#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::set::{Ledger, Pagemap, Ram, RamRegion, Stretch};

    const MIB: u64 = 1 << 20;

    /// Memory, some of which cannot be read.
    struct Broken {
        ram: GuestMemoryMmap,
        from: u64,
    }

    impl Ram for Broken {
        fn regions(&self) -> Vec<RamRegion> {
            Ram::regions(&self.ram)
        }
        fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RamError> {
            if address + data.len() as u64 > self.from {
                return Err(RamError { address, length: data.len() as u64 });
            }
            Ram::read(&self.ram, address, data)
        }
        fn write(&self, address: u64, data: &[u8]) -> Result<(), RamError> {
            Ram::write(&self.ram, address, data)
        }
        fn clear(&self, address: u64, length: u64) -> Result<(), RamError> {
            self.ram.clear(address, length)
        }
    }

    /// Memory of `size` bytes, each MiB of which holds its number.
    fn memory(size: u64, from: u64) -> Broken {
        let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap();
        for at in (0..size).step_by(MIB as usize) {
            Ram::write(&ram, at, &vec![1 + (at / MIB) as u8; MIB as usize]).unwrap();
        }
        Broken { ram, from }
    }

    /// The addresses that were sent, until `enough` batches have been.
    fn sent(ram: &Broken, enough: usize) -> (Vec<u64>, Result<Duration, Error>) {
        let pagemap = Pagemap::new();
        let scan = Scan::new(ram, &pagemap, Ledger::new(ram.regions()).take());
        let (mut addresses, mut batches) = (Vec::new(), 0);
        let result = send_batches(scan, |batch| {
            for stretch in batch.stretches() {
                let Stretch::Data { address, data } = stretch else { panic!("{stretch:?}") };
                assert!(data.iter().all(|byte| *byte == 1 + (address / MIB) as u8));
                addresses.push(address);
            }
            batches += 1;
            if batches == enough { Err(Error::Interrupted) } else { Ok(()) }
        });
        (addresses, result)
    }

    fn first(count: u64) -> Vec<u64> {
        (0..count).map(|number| number * MIB).collect()
    }

    #[test]
    fn memory_arrives_in_order_whether_it_is_worth_a_thread_or_not() {
        for count in [3, WORTH_A_THREAD / MIB, 40] {
            let (addresses, result) = sent(&memory(count * MIB, u64::MAX), usize::MAX);
            result.unwrap();
            assert_eq!(addresses, first(count));
        }
    }

    #[test]
    fn memory_that_cannot_be_read_ends_the_walk_after_what_was_read() {
        for count in [5, 40] {
            let (addresses, result) = sent(&memory(count * MIB, 4 * MIB), usize::MAX);
            assert!(matches!(result, Err(Error::Ram(RamError { address, .. })) if address == 4 * MIB));
            assert_eq!(addresses, first(4));
        }
    }

    #[test]
    fn nothing_is_read_for_a_sender_that_has_failed() {
        let (addresses, result) = sent(&memory(40 * MIB, u64::MAX), 2);
        assert!(matches!(result, Err(Error::Interrupted)));
        assert_eq!(addresses, first(2));
    }
}
