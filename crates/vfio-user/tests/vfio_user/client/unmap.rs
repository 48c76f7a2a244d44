//! Memory that is taken from a device: all of it, or with what the device has written.

use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, Errno, Migratable};
use whimbrel_vfio_user::{Client, ClientOptions};

use super::board::{PAGE, TARGET, board, memory};

const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);
const IOVA: u64 = 1 << 30;

/// The device writes to a page by DMA.
fn touch(client: &mut Client, page: u64) -> Result<(), whimbrel_user::Error> {
    client.write_region(0, TARGET, &(IOVA + page * PAGE + 5).to_ne_bytes())
}

fn pages(words: &[u64]) -> Vec<u64> {
    (0..words.len() as u64 * 64).filter(|page| words[*page as usize / 64] >> (page % 64) & 1 == 1).collect()
}

fn with_data(max_data_xfer_size: u32) -> ClientOptions {
    let capabilities = Client::capabilities().max_data_xfer_size(max_data_xfer_size);
    ClientOptions::default().capabilities(capabilities)
}

/// A client with mappings of so many pages each, one behind the other, and a log of all of them.
fn logged(options: &ClientOptions, sizes: &[u64]) -> Client {
    let (mut client, _) = board(options);
    let mut at = IOVA;
    for size in sizes {
        client.map_dma(at, BOTH, memory(size * PAGE)).unwrap();
        at += size * PAGE;
    }
    client.dma_logging_start(PAGE, &[IovaRange::new(IOVA, at - IOVA).unwrap()]).unwrap();
    client
}

#[test]
fn all_is_unmapped_at_once_and_can_be_mapped_again() {
    let (mut client, _) = board(&ClientOptions::default());
    assert_eq!(client.unmap_all_dma().unwrap(), 0);
    for at in 0..4 {
        client.map_dma(IOVA + 2 * at * PAGE, BOTH, memory(PAGE)).unwrap();
    }
    touch(&mut client, 2).unwrap();
    assert_eq!(client.unmap_all_dma().unwrap(), 4 * PAGE);
    assert_eq!(touch(&mut client, 2).unwrap_err().errno(), Some(Errno::EFAULT));
    client.map_dma(IOVA, BOTH, memory(8 * PAGE)).unwrap();
    touch(&mut client, 7).unwrap();
}

#[test]
fn what_the_device_has_written_is_told_when_it_is_unmapped() {
    // Mappings whose bitmaps do not begin at whole words of the range's.
    let mut client = logged(&ClientOptions::default(), &[70, 3, 100]);
    let written = [0, 1, 63, 64, 69, 70, 73, 74, 75, 136, 137, 172];
    for page in written {
        touch(&mut client, page).unwrap();
    }
    let mut words = [0; 3];
    let mut dirty = DirtyReport::new(IOVA, 173 * PAGE, PAGE, &mut words).unwrap();
    assert_eq!(client.unmap_dma_dirty(&mut dirty).unwrap(), 173 * PAGE);
    assert_eq!(pages(&words), written);
    assert_eq!(touch(&mut client, 0).unwrap_err().errno(), Some(Errno::EFAULT));
}

#[test]
fn without_a_log_nothing_is_unmapped_with_a_bitmap() {
    let (mut client, _) = board(&ClientOptions::default());
    client.map_dma(IOVA, BOTH, memory(PAGE)).unwrap();
    let mut words = [0];
    let mut dirty = DirtyReport::new(IOVA, PAGE, PAGE, &mut words).unwrap();
    assert_eq!(client.unmap_dma_dirty(&mut dirty).unwrap_err().errno(), Some(Errno::EINVAL));
    touch(&mut client, 0).unwrap();
    assert_eq!(client.unmap_dma(IOVA, PAGE).unwrap(), PAGE);
}

#[test]
fn a_bitmap_that_no_message_can_hold_is_refused_before_anything_is_unmapped() {
    let mut client = logged(&with_data(16), &[129]);
    touch(&mut client, 128).unwrap();
    let mut words = [0; 3];
    let mut dirty = DirtyReport::new(IOVA, 129 * PAGE, PAGE, &mut words).unwrap();
    assert_eq!(client.unmap_dma_dirty(&mut dirty).unwrap_err().errno(), Some(Errno::E2BIG));
    touch(&mut client, 1).unwrap();
    // Asked for in larger pages, it fits.
    let mut words = [0; 2];
    let mut dirty = DirtyReport::new(IOVA, 129 * PAGE, 2 * PAGE, &mut words).unwrap();
    assert_eq!(client.unmap_dma_dirty(&mut dirty).unwrap(), 129 * PAGE);
    assert_eq!(pages(&words), [0, 64]);
}

#[test]
fn a_report_whose_bitmap_takes_several_messages_is_whole() {
    // 24 bytes hold the bits of 192 pages, and 500 take three messages.
    for data in [8, 24, 4096] {
        let mut client = logged(&with_data(data), &[500]);
        let written = [0, 1, 63, 64, 190, 191, 192, 193, 255, 256, 383, 384, 385, 498, 499];
        for page in written {
            touch(&mut client, page).unwrap();
        }
        let mut words = [0; 8];
        let mut report = DirtyReport::new(IOVA, 500 * PAGE, PAGE, &mut words).unwrap();
        client.dma_logging_report(&mut report).unwrap();
        assert_eq!(pages(&words), written, "{data} bytes at a time");
        let mut words = [0; 8];
        let mut report = DirtyReport::new(IOVA, 500 * PAGE, PAGE, &mut words).unwrap();
        client.dma_logging_report(&mut report).unwrap();
        assert!(pages(&words).is_empty(), "it is told once");
    }
}
