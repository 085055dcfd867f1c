//! What the schema can't say: names that must be unique or exist, keys that need or exclude each other.
//!
//! Works on the tree, not on the types, so that it sees whatever parts of a faulty file are sound. What is
//! not as the schema wants it is passed over here: the checker has reported it.

use std::collections::HashMap;
use std::rc::Rc;

use backstop_core::table::Target;

use crate::http::HttpUrl;
use crate::node::Node;
use crate::problem::{Problem, alternatives, nearest};
use crate::types::Admin;
use crate::units::{Listen, Loopback, Unit};

/// Adds what is wrong in `root` to `problems`.
pub(crate) fn validate(root: &Node, file: &str, problems: &mut Vec<Problem>) {
    let mut validator = Validator { file, problems };
    validator.addresses(root);
    let mut names = HashMap::new();
    let mut models = HashMap::new();
    for (index, service) in items(root, "services").iter().enumerate() {
        let path = format!("services[{index}]");
        let unique = service.get("name").is_none_or(|name| {
            validator.unique(&mut names, name, format!("{path}.name"), "another service is called")
        });
        validator.models(service, &path, unique, &mut models);
        validator.versions(service, &path);
        validator.references(service, &path);
        validator.checks(service, &path);
    }
}

struct Validator<'a> {
    file: &'a str,
    problems: &'a mut Vec<Problem>,
}

/// Line of the first mention by value.
type Seen<T> = HashMap<T, usize>;

