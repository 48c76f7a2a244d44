//! `fsm::next` over all pairs, beside a plain array lookup in C compiled with -O2, in one run.
//!
//! Prints nanoseconds a call for both and their ratio, then lets criterion measure ours closely. Both sides walk the
//! same list of questions from memory and add up the answers; rounds of the two alternate, and the least of each counts,
//! so that a busy machine disturbs both alike.

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use criterion::Criterion;
use whimbrel_protocol::{MigrationFlags, State, fsm};

/// Times the list is walked in one measurement.
const WALKS: u32 = 200_000;
const MEASUREMENTS: usize = 15;

fn questions() -> Vec<(MigrationFlags, State, State)> {
    let mut list = Vec::new();
    for flags in 0..8 {
        for from in State::ALL {
            for to in State::ALL {
                list.push((MigrationFlags::from_bits_retain(flags), from, to));
            }
        }
    }
    // An order that no branch predictor finds a pattern in, the same in both programs.
    let mut seed = 1u64;
    for last in (1..list.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        list.swap(last, (seed >> 33) as usize % (last + 1));
    }
    list
}

fn answer(question: &(MigrationFlags, State, State)) -> u32 {
    fsm::next(question.0, question.1, question.2).map_or(8, State::number)
}

// A function of its own, as the C program's loop is: inlined into a large `main` its loop lands where it may.
#[inline(never)]
fn nanoseconds_of_ours(list: &[(MigrationFlags, State, State)]) -> f64 {
    let start = Instant::now();
    let mut sum = 0u32;
    for _ in 0..WALKS {
        for question in black_box(list) {
            sum = sum.wrapping_add(answer(question));
        }
    }
    black_box(sum);
    start.elapsed().as_secs_f64() * 1e9 / f64::from(WALKS) / list.len() as f64
}

/// A C program that holds the same table and list, and prints the nanoseconds a lookup takes, once a line read.
fn c_program(list: &[(MigrationFlags, State, State)]) -> String {
    let mut table = String::new();
    let mut asked = String::new();
    for flags in 0..8 {
        for from in State::ALL {
            for to in State::ALL {
                let flags = MigrationFlags::from_bits_retain(flags);
                write!(table, "{},", answer(&(flags, from, to))).expect("a String takes everything");
            }
        }
    }
    for (flags, from, to) in list {
        write!(asked, "{{{},{},{}}},", flags.bits(), from.number(), to.number())
            .expect("a String takes everything");
    }
    format!(
        r#"
#include <stdint.h>
#include <stdio.h>
#include <time.h>
static const uint8_t table[8][8][8] = {{ {table} }};
struct question {{ uint64_t flags; uint8_t from, to; }};
static const struct question list[] = {{ {asked} }};
static const struct question *volatile source = list;
static volatile uint32_t sink;
int main(void) {{
    while (getchar() != EOF) {{
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        uint32_t sum = 0;
        for (uint32_t walk = 0; walk < {WALKS}u; walk++) {{
            const struct question *q = source;
            for (unsigned i = 0; i < {count}; i++)
                sum += table[q[i].flags & 7][q[i].from][q[i].to];
        }}
        clock_gettime(CLOCK_MONOTONIC, &b);
        sink = sum;
        printf("%.6f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / {WALKS} / {count});
        fflush(stdout);
    }}
}}
"#,
        count = list.len(),
    )
}

fn compare(list: &[(MigrationFlags, State, State)]) -> std::io::Result<()> {
    let folder = std::env::temp_dir().join(format!("whimbrel-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let program = folder.join("lookup");
    let mut compiler = Command::new("cc")
        .args(["-O2", "-w", "-Wno-missing-braces", "-x", "c", "-", "-o"])
        .arg(&program)
        .stdin(Stdio::piped())
        .spawn()?;
    compiler.stdin.take().expect("piped").write_all(c_program(list).as_bytes())?;
    if !compiler.wait()?.success() {
        return Err(std::io::Error::other("the C program does not compile"));
    }
    let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().expect("piped");
    let mut output = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("piped")));
    let (mut ours, mut theirs) = (f64::MAX, f64::MAX);
    for _ in 0..MEASUREMENTS {
        ours = ours.min(nanoseconds_of_ours(list));
        input.write_all(b"\n")?;
        let line = output.next().ok_or_else(|| std::io::Error::other("the C program ended"))??;
        theirs = theirs.min(line.parse().map_err(std::io::Error::other)?);
    }
    drop(input);
    child.wait()?;
    std::fs::remove_dir_all(&folder)?;
    println!(
        "next: {ours:.3} ns a call, lookup in C: {theirs:.3} ns, ratio {:.2} (goal: at most 1.2)",
        ours / theirs
    );
    Ok(())
}

fn main() {
    let list = questions();
    if let Err(error) = compare(&list) {
        eprintln!("no comparison with C: {error}");
    }
    let mut criterion = Criterion::default().configure_from_args();
    criterion.bench_function("next over all flags and pairs (512 calls)", |bencher| {
        bencher.iter(|| black_box(&list).iter().map(answer).fold(0, u32::wrapping_add));
    });
    criterion.bench_function("path RUNNING to STOP_COPY", |bencher| {
        bencher.iter(|| {
            fsm::path(black_box(MigrationFlags::all()), State::Running, State::StopCopy).map(Iterator::count)
        });
    });
    criterion.final_summary();
}
