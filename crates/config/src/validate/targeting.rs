//! Who gets which version: names that must exist, and what would never have an effect.

use super::{Validator, items};
use crate::node::Node;
use crate::problem::{Problem, alternatives, nearest};
use crate::source::join;

impl Validator<'_> {
    /// A rule asks for something, and for groups and keys that there are.
    pub(super) fn rules(&mut self, service: &Node, root: &Node, path: &str) {
        let groups = service.get("groups").map(Node::entries).unwrap_or_default();
        let groups: Vec<_> = groups.iter().map(|entry| (&*entry.name, entry.name.clone())).collect();
        let keys: Vec<&Node> = items(root, "keys").iter().filter_map(|key| key.get("name")).collect();
        let keys: Vec<_> = keys.iter().filter_map(|name| Some((name.text()?, name.shown()))).collect();
        let all_named = keys.len() == items(root, "keys").len();
        for (index, rule) in items(service, "rules").iter().enumerate() {
            let Some(wanted) = rule.get("match") else { continue };
            let path = format!("{path}.rules[{index}].match");
            let is_mapping = matches!(wanted.content, crate::node::Content::Map(_));
            if is_mapping && wanted.entries().iter().all(|entry| entry.node.is_null()) {
                let message = "the rule asks for nothing, so every request would match".to_owned();
                let problem = Problem::new(self.file, wanted.at, path.clone(), message);
                let expected = "at least one of `header`, `cookie`, `user`, `group`, `key` or `ip`";
                let hint = "what all requests get is `stable` of the service".to_owned();
                self.problems.push(problem.expected(expected).hint(Some(hint)));
            }
            if let Some(group) = wanted.get("group") {
                self.known("group", group, &groups, "`groups` in the service", format!("{path}.group"));
            }
            if let Some(key) = wanted.get("key").filter(|_| all_named) {
                self.known("key", key, &keys, "`keys` at the top level", format!("{path}.key"));
            }
        }
    }

    /// What comes after `request`, which every request has, would never be looked at.
    pub(super) fn sticky(&mut self, service: &Node, path: &str) {
        let units = items(service, "sticky");
        let mut seen = std::collections::HashMap::new();
        for (index, unit) in units.iter().enumerate() {
            self.unique(&mut seen, unit, format!("{path}.sticky[{index}]"), "this list already has");
        }
        let always = units.iter().position(|unit| matches!(unit.text(), Some("request" | "ip")));
        if let Some((unit, next)) = always.and_then(|at| Some((units.get(at)?, (at + 1, units.get(at + 1)?))))
        {
            let (index, next) = next;
            let message =
                format!("`{}` comes after `{}`, which every request has", next.shown(), unit.shown());
            let problem = Problem::new(self.file, next.at, format!("{path}.sticky[{index}]"), message);
            let expected = format!("`{}` as the last of the list", unit.shown());
            self.problems.push(problem.value(next.shown()).expected(expected));
        }
    }

    /// The stable version answers already.
    pub(super) fn shadow(&mut self, service: &Node, to: &Node, path: &str) {
        let first = || items(service, "versions").first()?.get("name")?.text();
        let stable = service.get("stable").and_then(Node::text).or_else(first);
        if to.text().is_some() && to.text() == stable {
            let message = format!("`{}` is the stable version, which answers already", to.shown());
            let problem = Problem::new(self.file, to.at, format!("{path}.shadow.to"), message);
            self.problems.push(problem.value(to.shown()).expected("another version"));
        }
    }

    /// The same parameter under both of its names would be sent twice.
    pub(super) fn request(&mut self, version: &Node, path: &str) {
        let Some(params) = version.get("request").and_then(|request| request.get("params")) else { return };
        let (Some(_), Some(node)) = (params.get("max_tokens"), params.get("max_completion_tokens")) else {
            return;
        };
        let message = "`max_tokens` and `max_completion_tokens` are the same parameter".to_owned();
        let path = join(path, "request.params.max_completion_tokens");
        let problem = Problem::new(self.file, node.at, path, message).value(node.shown());
        self.problems.push(problem.expected("one of them"));
    }

    /// `names` are there, each with how it may be shown.
    fn known(&mut self, kind: &str, reference: &Node, names: &[(&str, String)], place: &str, path: String) {
        let Some(text) = reference.text() else { return };
        if names.iter().any(|(name, _)| *name == text) {
            return;
        }
        let shown: Vec<&str> = names.iter().map(|(_, shown)| shown.as_str()).collect();
        let meant = nearest(&reference.shown(), shown.iter().copied());
        let message = format!("there is no {kind} `{}`", reference.shown());
        let expected = match &shown[..] {
            [] => format!("one of {place}, and there are none"),
            [name] => format!("`{name}`"),
            names => format!("one of {}", alternatives(names)),
        };
        let problem = Problem::new(self.file, reference.at, path, message).value(reference.shown());
        let hint = meant.map(|meant| format!("did you mean `{meant}`?"));
        self.problems.push(problem.expected(expected).hint(hint));
    }
}
