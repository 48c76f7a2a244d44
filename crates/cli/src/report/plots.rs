//! The plots of a report, as SVG whose colours follow those of the page.

use std::fmt;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::Ended;
use super::samples::Samples;

/// The size of a plot, in units that the page scales.
const WIDTH: u32 = 860;
const HEIGHT: u32 = 230;
/// The height of a device in the timeline, and of all else there.
const ROW: u32 = 34;
const AROUND: u32 = 60;
/// The space around a chart, and that of the labels below it.
const MARGIN: u32 = 8;
const AXIS: u32 = 36;

/// The colours as plotters writes them, each of which the page replaces by one of its own.
const COLOURS: [(RGBColor, &str); 4] =
    [(INK, "var(--ink)"), (GRID, "var(--grid)"), (FIRST, "var(--first)"), (SECOND, "var(--second)")];
const INK: RGBColor = RGBColor(1, 2, 3);
const GRID: RGBColor = RGBColor(4, 5, 6);
const FIRST: RGBColor = RGBColor(7, 8, 9);
const SECOND: RGBColor = RGBColor(10, 11, 12);

/// A plot that could not be drawn.
#[derive(Debug)]
pub(super) struct NotDrawn(String);

impl fmt::Display for NotDrawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error + Send + Sync> From<DrawingAreaErrorKind<E>> for NotDrawn {
    fn from(error: DrawingAreaErrorKind<E>) -> NotDrawn {
        NotDrawn(error.to_string())
    }
}

/// A line of a plot: drawn through, or dashed.
pub(super) struct Line {
    points: Vec<(f64, f64)>,
    is_dashed: bool,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws on a fresh area, and returns the SVG with the page's colours.
fn drawn(height: u32, draw: impl FnOnce(&Area<'_>) -> Result<(), NotDrawn>) -> Result<String, NotDrawn> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        draw(&area)?;
        area.present()?;
    }
    for (colour, variable) in COLOURS {
        svg = svg.replace(&format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2), variable);
    }
    // The page says what a plot shows, and scales it.
    let size = format!("width=\"{WIDTH}\" height=\"{height}\"");
    Ok(svg.replacen(&size, "aria-hidden=\"true\"", 1))
}

/// Bytes left in each phase, in MiB.
pub(super) fn left(samples: &Samples) -> Result<String, NotDrawn> {
    let points =
        samples.list.iter().filter_map(|sample| Some((sample.at.as_secs_f64(), mib(sample.left()?))));
    chart("MiB left", &[Line { points: points.collect(), is_dashed: false }])
}

/// The throughput, and the rate at which data became dirty, in MiB/s.
pub(super) fn rates(samples: &Samples) -> Result<String, NotDrawn> {
    let points = |rate: fn(&whimbrel_engine::Progress) -> Option<u64>| {
        samples
            .list
            .iter()
            .filter_map(move |sample| Some((sample.at.as_secs_f64(), mib(rate(&sample.progress)?))))
    };
    chart(
        "MiB/s",
        &[
            Line { points: points(|progress| progress.throughput).collect(), is_dashed: false },
            Line { points: points(|progress| progress.dirty_rate).collect(), is_dashed: true },
        ],
    )
}

/// The predicted downtime, and the limit, in milliseconds.
pub(super) fn downtime(samples: &Samples) -> Result<String, NotDrawn> {
    let points = |time: fn(&whimbrel_engine::Progress) -> Option<std::time::Duration>| {
        samples.list.iter().filter_map(move |sample| {
            Some((sample.at.as_secs_f64(), time(&sample.progress)?.as_secs_f64() * 1e3))
        })
    };
    chart(
        "ms",
        &[
            Line { points: points(|progress| progress.expected_downtime).collect(), is_dashed: false },
            Line { points: points(|progress| progress.downtime_limit).collect(), is_dashed: true },
        ],
    )
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn chart(unit: &str, lines: &[Line]) -> Result<String, NotDrawn> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let most = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(0.0, f64::max);
    let end = most(|point| point.0).max(1e-3);
    let top = (most(|point| point.1) * 1.08).max(1e-3);
    drawn(HEIGHT, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(MARGIN)
            .x_label_area_size(AXIS)
            .y_label_area_size(74)
            .build_cartesian_2d(0.0..end, 0.0..top)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(("sans-serif", 13).into_font().color(&INK))
            .x_desc("seconds since the beginning")
            .y_desc(unit)
            .x_labels(8)
            .y_labels(5)
            .draw()?;
        for line in lines {
            let points = line.points.iter().copied();
            if line.is_dashed {
                chart.draw_series(DashedLineSeries::new(points, 7, 5, SECOND.stroke_width(2)))?;
            } else {
                chart.draw_series(LineSeries::new(points, FIRST.stroke_width(2)))?;
            }
        }
        Ok(())
    })
}

