//! The page of a report: one file without anything from outside, in the colours of its reader's choice, and with each plot's
//! figures as text.

use std::time::SystemTime;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Ended;
use super::plots::{self, NotDrawn};
use super::samples::Samples;
use crate::output;

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --grid: #d8d8d8; --first: #0b62a8; --second: #a83a00 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181b; --grid: #3b3f45; --first: #74b9f5; --second: #ffab70 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
h1, p, dd, li { overflow-wrap: anywhere }
svg { width: 100%; min-width: 38rem; height: auto; overflow: visible }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--grid); white-space: nowrap }
th:first-child, td:first-child { text-align: left }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1.2rem; font-variant-numeric: tabular-nums }
dt { opacity: .8 } dd { margin: 0 }
.failed { border-left: 4px solid var(--second); padding-left: .8rem }
:focus-visible { outline: 3px solid var(--first); outline-offset: 2px }
.line { border-bottom: 3px solid var(--first) } .dashed { border-bottom: 3px dashed var(--second) }";

/// Returns the page.
pub(super) fn page(ended: Ended<'_>, samples: &Samples) -> Result<String, NotDrawn> {
    let title = match ended.error {
        None => format!("Migration of {} to {}", ended.devices, ended.to),
        Some(_) => format!("Failed migration of {} to {}", ended.devices, ended.to),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { (title) }
                    p { "Ended " (humantime::format_rfc3339_seconds(SystemTime::now())) ", written on host " (host()) }
                    (outcome(ended))
                    @if !ended.report.migration.is_empty() { (course(ended, samples)?) }
                }
            }
        }
    };
    Ok(page.into_string())
}

/// Returns the name of this host.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The course of a migration that has begun: plots and tables.
fn course(ended: Ended<'_>, samples: &Samples) -> Result<Markup, NotDrawn> {
    Ok(html! {
        (timeline(ended)?)
        (plot("Downtime", html! {
            span.line { "expected downtime" } ", and " span.dashed { "its limit" }
        }, &plots::downtime(samples)?))
        (plot("Data left", html! { span.line { "bytes that the phase has yet to send" } }, &plots::left(samples)?))
        (plot("Rates", html! {
            span.line { "throughput" } ", and " span.dashed { "data that became dirty in the last round" }
        }, &plots::rates(samples)?))
        (rounds(ended))
        (devices(ended))
        (connections(ended))
        (transitions(ended))
    })
}

fn plot(title: &str, legend: Markup, svg: &str) -> Markup {
    html! {
        section {
            h2 { (title) }
            figure style="margin: 0" {
                figcaption { (legend) }
                (scrolled(title, PreEscaped(svg.to_string())))
            }
        }
    }
}

/// The outcome, and its figures if the migration has begun.
fn outcome(ended: Ended<'_>) -> Markup {
    let report = ended.report;
    html! {
        @if let Some(error) = ended.error {
            p.failed { strong { "It failed: " } (error) }
            @if let Some(advice) = error.advice() { p { (advice) } }
        }
        @if !report.migration.is_empty() { (figures(ended)) }
        @let warnings = ended.error.map_or(&report.warnings, |error| &error.warnings);
        @if !warnings.is_empty() {
            h2 { "Warnings" }
            ul { @for warning in warnings { li { (warning) } } }
        }
    }
}

