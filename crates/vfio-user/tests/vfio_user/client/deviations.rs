//! Known deviations of servers, which are lived with, and told once in the log.

use std::io;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use tracing::Dispatch;
use tracing::subscriber::NoSubscriber;
use tracing_subscriber::fmt::MakeWriter;
use vm_memory::MmapRegion;
use whimbrel_engine::archive::{self, Form};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaMap, DmaRegion, Errno, Migratable, State};
use whimbrel_vfio_user::message::Command;

use super::stranger::{Access, Stranger, Ways};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;
    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// The warnings of this thread meanwhile.
fn warnings(work: impl FnOnce()) -> Vec<String> {
    // As long as there is but one subscriber, the thread that meets an event first decides whether anybody wants it.
    // That may be another test's, which has none.
    static ANOTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::default()));
    LazyLock::force(&ANOTHER);
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_ansi(false)
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(std::mem::take(&mut log.0.lock())).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn memory(size: usize) -> DmaRegion {
    DmaRegion::from(Arc::<MmapRegion>::new(MmapRegion::new(size).unwrap()))
}

#[test]
fn a_state_that_comes_padded_is_saved_as_long_as_it_is() {
    let mut stranger = Stranger::new(Ways::default());
    let mut saved = Vec::new();
    archive::save(&mut stranger.client, &mut saved, Form::Raw).unwrap();
    let card = stranger.leave();
    assert!(saved == card.contents, "{} bytes of {}", saved.len(), card.contents.len());
}

#[test]
fn a_state_is_restored_into_a_server_that_takes_one_receive_for_a_message() {
    let state = vec![0x5a; 3_000_000];
    let mut stranger = Stranger::new(Ways::default());
    archive::restore(&mut stranger.client, state.as_slice(), Form::Raw).unwrap();
    let card = stranger.leave();
    assert!(card.loaded == state, "{} bytes arrived", card.loaded.len());
    let longest = card.asked.iter().map(|(_, payload)| *payload).max();
    assert!(longest.unwrap() <= 128 << 10, "{longest:?}");
}

#[test]
fn writes_to_regions_go_in_pieces_that_one_receive_gives() {
    let mut stranger = Stranger::new(Ways::default());
    let data = vec![1; 1 << 20];
    stranger.client.write_region(0, 0, &data).unwrap();
    stranger.client.post_write(0, 0, &data).unwrap();
    let mut back = vec![0; 1 << 20];
    stranger.client.read_region(0, 0, &mut back).unwrap();
    assert!(back.iter().all(|byte| *byte == 7));
    let card = stranger.leave();
    let writes = card.asked.iter().filter(|(command, _)| *command == Command::RegionWrite);
    assert_eq!(writes.clone().map(|(_, payload)| payload - 16).sum::<usize>(), 2 << 20);
    assert!(writes.clone().all(|(_, payload)| *payload <= 128 << 10));
    let reads = card.asked.iter().filter(|(command, _)| *command == Command::RegionRead);
    assert_eq!(reads.count(), 1, "what is read is as long as was agreed on");
}

#[test]
fn an_unmap_that_is_answered_with_a_header_alone_is_done() {
    let mut stranger = Stranger::new(Ways::default());
    let both = DmaMapFlags::READ | DmaMapFlags::WRITE;
    for iova in [0x1000, 0x2000, 0x3000, 0x4000] {
        stranger.client.map_dma(iova, both, memory(0x1000)).unwrap();
    }
    assert_eq!(stranger.client.unmap_dma(0x1000, 0x2000).unwrap(), 0x2000);
    assert_eq!(stranger.client.unmap_all_dma().unwrap(), 0x2000, "what was left");
    stranger.client.map_dma(0x1000, both, memory(0x4000)).unwrap();
    stranger.leave();
}

#[test]
fn a_write_that_is_answered_with_a_header_alone_is_done() {
    let mut stranger = Stranger::new(Ways { region: Access::Empty, ..Ways::default() });
    stranger.client.write_region(0, 8, &[1; 8]).unwrap();
    stranger.client.read_region(0, 8, &mut [0; 8]).unwrap();
    stranger.leave();
}

