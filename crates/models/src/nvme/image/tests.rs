//! Operations, locks and abandoned operations on images in temporary files.

use std::time::Duration;

use super::*;

fn image(folder: &tempfile::TempDir) -> Image {
    let file = ImageFile::open(&folder.path().join("image"), Some(1 << 20), false).unwrap();
    Image::new(file, || {}).unwrap()
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
    let folder = tempfile::tempdir().unwrap();
    let mut image = image(&folder);
    assert_eq!(image.blocks(), 2048);
    for durable in [false, true] {
        let write = Operation::Write { offset: 4096, data: vec![7; 8192], durable };
        assert_eq!(run(&mut image, write).result, Ok(()));
        assert_eq!(read(&mut image, 4096, 8192), [7; 8192]);
        let zero = Operation::Zero { offset: 4608, length: 512, deallocate: durable, durable };
        assert_eq!(run(&mut image, zero).result, Ok(()));
        assert_eq!(read(&mut image, 4096, 1536), [[7; 512], [0; 512], [7; 512]].concat());
        assert_eq!(run(&mut image, Operation::Deallocate(vec![(4096, 4096), (8192, 512)])).result, Ok(()));
        assert_eq!(read(&mut image, 4096, 4608), [0; 4608]);
        assert_eq!(read(&mut image, 8704, 3584), [7; 3584]);
        assert_eq!(run(&mut image, Operation::Flush).result, Ok(()));
    }
}

#[test]
fn a_hole_takes_no_space() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let mut image = image(&folder);
    let blocks = || std::fs::metadata(folder.path().join("image")).unwrap().blocks();
    run(&mut image, Operation::Write { offset: 0, data: vec![1; 1 << 20], durable: true });
    let full = blocks();
    run(&mut image, Operation::Deallocate(vec![(0, 1 << 19)]));
    run(&mut image, Operation::Flush);
    assert!(blocks() < full, "{} of {full}", blocks());
}

#[test]
fn an_image_has_one_owner_until_the_last_operation_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (image(&folder), image(&folder));
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

#[test]
fn devices_that_only_read_share_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = image(&folder);
    let reader = || {
        let file = ImageFile::open(&folder.path().join("image"), None, true).unwrap();
        Image::new(file, || {}).unwrap()
    };
    let (mut first, mut second) = (reader(), reader());
    assert_eq!((first.own(), second.own()), (Ok(()), Ok(())));
    assert_eq!(writer.own(), Err(Errno::EBUSY));
    assert!(first.disown() && second.disown());
    assert_eq!((writer.own(), first.own()), (Ok(()), Err(Errno::EBUSY)));
}

#[test]
fn abandoned_operations_are_waited_for_and_not_returned() {
    let folder = tempfile::tempdir().unwrap();
    let mut image = image(&folder);
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
