//! The NVM Express model beside its image: the same load by a user-side driver of the model, in this process and over
//! vfio-user with shared memory, and by fio on the image itself. Then the time of its migration, and the size of its state.
//!
//! A name after `--` runs one part: moving, or the loads with it in their name, such as 'random reads'.
//!
//! The image is in the page cache, so that the disk does not hide what the model takes. Ways alternate, and the medians of
//! the ratios within one round are compared, so that a busy machine disturbs all alike.

mod fio;
mod host;
mod load;
mod moving;

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use whimbrel_models::nvme::EngineKind;

use self::host::Host;
use self::load::{LOADS, Load};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Bytes of the image.
const IMAGE: u64 = 256 << 20;
/// Says to this program that it is a server, of a device with this image.
const SERVER: &str = "WHIMBREL_BENCH_SERVER";
/// Says to that server to confine itself.
const CONFINED: &str = "WHIMBREL_BENCH_CONFINED";
/// The number of rounds, instead of 5.
const ROUNDS: &str = "WHIMBREL_BENCH_ROUNDS";
/// The time of each measurement in milliseconds, instead of 1000.
const TIME: &str = "WHIMBREL_BENCH_MILLISECONDS";

fn main() -> Result<()> {
    if let Some(image) = std::env::var_os(SERVER) {
        return host::serve(Path::new(&image), std::env::var_os(CONFINED).is_some());
    }
    let number = |name, otherwise| std::env::var(name).map_or(Ok(otherwise), |text| text.parse());
    let (rounds, time) = (number(ROUNDS, 5)?, Duration::from_millis(number(TIME, 1000)?));
    let folder = tempfile::tempdir()?;
    let part = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let loads: Vec<Load> = LOADS.into_iter().filter(|load| load.name.contains(&part)).collect();
    if !loads.is_empty() {
        io(folder.path(), &loads, rounds, time)?;
    }
    if "moving".contains(&part) {
        moving::measure(folder.path(), rounds)?;
    }
    Ok(())
}

/// Creates an image whose blocks are all in the page cache.
fn create_image(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    for mebibyte in 0..IMAGE >> 20 {
        file.write_all(&vec![mebibyte as u8 + 1; 1 << 20])?;
    }
    Ok(file.sync_all()?)
}

/// One way to the image, with its rates of operations for each load.
struct Way {
    name: &'static str,
    rates: Vec<Vec<f64>>,
}

fn io(folder: &Path, loads: &[Load], rounds: u64, time: Duration) -> Result<()> {
    // Each way has an image of its own: fio would not mind the owner's lock.
    let names = [
        "fio on the image",
        "one thread, io_uring",
        "one thread, pool",
        "in process, io_uring",
        "in process, pool",
        "vfio-user",
        "vfio-user, sandbox",
    ];
    let images = names.map(|name| folder.join(name));
    for image in &images {
        create_image(image)?;
    }
    let mut hosts = [
        Host::on_one_thread(&images[1], EngineKind::IoUring)?,
        Host::on_one_thread(&images[2], EngineKind::Threads)?,
        Host::in_process(&images[3], EngineKind::IoUring)?,
        Host::in_process(&images[4], EngineKind::Threads)?,
        Host::over_vfio_user(&images[5], false)?,
        Host::over_vfio_user(&images[6], true)?,
    ];
    let has_fio = fio::is_installed();
    let mut ways = names.map(|name| Way { name, rates: vec![Vec::new(); loads.len()] });
    for _ in 0..rounds {
        for (at, load) in loads.iter().enumerate() {
            if has_fio {
                ways[0].rates[at].push(fio::run(load, &images[0], time)?);
                settle(load, &images[0])?;
            }
            for (way, host) in hosts.iter_mut().enumerate() {
                ways[way + 1].rates[at].push(host.run(load, time)?);
                settle(load, &images[way + 1])?;
            }
        }
    }
    for (at, load) in loads.iter().enumerate() {
        println!("{}", load.name);
        for way in &ways {
            let rates = &way.rates[at];
            if rates.is_empty() {
                continue;
            }
            let bytes = median(rates.clone()) * load.bytes as f64;
            let ratios = rates.iter().zip(&ways[0].rates[at]).map(|(ours, bare)| ours / bare).collect();
            println!(
                "  {:<20} {:>9.0} operations/s {:>8.1} MB/s  ratio {:.2}",
                way.name,
                median(rates.clone()),
                bytes / 1e6,
                median(ratios)
            );
        }
    }
    Ok(())
}

/// Brings what a load has written to the disk, which would otherwise disturb the next one.
fn settle(load: &Load, image: &Path) -> Result<()> {
    if load.is_write {
        OpenOptions::new().write(true).open(image)?.sync_data()?;
    }
    Ok(())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
