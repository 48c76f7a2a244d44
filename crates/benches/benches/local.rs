//! `Local::read_region` beside the read of the driver side that it makes, in one run.
//!
//! Prints nanoseconds a read and allocations a read for both. Rounds of the two alternate, and the least of each counts,
//! so that a busy machine disturbs both alike.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use whimbrel_models::Model;
use whimbrel_user::{Device, Local};

const READS: u32 = 200_000;
const ROUNDS: usize = 15;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, with a count.
struct Counting;

#[allow(unsafe_code)]
// SAFETY: all is left to the system's allocator, which keeps what the trait asks for.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Nanoseconds and allocations a call.
fn measured(mut call: impl FnMut()) -> (f64, f64) {
    let allocations = ALLOCATIONS.load(Ordering::Relaxed);
    let start = Instant::now();
    (0..READS).for_each(|_| call());
    let time = start.elapsed();
    let made = ALLOCATIONS.load(Ordering::Relaxed) - allocations;
    (time.as_secs_f64() * 1e9 / f64::from(READS), made as f64 / f64::from(READS))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let opened = "serial".parse::<Model>()?.open("serial")?;
    let core = opened.device().clone();
    let mut local = Local::new(opened);
    let mut best = [(f64::MAX, 0.0); 2];
    let mut data = [0; 4];
    for _ in 0..ROUNDS {
        let below = measured(|| {
            let _ = black_box(core.read_region(7, 0, black_box(&mut data)));
        });
        let above = measured(|| {
            let _ = black_box(local.read_region(7, 0, black_box(&mut data)));
        });
        for (best, now) in best.iter_mut().zip([below, above]) {
            *best = (best.0.min(now.0), now.1);
        }
    }
    local.read_region(7, 0, &mut data)?;
    println!("driver side          {:6.1} ns  {:.0} allocations", best[0].0, best[0].1);
    println!("Local::read_region   {:6.1} ns  {:.0} allocations", best[1].0, best[1].1);
    println!("ratio                {:6.2}", best[1].0 / best[0].0);
    Ok(())
}