fn figures(ended: Ended<'_>) -> Markup {
    let report = ended.report;
    let ms = output::milliseconds;
    html! {
        dl {
            @if ended.error.is_none() {
                dt { "Downtime" } dd { (ms(report.downtime_ms)) ", " (ms(report.predicted_downtime_ms)) " expected" }
                @let parts = report.loading_ms + report.inspection_ms + report.start_ms;
                dt { "stop, transfer and round trips" } dd { (ms((report.downtime_ms - parts).max(0.0))) }
                dt { "loading at the destination" } dd { (ms(report.loading_ms)) }
                dt { "inspection by the owner" } dd { (ms(report.inspection_ms)) }
                dt { "start at the destination" } dd { (ms(report.start_ms)) }
            }
            dt { "Downtime limit" } dd { (ms(report.downtime_limit_ms)) }
            dt { "Total time" } dd { (ms(report.total_ms)) }
            dt { "Pre-copy rounds" } dd { (report.rounds) }
            dt { "Memory" } dd { (output::bytes(report.memory_bytes)) ", " (output::bytes(report.zero_bytes)) " of zeros" }
            dt { "Device state" } dd { (output::bytes(report.device_bytes)) }
            dt { "After the stop" } dd { (output::bytes(report.final_bytes)) }
            dt { "On the link" } dd { (output::bytes(report.wire_bytes)) }
            @if report.compression {
                dt { "of memory, compressed" } dd { (output::bytes(report.memory_wire_bytes)) }
                dt { "of device state, compressed" } dd { (output::bytes(report.device_wire_bytes)) }
            }
            @if report.reconnections > 0 {
                dt { "Lost connections" } dd { (report.reconnections) " replaced, in " (ms(report.reconnecting_ms)) }
            }
            dt { "Throughput" } dd { (output::rate(report.throughput_bytes_per_s)) }
            dt { "Migration" } dd { (report.migration) }
        }
    }
}

fn timeline(ended: Ended<'_>) -> Result<Markup, NotDrawn> {
    let Some(svg) = plots::timeline(ended)? else { return Ok(html! {}) };
    let legend = html! { "The devices' states at the source around the stop; filled while a device runs. The table of transitions has all of them." };
    Ok(plot("Switchover", legend, &svg))
}

fn rounds(ended: Ended<'_>) -> Markup {
    let headings =
        ["Round", "Device state", "Memory", "Took", "State left", "Memory left", "Expected downtime"];
    table(
        "Rounds",
        headings,
        ended.report.round_list.iter().map(|round| {
            [
                round.number.to_string(),
                output::bytes(round.device_bytes),
                output::bytes(round.memory_bytes),
                output::milliseconds(round.ms),
                output::bytes(round.device_left),
                output::bytes(round.memory_left),
                round.expected_downtime_ms.map_or_else(|| "unknown".into(), output::milliseconds),
            ]
        }),
    )
}

fn devices(ended: Ended<'_>) -> Markup {
    let headings = ["Device", "Number", "State", "After the stop"];
    table(
        "Devices",
        headings,
        (1..).zip(&ended.report.devices).map(|(number, device)| {
            [
                device.name.clone(),
                number.to_string(),
                output::bytes(device.device_bytes),
                output::bytes(device.final_bytes),
            ]
        }),
    )
}

fn connections(ended: Ended<'_>) -> Markup {
    let headings = ["Connection", "Written", "Took", "Throughput"];
    table(
        "Connections",
        headings,
        (1..).zip(&ended.report.lanes).map(|(number, lane)| {
            [
                number.to_string(),
                output::bytes(lane.wire_bytes),
                output::milliseconds(lane.ms),
                output::rate(lane.bytes_per_s),
            ]
        }),
    )
}

fn transitions(ended: Ended<'_>) -> Markup {
    let name = |device: usize| ended.report.devices.get(device).map_or("", |device| device.name.as_str());
    let headings = ["Device", "State", "Reached after", "Took"];
    table(
        "Transitions",
        headings,
        ended.report.transitions.iter().map(|transition| {
            [
                name(transition.device).to_string(),
                format!("{}{}", transition.to, if transition.by_reset { " by a reset" } else { "" }),
                output::milliseconds(transition.at_ms),
                output::milliseconds(transition.ms),
            ]
        }),
    )
}

fn table<const N: usize>(
    title: &str,
    headings: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Markup {
    html! {
        section {
            h2 { (title) }
            (scrolled(title, html! {
                table {
                    thead { tr { @for heading in headings { th scope="col" { (heading) } } } }
                    tbody { @for row in rows { tr { @for cell in row { td { (cell) } } } } }
                }
            }))
        }
    }
}

/// Contents that may be wider than the page, and that the keyboard can scroll.
fn scrolled(title: &str, contents: Markup) -> Markup {
    html! { div.scroll tabindex="0" role="region" aria-label=(title) { (contents) } }
}
