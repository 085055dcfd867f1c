use std::collections::HashMap;
use std::fmt::Write;

use super::Metric;
use super::histogram::{BOUNDS, Histogram};

/// Samples, collected in any order and written family by family.
#[derive(Default)]
pub(super) struct Page {
    families: HashMap<&'static str, String>,
}

impl Page {
    /// One sample; `values` belong to the metric's labels, in their order.
    pub(super) fn add(&mut self, metric: &Metric, values: &[&str], sample: f64) {
        self.sample(metric, "", values, None, sample);
    }

    pub(super) fn add_histogram(&mut self, metric: &Metric, values: &[&str], histogram: &Histogram) {
        let counts = histogram.cumulative();
        for (bound, count) in BOUNDS.iter().zip(counts) {
            self.sample(metric, "_bucket", values, Some(&bound.to_string()), count as f64);
        }
        let all = counts[BOUNDS.len()] as f64;
        self.sample(metric, "_bucket", values, Some("+Inf"), all);
        self.sample(metric, "_sum", values, None, histogram.sum_seconds());
        self.sample(metric, "_count", values, None, all);
    }

    fn sample(&mut self, metric: &Metric, suffix: &str, values: &[&str], bound: Option<&str>, sample: f64) {
        debug_assert_eq!(metric.labels.len(), values.len(), "labels of {}", metric.name);
        let labels = metric.labels.iter().copied().zip(values.iter().copied());
        let labels: Vec<String> = labels
            .chain(bound.map(|bound| ("le", bound)))
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let family = self.families.entry(metric.name).or_default();
        // Writing to a string can't fail.
        let _ = writeln!(family, "{}{suffix}{labels} {sample}", metric.name);
    }

    /// The whole page; families without samples are left out.
    pub(super) fn finish(self, order: &[&Metric]) -> String {
        let mut out = String::new();
        for metric in order {
            if let Some(samples) = self.families.get(metric.name) {
                let (name, kind) = (metric.name, metric.kind.name());
                out += &format!("# HELP {name} {}\n# TYPE {name} {kind}\n{samples}", metric.help);
            }
        }
        out
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Kind;

    #[test]
    fn values_are_escaped() {
        let metric = Metric { name: "m", kind: Kind::Gauge, labels: &["a"], help: "Help." };
        let mut page = Page::default();
        page.add(&metric, &["x\"\\\ny"], 1.5);
        assert_eq!(page.finish(&[&metric]), "# HELP m Help.\n# TYPE m gauge\nm{a=\"x\\\"\\\\\\ny\"} 1.5\n");
    }
}
