//! `whimbrel serve nvme`: a disk for programs, confined, taken over in the middle of its work, and judged by the suite.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::disk::{Disk, IMAGE, private, shared};
use crate::support::{Served, argument, can_be_confined, command, whimbrel};
use crate::takeover::Server;

const LONG: Duration = Duration::from_mins(1);

/// An image of zeros.
fn image(folder: &Path) -> PathBuf {
    let path = folder.join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(IMAGE).unwrap();
    path
}

fn zeros() -> Vec<u8> {
    vec![0; IMAGE as usize]
}

#[test]
fn a_program_works_with_a_served_disk_and_its_image_contains_what_was_written() {
    let confined = can_be_confined("a confined disk");
    for options in [&[][..], &["--sandbox"]].into_iter().take(1 + usize::from(confined)) {
        for memory in [shared(), private()] {
            let folder = TempDir::new().unwrap();
            let (image, socket) = (image(folder.path()), folder.path().join("disk.socket"));
            let arguments = ["serve", "nvme", "--image", &argument(&image), "--socket", &argument(&socket)];
            let mut serve = command(arguments);
            serve.args(options);
            let (served, told) = Served::by(serve, &socket).unwrap();
            assert!(told.starts_with(&format!("serving nvme?image={}&", image.display())), "{told}");
            assert_eq!(told.contains(", confined by "), options.contains(&"--sandbox"), "{told}");
            let mut disk = Disk::start(&socket, memory, zeros());
            for _ in 0..20 {
                disk.work();
            }
            disk.check();
            // What was flushed is in the image, even if the server is killed.
            drop(served);
            assert!(std::fs::read(&image).unwrap() == disk.shadow);
        }
    }
}

#[test]
fn an_image_is_created_with_its_size_wherever_it_is_named() {
    let folder = TempDir::new().unwrap();
    let (image, socket) = (folder.path().join("a&b.img"), folder.path().join("disk.socket"));
    let mut serve = command(["serve", "nvme?size=1MiB", "--image", &argument(&image)]);
    serve.args(["--socket", &argument(&socket)]);
    let served = Served::by(serve, &socket).unwrap();
    assert_eq!(image.metadata().unwrap().len(), 1 << 20);
    drop(served);
}

#[test]
fn wrong_images_are_refused_with_what_to_write() {
    whimbrel(["serve", "nvme", "--socket", "s"])
        .misused()
        .says(&["model nvme needs the setting image", "--image PATH"]);
    whimbrel(["serve", "nvme?image=a", "--image", "b", "--socket", "s"])
        .misused()
        .says(&["duplicate setting image for model nvme", "give the image once"]);
    whimbrel(["serve", "accel", "--image", "b", "--socket", "s"])
        .misused()
        .says(&["unknown setting image for model accel", "--image is for an nvme"]);
    let folder = TempDir::new().unwrap();
    let [socket, missing] = ["s", "missing.img"].map(|name| argument(&folder.path().join(name)));
    whimbrel(["serve", "nvme", "--image", &missing, "--socket", &socket]).failed().says(&[
        "cannot be served",
        "cannot open image",
        "missing.img",
    ]);
}

#[test]
fn a_program_works_on_while_the_server_of_its_disk_is_replaced_three_times() {
    for memory in [shared(), private()] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().canonicalize().unwrap().join("socket");
        let image = argument(&image(folder.path()));
        let mut model = vec!["nvme", "--image", &image, "--allow-takeover"];
        if can_be_confined("a confined disk that is taken over") {
            model.push("--sandbox");
        }
        let start = |more: [&str; 2]| Server::start(&[&model[..], &more].concat());
        let mut server = start(["--socket", &argument(&path)]);
        let mut disk = Disk::start(&path, memory, zeros());
        let rounds = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let replacing = scope.spawn(|| {
                let waits_for = |count: u32| {
                    let (seen, patience) = (rounds.load(Ordering::Relaxed), Instant::now() + LONG);
                    while rounds.load(Ordering::Relaxed) < seen + count {
                        assert!(Instant::now() < patience, "the program does not go on");
                        std::thread::sleep(Duration::from_millis(1));
                    }
                };
                for _ in 0..3 {
                    waits_for(5);
                    let next = start(["--takeover", &argument(&path)]);
                    assert!(next.told.contains(", taken over from another server"), "{}", next.told);
                    let result = std::mem::replace(&mut server, next).ended();
                    assert_eq!(result["taken_over"], true);
                    assert_eq!(result["clients"], 1);
                }
                waits_for(5);
            });
            // Also if it failed, which ends the test.
            while !replacing.is_finished() {
                disk.work();
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        disk.check();
        drop(server);
        assert!(std::fs::read(&image).unwrap() == disk.shadow);
    }
}

#[test]
fn a_disk_passes_the_suite_alone_and_beside_one_of_its_kind() {
    let folder = TempDir::new().unwrap();
    let model =
        |name: &str| format!("model:nvme?image={}&size=1MiB&queues=2", argument(&folder.path().join(name)));
    whimbrel(["conform", &model("a")]).succeeded();
    // The two images differ, so that neither device waits for the other's to be free.
    whimbrel(["conform", &model("a"), &model("b"), "--allow", "reset"]).succeeded();
}
