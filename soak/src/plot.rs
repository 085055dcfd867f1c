//! The run as a picture: what Backstop takes, what it does, and when replicas were killed.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::plan::Kind;
use crate::report::Report;
use crate::watch::Sample;

const SIZE: (u32, u32) = (1000, 720);
const BLUE_LINE: RGBColor = RGBColor(31, 90, 166);
const FAULT: RGBColor = RGBColor(214, 90, 60);
const FONT: &str = "sans-serif";

type Outcome = Result<(), Box<dyn Error>>;

/// One curve.
struct Curve {
    title: &'static str,
    value: fn(&Sample) -> f64,
}

/// The picture as SVG.
///
/// # Errors
///
/// It can't be drawn.
pub(crate) fn draw(report: &Report) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let curves = [
            Curve { title: "resident memory, MiB", value: |it| it.memory_kib as f64 / 1024.0 },
            Curve { title: "open descriptors", value: |it| it.descriptors as f64 },
            Curve { title: "open streams (each red line is a kill -9)", value: |it| it.open_streams as f64 },
        ];
        for (area, curve) in area.split_evenly((curves.len(), 1)).iter().zip(&curves) {
            draw_curve(area, curve, report)?;
        }
        area.present()?;
    }
    Ok(svg)
}

fn draw_curve(area: &DrawingArea<SVGBackend, Shift>, curve: &Curve, report: &Report) -> Outcome {
    let points = || report.samples.iter().map(|sample| (sample.at / 60.0, (curve.value)(sample)));
    let last = points().map(|(at, _)| at).fold(0.5, f64::max);
    // From zero, or flat would be a matter of the scale.
    let highest = points().map(|(_, value)| value).fold(1.0, f64::max) * 1.15;
    let mut chart = ChartBuilder::on(area)
        .caption(curve.title, (FONT, 17))
        .margin(10)
        .x_label_area_size(26)
        .y_label_area_size(46)
        .build_cartesian_2d(0.0..last, 0.0..highest)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .y_labels(5)
        .x_labels(10)
        .x_label_formatter(&|at| format!("{at:.1} min"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .label_style((FONT, 13))
        .draw()?;
    for kill in report.actions.iter().filter(|done| done.kind == Kind::Kill) {
        let at = kill.at / 60.0;
        chart.draw_series(LineSeries::new([(at, 0.0), (at, highest)], FAULT.mix(0.35)))?;
    }
    chart.draw_series(LineSeries::new(points(), BLUE_LINE.stroke_width(2)))?;
    Ok(())
}