#[test]
fn an_error_without_an_errno_is_eio_and_the_connection_goes_on() {
    let mut stranger = Stranger::new(Ways { region: Access::NoErrno, ..Ways::default() });
    let error = stranger.client.read_region(0, 0, &mut [0; 4]).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EIO), "{error}");
    assert_eq!(stranger.client.info().unwrap().num_regions, 9);
    stranger.leave();
}

#[test]
fn the_payload_of_an_error_is_ignored() {
    let mut stranger = Stranger::new(Ways { region: Access::WithPayload, ..Ways::default() });
    let error = stranger.client.read_region(0, 0, &mut [0; 4]).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EBUSY), "{error}");
    assert_eq!(stranger.client.info().unwrap().num_regions, 9);
    stranger.leave();
}

#[test]
fn a_device_whose_migration_is_invalid_does_not_migrate() {
    let mut stranger = Stranger::new(Ways { no_migration: true, ..Ways::default() });
    assert_eq!(stranger.client.migration_flags().unwrap(), None);
    stranger.leave();
}

#[test]
fn a_stopped_device_is_reset_without_running_with_what_it_holds() {
    for keeps_state in [false, true] {
        for state in [State::Stop, State::StopCopy, State::Resuming, State::PreCopy] {
            let mut stranger = Stranger::new(Ways { keeps_state, ..Ways::default() });
            let mut data = stranger.client.set_state(State::Resuming).unwrap().unwrap();
            data.write_all(b"of a device that works on another host").unwrap();
            // Where it is when it is to be reset, with all that it holds.
            stranger.card.lock().state = state;
            stranger.client.reset().unwrap();
            assert_eq!(stranger.client.state().unwrap(), State::Running, "{state}");
            let late = data.write_all(b"late").unwrap_err();
            assert_eq!(late.errno(), Some(Errno::ENODEV), "{state}: the session is over");
            drop(data);
            let card = stranger.leave();
            assert!(card.loaded.is_empty() && !card.has_run_loaded, "{state} {keeps_state}");
        }
    }
}

#[test]
fn each_deviation_is_logged_once_a_connection_with_peer_and_request() {
    let session = || {
        let mut stranger =
            Stranger::new(Ways { region: Access::Empty, keeps_state: true, ..Ways::default() });
        for _ in 0..3 {
            archive::save(&mut stranger.client, io::sink(), Form::Raw).unwrap();
            stranger.client.write_region(0, 0, &[0]).unwrap();
            stranger.client.set_state(State::Stop).unwrap();
            stranger.client.reset().unwrap();
            stranger.card.lock().ways.region = Access::NoErrno;
            stranger.client.write_region(0, 0, &[0]).unwrap_err();
            stranger.card.lock().ways.region = Access::WithPayload;
            stranger.client.write_region(0, 0, &[0]).unwrap_err();
            stranger.card.lock().ways.region = Access::Empty;
        }
        stranger.card.lock().ways.no_migration = true;
        for _ in 0..3 {
            stranger.client.migration_flags().unwrap();
        }
        stranger.leave();
    };
    let expected = [
        ("VFIO_USER_MIG_DATA_READ", "trailing bytes after the reply"),
        ("VFIO_USER_REGION_WRITE", "empty reply where the request must be repeated"),
        ("VFIO_USER_DEVICE_RESET", "reset of a stopped device refused"),
        ("VFIO_USER_DEVICE_RESET", "migration state unchanged by a reset"),
        ("VFIO_USER_REGION_WRITE", "without an errno"),
        ("VFIO_USER_REGION_WRITE", "error reply with a payload"),
        ("VFIO_DEVICE_FEATURE_MIGRATION", "EINVAL for a device without migration"),
    ];
    for connection in 0..2 {
        let told = warnings(session);
        assert_eq!(told.len(), expected.len(), "{connection}: {told:#?}");
        for (line, (request, deviation)) in told.iter().zip(expected) {
            for part in ["peer=\"stranger\"", request, deviation] {
                assert!(line.contains(part), "{part} is missing in {line}");
            }
        }
    }
}