impl Validator<'_> {
    /// The two listeners must not want the same port of the same address.
    fn addresses(&mut self, root: &Node) {
        let Some((node, Ok(Listen(listen)))) =
            text_of(root, "listen").map(|(n, text)| (n, Listen::parse(text)))
        else {
            return;
        };
        let given = root.get("admin").and_then(|admin| text_of(admin, "listen"));
        let Ok(Loopback(admin)) =
            given.map_or(Ok(Admin::default().listen), |(_, text)| Loopback::parse(text))
        else {
            return;
        };
        let covers = listen.ip() == admin.ip() || listen.ip().is_unspecified();
        if covers && listen.port() == admin.port() && listen.port() != 0 {
            let (at, path) = match given {
                Some((node, _)) => (node, "admin.listen"),
                None => (node, "listen"),
            };
            let message = "`listen` and `admin.listen` take the same port".to_owned();
            let problem = Problem::new(self.file, at.at, path.to_owned(), message).value(at.shown());
            let hint = given.is_none().then(|| format!("`admin.listen` is `{admin}` if not given"));
            self.problems.push(problem.expected("a port of its own for each").hint(hint));
        }
    }

    /// A model selects one service. `named` is false if the service's name is already taken.
    fn models<'t>(
        &mut self,
        service: &'t Node,
        path: &str,
        named: bool,
        seen: &mut HashMap<&'t str, (usize, String)>,
    ) {
        let name = service.get("name");
        let given = service.get("models").filter(|models| !models.is_null());
        let models: Vec<(&Node, String)> = match given {
            Some(models) => {
                let numbered = models.items().iter().enumerate();
                numbered.map(|(index, model)| (model.as_ref(), format!("{path}.models[{index}]"))).collect()
            }
            None => name.filter(|_| named).map(|name| (name, format!("{path}.name"))).into_iter().collect(),
        };
        let owner = name.map_or_else(|| path.to_owned(), Node::shown);
        for (model, path) in models {
            let Some(text) = model.text() else { continue };
            if let Some((line, other)) = seen.get(text) {
                let message = format!("model `{}` already belongs to service `{other}`", model.shown());
                let problem = Problem::new(self.file, model.at, path, message).value(model.shown());
                self.problems.push(problem.hint(Some(format!("see line {line}"))));
            } else {
                seen.insert(text, (model.at.line, owner.clone()));
            }
        }
    }

    fn versions(&mut self, service: &Node, path: &str) {
        let mut names = HashMap::new();
        for (index, version) in items(service, "versions").iter().enumerate() {
            let path = format!("{path}.versions[{index}]");
            if let Some(name) = version.get("name") {
                self.unique(&mut names, name, format!("{path}.name"), "another version is called");
            }
            let mut targets: Seen<Target> = HashMap::new();
            for (index, endpoint) in items(version, "endpoints").iter().enumerate() {
                let Some((url, Ok(HttpUrl(mut target)))) =
                    text_of(endpoint, "url").map(|(node, text)| (node, HttpUrl::parse(text)))
                else {
                    continue;
                };
                target.host.make_ascii_lowercase();
                let path = format!("{path}.endpoints[{index}].url");
                self.first(&mut targets, target, url, path, "another endpoint is at");
            }
        }
    }

    /// Versions that `stable` and the rules name must exist.
    fn references(&mut self, service: &Node, path: &str) {
        let versions = items(service, "versions");
        let names: Vec<&Node> = versions.iter().filter_map(|version| version.get("name")).collect();
        // With one name missing or broken nobody can tell whether it is the one that is meant.
        if versions.is_empty() || names.len() < versions.len() || names.iter().any(|n| n.text().is_none()) {
            return;
        }
        if let Some(stable) = service.get("stable") {
            self.exists(stable, &names, format!("{path}.stable"));
        }
        for (index, rule) in items(service, "rules").iter().enumerate() {
            if let Some(version) = rule.get("version") {
                self.exists(version, &names, format!("{path}.rules[{index}].version"));
            }
        }
    }

    fn exists(&mut self, reference: &Node, names: &[&Node], path: String) {
        let Some(text) = reference.text() else { return };
        if names.iter().any(|name| name.text() == Some(text)) {
            return;
        }
        let known: Vec<String> = names.iter().map(|name| name.shown()).collect();
        let meant = nearest(&reference.shown(), known.iter().map(String::as_str));
        let message = format!("there is no version `{}`", reference.shown());
        let problem = Problem::new(self.file, reference.at, path, message)
            .value(reference.shown())
            .expected(if let [name] = &known[..] {
                format!("`{name}`")
            } else {
                format!("one of {}", alternatives(&known))
            })
            .hint(meant.map(|meant| format!("did you mean `{meant}`?")));
        self.problems.push(problem);
    }

    /// A comparison needs a value, and one value is not both a number and a text.
    fn checks(&mut self, service: &Node, path: &str) {
        let Some(health) = service.get("health") else { return };
        for (index, check) in items(health, "checks").iter().enumerate() {
            let path = format!("{path}.health.checks[{index}]");
            let given = |key: &str| check.get(key).filter(|node| !node.is_null());
            let (json, max, equals) = (given("json"), given("max"), given("equals"));
            let problem = match (json, max, equals) {
                (_, Some(_), Some(equals)) => Some((
                    equals.at,
                    "`max` and `equals` exclude each other",
                    "one of them: `max` for a number, `equals` for a text",
                )),
                (None, Some(node), None) | (None, None, Some(node)) => Some((
                    node.at,
                    "there is no value to compare",
                    "`json` next to it: the path of the value in the answer",
                )),
                (Some(json), None, None) => {
                    Some((json.at, "the value is not compared with anything", "`max` or `equals` next to it"))
                }
                _ => None,
            };
            if let Some((at, message, expected)) = problem {
                let problem = Problem::new(self.file, at, path, message.to_owned());
                self.problems.push(problem.expected(expected));
            }
        }
    }

    /// Whether no other had this text before.
    fn unique<'t>(&mut self, seen: &mut Seen<&'t str>, node: &'t Node, path: String, what: &str) -> bool {
        node.text().is_none_or(|text| self.first(seen, text, node, path, what))
    }

    fn first<T: std::hash::Hash + Eq>(
        &mut self,
        seen: &mut Seen<T>,
        value: T,
        node: &Node,
        path: String,
        what: &str,
    ) -> bool {
        if let Some(line) = seen.get(&value) {
            let message = format!("{what} `{}`", node.shown());
            let problem = Problem::new(self.file, node.at, path, message).value(node.shown());
            self.problems.push(problem.hint(Some(format!("see line {line}"))));
            return false;
        }
        seen.insert(value, node.at.line);
        true
    }
}

fn items<'n>(node: &'n Node, key: &str) -> &'n [Rc<Node>] {
    node.get(key).map(Node::items).unwrap_or_default()
}

fn text_of<'n>(node: &'n Node, key: &str) -> Option<(&'n Node, &'n str)> {
    let node = node.get(key)?;
    Some((node, node.text()?))
}