/// A time in a state, in milliseconds since the beginning.
struct Stay {
    device: usize,
    state: String,
    from: f64,
    to: f64,
}

/// The states of all devices around the stop; `None` if they were not asked to stop.
pub(super) fn timeline(ended: Ended<'_>) -> Result<Option<String>, NotDrawn> {
    let report = ended.report;
    let Some(stopped) = report.stopped_at_ms else { return Ok(None) };
    let last = report.transitions.iter().map(|transition| transition.at_ms).fold(report.total_ms, f64::max);
    let length = (last - stopped).max(0.1);
    let (begin, end) = ((stopped - length * 0.25).max(0.0), last + length * 0.1);
    let stays = stays(ended, begin, end);
    let rows = u32::try_from(report.devices.len()).unwrap_or(u32::MAX).min(200);
    let svg = drawn(rows * ROW + AROUND, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(MARGIN)
            .x_label_area_size(AXIS)
            .y_label_area_size(74)
            .build_cartesian_2d(begin - stopped..end - stopped, f64::from(rows)..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(("sans-serif", 13).into_font().color(&INK))
            .x_desc("milliseconds since the stop")
            .y_labels(0)
            .x_labels(8)
            .draw()?;
        let shown = || stays.iter().filter(|stay| stay.device < rows as usize);
        let box_of = |stay: &Stay| {
            let row = stay.device as f64;
            [(stay.from - stopped, row + 0.12), (stay.to - stopped, row + 0.88)]
        };
        let runs = |stay: &Stay| stay.state.starts_with("RUNNING") || stay.state.starts_with("PRE_COPY");
        chart.draw_series(
            shown()
                .filter(|stay| runs(stay))
                .map(|stay| Rectangle::new(box_of(stay), FIRST.mix(0.25).filled())),
        )?;
        chart.draw_series(shown().map(|stay| Rectangle::new(box_of(stay), INK)))?;
        let room = (end - begin) / f64::from(WIDTH - 90);
        chart.draw_series(
            shown().filter(|stay| (stay.to - stay.from) / room > stay.state.len() as f64 * 7.5).map(|stay| {
                let at = (stay.from - stopped + room * 5.0, stay.device as f64 + 0.34);
                Text::new(stay.state.clone(), at, ("sans-serif", 12).into_font().color(&INK))
            }),
        )?;
        drop(chart);
        // Beside the chart, which has no labels for rows.
        let height = f64::from(rows * ROW + AROUND - 2 * MARGIN - AXIS);
        for row in 0..rows {
            let y = f64::from(MARGIN) + (f64::from(row) + 0.5) * height / f64::from(rows) - 7.0;
            let style = ("sans-serif", 12).into_font().color(&INK);
            area.draw(&Text::new(format!("device {}", row + 1), (MARGIN.cast_signed(), y as i32), style))?;
        }
        Ok(())
    })?;
    Ok(Some(svg))
}

/// The times of all devices in each state, within a window.
fn stays(ended: Ended<'_>, begin: f64, end: f64) -> Vec<Stay> {
    let mut stays = Vec::new();
    for device in 0..ended.report.devices.len() {
        let (mut state, mut since) = ("RUNNING".to_string(), 0.0);
        let own = ended.report.transitions.iter().filter(|transition| transition.device == device);
        for transition in own {
            stays.push(Stay { device, state, from: since, to: transition.at_ms });
            (state, since) = (transition.to.clone(), transition.at_ms);
        }
        stays.push(Stay { device, state, from: since, to: end });
    }
    for stay in &mut stays {
        (stay.from, stay.to) = (stay.from.max(begin), stay.to.min(end));
    }
    stays.retain(|stay| stay.to > stay.from);
    stays
}
