//! Operations, locks and abandoned operations on images in temporary files.

use std::time::Duration;

use super::*;

/// The engines that this machine has.
fn engines() -> Vec<EngineKind> {
    let folder = tempfile::tempdir().unwrap();
    let file = Arc::new(ImageFile::open(&folder.path().join("image"), Some(512), false).unwrap());
    match Uring::start(file, || {}) {
        Ok(_) => vec![EngineKind::Threads, EngineKind::IoUring],
        Err(error) => {
            println!("SKIPPED: the engine on io_uring, which cannot be used: {error}");
            vec![EngineKind::Threads]
        }
    }
}

fn image(folder: &tempfile::TempDir, engine: EngineKind) -> Image {
    let file = ImageFile::open(&folder.path().join("image"), Some(1 << 20), false).unwrap();
    Image::new(file, engine, || {}).unwrap()
}

/// An image whose writes are slow to end: they are durable, and many.
fn busy_image(folder: &tempfile::TempDir, engine: EngineKind) -> Image {
    let mut image = image(folder, engine);
    for at in 0..64 {
        image.submit(Operation::Write { offset: at << 14, data: vec![at as u8; 1 << 14], durable: true });
    }
    image
}

/// Executes operations one after the other.
fn run(image: &mut Image, operation: Operation) -> Done {
    let tag = image.submit(operation);
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let done = image.collect();
        if let Some(ended) = done.into_iter().find(|ended| ended.tag == tag) {
            return ended;
        }
        assert!(image.wait(deadline), "nothing ends");
    }
}

fn read(image: &mut Image, offset: u64, length: usize) -> Vec<u8> {
    let read = Operation::Read { offset, data: vec![0; length], durable: true };
    match run(image, read) {
        Done { operation: Operation::Read { data, .. }, result: Ok(()), .. } => data,
        other => panic!("{other:?}"),
    }
}

#[test]
fn operations_do_what_they_say() {
    for engine in engines() {
        let folder = tempfile::tempdir().unwrap();
        let mut image = image(&folder, engine);
        assert_eq!(image.blocks(), 2048);
        for durable in [false, true] {
            let write = Operation::Write { offset: 4096, data: vec![7; 8192], durable };
            assert_eq!(run(&mut image, write).result, Ok(()));
            assert_eq!(read(&mut image, 4096, 8192), [7; 8192]);
            let zero = Operation::Zero { offset: 4608, length: 512, deallocate: durable, durable };
            assert_eq!(run(&mut image, zero).result, Ok(()));
            assert_eq!(read(&mut image, 4096, 1536), [[7; 512], [0; 512], [7; 512]].concat());
            assert_eq!(
                run(&mut image, Operation::Deallocate(vec![(4096, 4096), (8192, 512)])).result,
                Ok(())
            );
            assert_eq!(read(&mut image, 4096, 4608), [0; 4608]);
            assert_eq!(read(&mut image, 8704, 3584), [7; 3584]);
            assert_eq!(run(&mut image, Operation::Flush).result, Ok(()));
        }
    }
}

#[test]
fn a_hole_takes_no_space() {
    for engine in engines() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let mut image = image(&folder, engine);
        let blocks = || std::fs::metadata(folder.path().join("image")).unwrap().blocks();
        run(&mut image, Operation::Write { offset: 0, data: vec![1; 1 << 20], durable: true });
        let full = blocks();
        run(&mut image, Operation::Deallocate(vec![(0, 1 << 19)]));
        run(&mut image, Operation::Flush);
        assert!(blocks() < full, "{} of {full}", blocks());
    }
}

#[test]
fn an_image_has_one_owner_until_the_last_operation_has_ended() {
    for engine in engines() {
        let folder = tempfile::tempdir().unwrap();
        let (mut first, mut second) = (image(&folder, engine), image(&folder, engine));
        assert_eq!(first.own(), Ok(()));
        assert_eq!(first.own(), Ok(()), "it has it");
        assert_eq!(second.own(), Err(Errno::EBUSY));
        first.submit(Operation::Flush);
        assert!(!first.disown(), "it may still write");
        assert_eq!(second.own(), Err(Errno::EBUSY));
        while !first.is_idle() {
            first.wait(Instant::now() + Duration::from_mins(1));
            first.collect();
        }
        assert!(first.disown());
        assert_eq!(second.own(), Ok(()));
        drop(second);
        assert_eq!(first.own(), Ok(()), "its owner is gone");
    }
}

#[test]
fn devices_that_only_read_share_an_image() {
    for engine in engines() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = image(&folder, engine);
        let reader = || {
            let file = ImageFile::open(&folder.path().join("image"), None, true).unwrap();
            Image::new(file, engine, || {}).unwrap()
        };
        let (mut first, mut second) = (reader(), reader());
        assert_eq!((first.own(), second.own()), (Ok(()), Ok(())));
        assert_eq!(writer.own(), Err(Errno::EBUSY));
        assert!(first.disown() && second.disown());
        assert_eq!((writer.own(), first.own()), (Ok(()), Err(Errno::EBUSY)));
    }
}

