//! The results as pictures.

use std::error::Error;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::results::{CaseResult, Results, RuleResult};

const WIDTH: u32 = 1000;
/// Pixels of a bar, of the space between cases, and of the rest of a picture.
const BAR: u32 = 11;
const GAP: u32 = 16;
const FRAME: u32 = 120;
const FONT: &str = "sans-serif";
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 90, 166),
    RGBColor(214, 90, 60),
    RGBColor(240, 160, 100),
    RGBColor(110, 160, 80),
    RGBColor(150, 110, 180),
    RGBColor(140, 140, 140),
];

/// Bars of several rules for each of several cases.
struct Chart<'a> {
    title: &'a str,
    cases: Vec<&'a CaseResult>,
    /// On a logarithmic scale from `least` to `most`.
    value: fn(&RuleResult) -> Option<f64>,
    least: f64,
    most: f64,
    label: fn(f64) -> String,
}

/// Pictures as SVG, by the names of their files.
///
/// # Errors
///
/// One can't be drawn.
pub fn plots(results: &Results) -> anyhow::Result<Vec<(&'static str, String)>> {
    let cases = |worse: bool| results.cases.iter().filter(|case| case.worse == worse).collect();
    let wrong = Chart {
        title: "Sent back without reason, % of runs (less is better)",
        cases: cases(false),
        value: |rule| Some((rule.rolled_back.share * 100.0).max(0.01)),
        least: 0.01,
        most: 100.0,
        label: |value| format!("{value} %"),
    };
    let exposed = Chart {
        title: "Requests of the canary until a bad version is sent back, median (none: less than half of the runs)",
        cases: cases(true),
        value: |rule| {
            rule.canary_requests.filter(|_| rule.rolled_back.share >= 0.5).map(|it| it.median.max(1.0))
        },
        least: 1.0,
        most: 20_000.0,
        label: |value| format!("{value}"),
    };
    [("decision-false-rollbacks.svg", wrong), ("decision-exposure.svg", exposed)]
        .into_iter()
        .filter(|(_, chart)| !chart.cases.is_empty())
        .map(|(name, chart)| {
            let svg = draw(&chart).map_err(|error| anyhow!("can't draw `{name}`: {error}"))?;
            Ok((name, svg + "\n"))
        })
        .collect()
}

fn draw(chart: &Chart) -> Result<String, Box<dyn Error>> {
    let bars: usize = chart.cases.iter().map(|case| case.rules.len()).sum();
    let height = FRAME + bars as u32 * BAR + chart.cases.len() as u32 * GAP;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        draw_on(&area, chart, height - FRAME)?;
        area.present()?;
    }
    Ok(svg)
}

fn draw_on(area: &DrawingArea<SVGBackend, Shift>, chart: &Chart, height: u32) -> Result<(), Box<dyn Error>> {
    let mut plot = ChartBuilder::on(area)
        .caption(chart.title, (FONT, 17))
        .margin(12)
        .margin_left(170)
        .margin_right(30)
        .margin_bottom(30)
        .x_label_area_size(26)
        .build_cartesian_2d((chart.least..chart.most).log_scale(), f64::from(height)..0.0)?;
    plot.configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_label_formatter(&|value| (chart.label)(*value))
        .label_style((FONT, 13))
        .draw()?;
    let mut top = f64::from(GAP) / 2.0;
    for case in &chart.cases {
        let (x, y) = plot.backend_coord(&(chart.least, top));
        area.draw_text(&case.name, &(FONT, 13).into_text_style(area), (x - 165, y))?;
        for (rule, colour) in case.rules.iter().zip(COLOURS) {
            if let Some(value) = (chart.value)(rule) {
                let to = (value.min(chart.most), top + f64::from(BAR) - 2.0);
                plot.draw_series([Rectangle::new([(chart.least, top), to], colour.filled())])?;
            }
            top += f64::from(BAR);
        }
        top += f64::from(GAP);
    }
    legend(area, chart)
}

fn legend(area: &DrawingArea<SVGBackend, Shift>, chart: &Chart) -> Result<(), Box<dyn Error>> {
    let (_, height) = area.dim_in_pixel();
    let y = height as i32 - 18;
    for (i, (rule, colour)) in chart.cases[0].rules.iter().zip(COLOURS).enumerate() {
        let x = 180 + i as i32 * 125;
        area.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], colour.filled()))?;
        area.draw_text(&rule.rule, &(FONT, 13).into_text_style(area), (x + 17, y))?;
    }
    Ok(())
}
