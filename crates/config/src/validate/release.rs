//! What a release goes by: shares in order, limits that mean something.

use std::collections::HashMap;

use super::{Validator, items, text_of};
use crate::measure::MetricName;
use crate::node::Node;
use crate::problem::{Problem, alternatives, nearest};
use crate::time::{Clock, DateTime, TimeZoneName};
use crate::types::{Kind, Metric, Rate};
use crate::units::{Percent, Unit};

impl Validator<'_> {
    /// Shares that go up to all of it, or down to nothing; a window that opens.
    pub(super) fn release(&mut self, service: &Node, root: &Node, path: &str) {
        let Some(release) = service.get("release") else { return };
        let path = format!("{path}.release");
        let steps: Vec<_> = items(release, "steps").iter().map(|step| step.get("weight")).collect();
        let least = 1.0 / f64::from(backstop_core::rollout::ALL);
        self.shares(
            &steps,
            &format!("{path}.steps[].weight"),
            "rising shares that end with `100%`",
            |share, before, last| {
                if share < least {
                    Some("is less than `0.001%`")
                } else if before.is_some_and(|before| share <= before) {
                    Some("is no larger than the step before it")
                } else {
                    (last && share < 1.0).then_some("is the last step and not all")
                }
            },
        );
        if let Some(gradual) = release.get("rollback").and_then(|rollback| rollback.get("gradual")) {
            let weights: Vec<_> = items(gradual, "weights").iter().map(|weight| Some(&**weight)).collect();
            let path = format!("{path}.rollback.gradual.weights[]");
            self.shares(&weights, &path, "falling shares that end with `0%`", |share, before, last| {
                if before.is_some_and(|before| share >= before) {
                    Some("is no smaller than the one before it")
                } else {
                    (last && share > 0.0).then_some("is the last one and not nothing")
                }
            });
        }
        self.guardrails(root, release, &path);
        self.triggers(root, release, &path);
        self.freezes(release, &path);
        self.drill(release, &path);
        let Some(window) = release.get("window") else { return };
        let clock = |key, default| text_of(window, key).map_or(Ok(default), |(_, text)| Clock::parse(text));
        if let (Ok(from), Ok(to)) = (clock("from", Clock::midnight()), clock("to", Clock::end_of_day()))
            && to <= from
        {
            let at = window.get("to").or_else(|| window.get("from")).map_or(window.at, |node| node.at);
            let message = "the window never opens: it ends before it begins".to_owned();
            let problem = Problem::new(self.file, at, format!("{path}.window"), message);
            let hint = "a window lies within a day; two releases a day apart need two days".to_owned();
            self.problems.push(problem.expected("`to` later than `from`").hint(Some(hint)));
        }
    }

    fn drill(&mut self, release: &Node, path: &str) {
        let Some(weight) = release.get("drill").and_then(|drill| drill.get("weight")) else { return };
        let least = 1.0 / f64::from(backstop_core::rollout::ALL);
        let share = weight.text().and_then(|text| Percent::parse(text).ok());
        if share.is_some_and(|share| share.share() < least) {
            let message = format!("`{}` is less than `0.001%`", weight.shown());
            let path = format!("{path}.drill.weight");
            let problem = Problem::new(self.file, weight.at, path, message).value(weight.shown());
            self.problems.push(problem.expected("at least `0.001%`"));
        }
    }

    fn freezes(&mut self, release: &Node, path: &str) {
        for (index, freeze) in items(release, "freeze").iter().enumerate() {
            let zone =
                text_of(freeze, "tz").map_or(Ok(TimeZoneName::utc()), |(_, text)| TimeZoneName::parse(text));
            let at = |key| text_of(freeze, key).and_then(|(_, text)| DateTime::parse(text).ok());
            if let (Ok(zone), Some(from), Some(to)) = (zone, at("from"), at("to"))
                && to.ends(&zone) <= from.begins(&zone)
            {
                let place = freeze.get("to").map_or(freeze.at, |node| node.at);
                let message = "the freeze ends before it begins".to_owned();
                let problem = Problem::new(self.file, place, format!("{path}.freeze[{index}]"), message);
                self.problems.push(problem.expected("`to` later than `from`"));
            }
        }
    }

    /// Each guardrail has what its kind needs, and nothing that would have no effect.
    fn guardrails(&mut self, root: &Node, release: &Node, path: &str) {
        let guardrails = items(release, "guardrails");
        let (mut names, mut kinds) = (HashMap::new(), Vec::new());
        for (index, guardrail) in guardrails.iter().enumerate() {
            let path = format!("{path}.guardrails[{index}]");
            let Some((node, name)) = text_of(guardrail, "metric") else { return };
            self.unique(&mut names, node, format!("{path}.metric"), "there is another guardrail for");
            let kind = Metric::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
            let known: Vec<&str> = Metric::ALL.iter().map(|(name, _)| *name).collect();
            if !self.source(root, guardrail, node, &known, &path) {
                return;
            }
            kinds.push(kind);
            self.limits_of(guardrail, (name, kind), &path);
            if let Some(require) = given(guardrail, "require")
                && let Some(why) = nothing_compared(release)
            {
                let message = format!("nothing can be proven: {why}");
                let problem = Problem::new(self.file, require.at, format!("{path}.require"), message);
                self.problems.push(problem.expected("a step with less than `100%`, or no `require`"));
            }
        }
        if !kinds.is_empty() && !kinds.contains(&Some(Kind::Events)) {
            let at = guardrails.first().map_or(release.at, |first| first.at);
            let message = "nothing here tells when answers fail or take too long".to_owned();
            let problem = Problem::new(self.file, at, format!("{path}.guardrails"), message);
            self.problems.push(problem.expected("a rate or a time among them, such as `error_rate`"));
        }
    }

    /// Keys of a guardrail that mean nothing for its kind, and those that are missing; `None` is what Prometheus is asked for.
    fn limits_of(&mut self, guardrail: &Node, (name, kind): (&str, Option<Kind>), path: &str) {
        let (useless, expected): (&[&str], _) = match kind {
            Some(Kind::Events) => (&["min_ratio", "max", "min", "for"], "`max_ratio`"),
            Some(Kind::Mean) => (&["max", "min", "for"], "`max_ratio` or `min_ratio`"),
            Some(Kind::Share | Kind::Number) => {
                (&["max_ratio", "min_ratio", "weight", "min", "require"], "`max`")
            }
            None => (&["max_ratio", "min_ratio", "weight", "require"], "`max` or `min`"),
        };
        for key in useless {
            if let Some(node) = given(guardrail, key) {
                let message = format!("`{key}` has no effect on `{name}`");
                let problem = Problem::new(self.file, node.at, format!("{path}.{key}"), message);
                self.problems.push(problem.expected(expected));
            }
        }
        if matches!(kind, Some(Kind::Events | Kind::Mean)) {
            return;
        }
        match (given(guardrail, "max"), given(guardrail, "min")) {
            (None, None) => {
                let message = format!("`{name}` has no limit");
                let problem = Problem::new(self.file, guardrail.at, path.to_owned(), message);
                self.problems.push(problem.expected(expected));
            }
            (Some(_), Some(min)) if kind.is_none() => {
                let message = "`max` and `min` exclude each other".to_owned();
                let problem = Problem::new(self.file, min.at, format!("{path}.min"), message);
                let hint = "make a guardrail of each, with another name".to_owned();
                self.problems.push(problem.expected("one of them").hint(Some(hint)));
            }
            _ => {}
        }
        for key in ["max", "min"] {
            if let Some(node) = given(guardrail, key) {
                self.amount(node, kind == Some(Kind::Share), &format!("{path}.{key}"));
            }
        }
    }

    fn triggers(&mut self, root: &Node, release: &Node, path: &str) {
        for (index, trigger) in items(release, "triggers").iter().enumerate() {
            let path = format!("{path}.triggers[{index}]");
            let Some((node, _)) = text_of(trigger, "metric") else { continue };
            if !self.source(root, trigger, node, &Rate::ALL, &path) {
                continue;
            }
            if let Some(threshold) = trigger.get("threshold") {
                let is_share = given(trigger, "prometheus").is_none();
                self.amount(threshold, is_share, &format!("{path}.threshold"));
            }
        }
    }

    /// A metric is one of ours, or there is somebody to ask. False if nobody knows what is meant.
    fn source(&mut self, root: &Node, of: &Node, metric: &Node, known: &[&str], path: &str) -> bool {
        let is_known = metric.text().is_some_and(|name| known.contains(&name));
        let (at, message, expected, hint) = match given(of, "prometheus") {
            Some(query) if is_known => {
                let message = format!("`{}` is counted by Backstop itself", metric.shown());
                (query, message, "another name, or no `prometheus`".to_owned(), None)
            }
            Some(query) if given(root, "prometheus").is_none() => {
                let message = "there is no Prometheus to ask".to_owned();
                (query, message, "`prometheus: { url: … }` at the top of the file".to_owned(), None)
            }
            None if !is_known => {
                let message = format!("`{}` is not one of the choices", metric.shown());
                let meant = nearest(&metric.shown(), known.iter().copied());
                let hint = match meant {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => "a metric of another name needs `prometheus`, the question for it".to_owned(),
                };
                (metric, message, format!("one of {}", alternatives(known)), Some(hint))
            }
            _ => return true,
        };
        // What is no name at all has been told.
        if !is_known && metric.text().is_none_or(|name| MetricName::parse(name).is_err()) {
            return false;
        }
        let key = if std::ptr::eq(at, metric) { "metric" } else { "prometheus" };
        let problem = Problem::new(self.file, at.at, format!("{path}.{key}"), message);
        self.problems.push(problem.value(at.shown()).expected(expected).hint(hint));
        false
    }

    /// Rates and growth are shares; what Prometheus says is a number.
    fn amount(&mut self, node: &Node, is_share: bool, path: &str) {
        let shown = node.shown();
        let has_sign = node.text().is_some_and(|text| Percent::parse(text).is_ok());
        let (what, expected) = match (is_share, has_sign) {
            (true, false) if node.is_number() => ("a percentage", Percent::EXPECTED),
            (false, true) => ("a number", "a number without a sign"),
            _ => return,
        };
        let problem = Problem::new(self.file, node.at, path.to_owned(), format!("`{shown}` is not {what}"));
        let hint = is_share.then(|| format!("add the sign: `{shown}%`"));
        self.problems.push(problem.value(shown).expected(expected).hint(hint));
    }

    /// Two ways to say who asks are one too many.
    pub(super) fn prometheus(&mut self, root: &Node) {
        let Some(prometheus) = given(root, "prometheus") else { return };
        let Some(token) = given(prometheus, "token") else { return };
        let headers = given(prometheus, "headers").map(Node::entries).unwrap_or_default();
        if headers.iter().any(|entry| entry.name.eq_ignore_ascii_case("authorization")) {
            let message = "`token` is the header `authorization` too".to_owned();
            let problem = Problem::new(self.file, token.at, "prometheus.token".to_owned(), message);
            self.problems.push(problem.expected("one of them"));
        }
    }
}

fn given<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    node.get(key).filter(|node| !node.is_null())
}

/// Why a release has no step with two versions to compare, if it has none.
fn nothing_compared(release: &Node) -> Option<&'static str> {
    if text_of(release, "mode").is_some_and(|(_, mode)| mode == "blue_green") {
        return Some("a `blue_green` release compares nothing");
    }
    let steps = items(release, "steps");
    let is_all = |step: &Node| text_of(step, "weight").is_some_and(|(_, weight)| weight == "100%");
    (steps.len() == 1 && is_all(&steps[0])).then_some("the only step gives the new version everything")
}