#[test]
fn abandoned_operations_are_waited_for_and_not_returned() {
    for engine in engines() {
        let folder = tempfile::tempdir().unwrap();
        let mut image = image(&folder, engine);
        let tag = image.submit(Operation::Write { offset: 0, data: vec![5; 512], durable: false });
        image.abandon([tag]);
        assert!(!image.takes_operations());
        let deadline = Instant::now() + Duration::from_mins(1);
        while !image.takes_operations() {
            assert!(image.wait(deadline));
            assert_eq!(image.collect(), []);
        }
        assert!(image.is_idle());
        assert_eq!(read(&mut image, 0, 512), [5; 512]);
    }
}

#[test]
fn images_that_cannot_be_used_are_refused_with_their_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("odd"), [0; 700]).unwrap();
    std::fs::write(path("empty"), []).unwrap();
    let refused = |name: &str, size| ImageFile::open(&path(name), size, false).unwrap_err().to_string();
    assert!(refused("absent", None).contains("cannot open image"), "{}", refused("absent", None));
    assert!(refused("odd", None).contains("700 bytes, expected a multiple of 512"));
    assert!(refused("odd", Some(1024)).contains("has 700 bytes, expected 1024"));
    assert!(refused("empty", None).contains("0 bytes"));
    assert_eq!(ImageFile::open(&path("empty"), Some(1024), false).unwrap().bytes(), 1024);
    assert_eq!(ImageFile::open(&path("new"), Some(512), false).unwrap().bytes(), 512);
    assert!(ImageFile::open(&path("newer"), Some(512), true).is_err(), "reading creates nothing");
}

#[test]
fn operations_of_every_kind_and_more_than_an_engine_takes_at_once_all_end() {
    for engine in engines() {
        let folder = tempfile::tempdir().unwrap();
        let mut image = image(&folder, engine);
        let mut expected = BTreeSet::new();
        for at in 0..600 {
            let offset = (at % 256) * 4096;
            let operation = match at % 5 {
                0 => Operation::Flush,
                1 => Operation::Read { offset, data: vec![0; 4096], durable: false },
                2 => Operation::Zero { offset, length: 4096, deallocate: at % 2 == 0, durable: false },
                3 => Operation::Deallocate(vec![(offset, 512), (offset + 512, 512)]),
                _ => Operation::Write { offset, data: vec![at as u8; 4096], durable: at % 25 == 4 },
            };
            expected.insert(image.submit(operation));
        }
        let deadline = Instant::now() + Duration::from_mins(1);
        while !image.is_idle() {
            for ended in image.collect() {
                assert_eq!(ended.result, Ok(()), "{:?}", ended.operation);
                assert!(expected.remove(&ended.tag), "it ends once");
            }
            assert!(image.is_idle() || image.wait(deadline), "{} do not end", expected.len());
        }
        assert!(expected.is_empty());
    }
}

#[test]
fn whoever_waits_for_a_notification_gets_one() {
    for engine in engines() {
        let folder = tempfile::tempdir().unwrap();
        let file = ImageFile::open(&folder.path().join("image"), Some(1 << 20), false).unwrap();
        let (notify, notified) = std::sync::mpsc::channel();
        let mut image = Image::new(file, engine, move || {
            let _ = notify.send(());
        })
        .unwrap();
        image.submit(Operation::Write { offset: 0, data: vec![1; 4096], durable: true });
        // It is found ended, or told of.
        while image.collect().is_empty() {
            notified.recv_timeout(Duration::from_mins(1)).unwrap();
        }
    }
}

#[test]
fn an_image_that_is_dropped_waits_for_what_it_has_begun() {
    for engine in engines() {
        let folder = tempfile::tempdir().unwrap();
        let mut image = busy_image(&folder, engine);
        assert_eq!(image.own(), Ok(()));
        drop(image);
        let contents = std::fs::read(folder.path().join("image")).unwrap();
        for (at, part) in contents.chunks(1 << 14).enumerate() {
            assert_eq!(part, vec![at as u8; 1 << 14], "{engine:?}");
        }
        let mut next = self::image(&folder, engine);
        assert_eq!(next.own(), Ok(()));
    }
}

#[test]
fn the_memory_of_requests_that_have_not_ended_outlives_their_engine() {
    // Nobody waits here, as at the end of a device whose disk does not answer.
    for engine in engines() {
        let folder = tempfile::tempdir().unwrap();
        let mut image = busy_image(&folder, engine);
        assert!(image.collect().len() <= 64);
        image.engine = Box::new(Pool::start(image.file.clone(), || {}).unwrap());
        image.in_flight = 0;
        drop(image);
        // What the allocator gives out again is not what the kernel reads: each part has its own bytes, or none.
        let noise: Vec<Vec<u8>> = (0..64).map(|_| vec![0xee; 1 << 14]).collect();
        let mut next = self::image(&folder, engine);
        assert_eq!(run(&mut next, Operation::Flush).result, Ok(()));
        drop(noise);
        let contents = std::fs::read(folder.path().join("image")).unwrap();
        for (at, part) in contents.chunks(1 << 14).enumerate() {
            assert!(part.iter().all(|byte| *byte == at as u8 || *byte == 0), "{engine:?}: part {at}");
        }
    }
}
