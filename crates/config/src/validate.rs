//! What the schema can't say: names that must be unique or exist, keys that need or exclude each other.
//!
//! Works on the tree, not on the types, so that it sees whatever parts of a faulty file are sound. What is
//! not as the schema wants it is passed over here: the checker has reported it.

mod notify;
mod release;
mod targeting;

use std::collections::HashMap;
use std::rc::Rc;

use backstop_core::table::{Scheme, Target};

use crate::http::HttpUrl;
use crate::node::Node;
use crate::problem::{Problem, alternatives, nearest};
use crate::source::join;
use crate::types::Admin;
use crate::units::{Listen, Percent, Unit};

/// Adds what is wrong in `root` to `problems`.
pub(crate) fn validate(root: &Node, file: &str, problems: &mut Vec<Problem>) {
    let mut validator = Validator { file, problems };
    validator.addresses(root);
    validator.admin(root);
    validator.keys(root);
    validator.notify(root);
    validator.prometheus(root);
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
        validator.rules(service, root, &path);
        validator.sticky(service, &path);
        validator.checks(service, &path);
        validator.dependencies(service, &path);
        validator.regions(service, &path);
        validator.failover(service, &path);
        validator.fallback(service, root, &path);
        validator.admission(service, &path);
        validator.release(service, root, &path);
    }
}

/// The same for an endpoint that stands alone.
pub(crate) fn validate_endpoint(endpoint: &Node, file: &str, problems: &mut Vec<Problem>) {
    Validator { file, problems }.endpoint(endpoint, "");
}

/// The same for a version that stands alone.
pub(crate) fn validate_version(version: &Node, file: &str, problems: &mut Vec<Problem>) {
    Validator { file, problems }.version(version, "");
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
        let Ok(Listen(admin)) = given.map_or(Ok(Admin::default().listen), |(_, text)| Listen::parse(text))
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

    /// Whoever can reach a control API without tokens may do everything.
    fn admin(&mut self, root: &Node) {
        let Some(admin) = root.get("admin") else { return };
        let mut names = HashMap::new();
        for (index, token) in items(admin, "tokens").iter().enumerate() {
            if let Some(name) = token.get("name") {
                self.unique(
                    &mut names,
                    name,
                    format!("admin.tokens[{index}].name"),
                    "another token is called",
                );
            }
        }
        let Some((node, Ok(Listen(listen)))) =
            text_of(admin, "listen").map(|(node, text)| (node, Listen::parse(text)))
        else {
            return;
        };
        if !listen.ip().is_loopback() && items(admin, "tokens").is_empty() {
            let message =
                format!("`{}` can be reached from other machines, and there are no tokens", node.shown());
            let problem = Problem::new(self.file, node.at, "admin.listen".to_owned(), message);
            let expected = "a loopback address such as `127.0.0.1:9090`, or `admin.tokens`";
            self.problems.push(problem.value(node.shown()).expected(expected));
        }
    }

    /// A request has one key, and a key one set of services, which must exist.
    fn keys(&mut self, root: &Node) {
        let services = items(root, "services");
        let names: Vec<&Node> = services.iter().filter_map(|service| service.get("name")).collect();
        let all_named = names.len() == services.len() && names.iter().all(|name| name.text().is_some());
        let (mut keys, mut hashes) = (HashMap::new(), HashMap::new());
        for (index, key) in items(root, "keys").iter().enumerate() {
            let path = format!("keys[{index}]");
            if let Some(name) = key.get("name") {
                self.unique(&mut keys, name, format!("{path}.name"), "another key is called");
            }
            if let Some((node, text)) = text_of(key, "hash") {
                let hash = text.to_ascii_lowercase();
                self.first(&mut hashes, hash, node, format!("{path}.hash"), "another key has the hash");
            }
            for (index, service) in items(key, "services").iter().enumerate().filter(|_| all_named) {
                self.exists("service", service, &names, format!("{path}.services[{index}]"));
            }
        }
    }

    fn dependencies(&mut self, service: &Node, path: &str) {
        let mut names = HashMap::new();
        for (index, dependency) in items(service, "dependencies").iter().enumerate() {
            if let Some(name) = dependency.get("name") {
                let path = format!("{path}.dependencies[{index}].name");
                self.unique(&mut names, name, path, "another dependency is called");
            }
        }
    }

    fn regions(&mut self, service: &Node, path: &str) {
        let Some(regions) = service.get("regions") else { return };
        let mut names = HashMap::new();
        for (index, region) in items(regions, "order").iter().enumerate() {
            let path = format!("{path}.regions.order[{index}]");
            self.unique(&mut names, region, path, "this list already has");
        }
        if let Some((node, "active_passive")) = text_of(regions, "mode")
            && items(regions, "order").is_empty()
        {
            let message = "there is no region that serves first".to_owned();
            let problem = Problem::new(self.file, node.at, format!("{path}.regions.mode"), message);
            self.problems
                .push(problem.value(node.shown()).expected("`order` next to it: regions by preference"));
        }
    }

    /// Each step of a ramp is larger than the one before, and the last is all.
    fn failover(&mut self, service: &Node, path: &str) {
        let Some(failover) = service.get("failover") else { return };
        let ramp: Vec<_> = items(failover, "ramp").iter().map(|share| Some(&**share)).collect();
        let path = format!("{path}.failover.ramp[]");
        self.shares(&ramp, &path, "rising shares that end with `100%`", |share, before, last| {
            if share <= before.unwrap_or(0.0) {
                Some("is no larger than the step before it")
            } else {
                (last && share < 1.0).then_some("is the last step and not all")
            }
        });
    }

    /// Complains of the first share that `wrong` finds something about, given the one before it and whether it is the last.
    fn shares(
        &mut self,
        shares: &[Option<&Node>],
        path: &str,
        expected: &'static str,
        wrong: impl Fn(f64, Option<f64>, bool) -> Option<&'static str>,
    ) {
        let mut before = None;
        for (index, node) in shares.iter().enumerate() {
            let Some((node, Some(Ok(share)))) = node.map(|node| (node, node.text().map(Percent::parse)))
            else {
                return;
            };
            if let Some(wrong) = wrong(share.share(), before, index + 1 == shares.len()) {
                let message = format!("`{}` {wrong}", node.shown());
                let path = path.replace("[]", &format!("[{index}]"));
                let problem = Problem::new(self.file, node.at, path, message).value(node.shown());
                return self.problems.push(problem.expected(expected));
            }
            before = Some(share.share());
        }
    }

    /// Each entry is one thing, and the service that it names is another one.
    fn fallback(&mut self, service: &Node, root: &Node, path: &str) {
        const STEPS: [&str; 4] = ["service", "max_tokens", "cached", "static"];
        let services = items(root, "services");
        let names: Vec<&Node> = services.iter().filter_map(|service| service.get("name")).collect();
        for (index, entry) in items(service, "fallback").iter().enumerate() {
            let path = format!("{path}.fallback[{index}]");
            let given: Vec<&Node> = STEPS.iter().filter_map(|step| entry.get(step)).collect();
            if given.len() != 1 {
                let message =
                    if given.is_empty() { "says nothing to do" } else { "says several things to do" };
                let problem = Problem::new(self.file, entry.at, path.clone(), message.to_owned());
                self.problems.push(problem.expected("one of `service`, `max_tokens`, `cached` or `static`"));
            }
            if let Some(cached) =
                entry.get("cached").filter(|_| service.get("cache").is_none_or(Node::is_null))
            {
                let message = "the service has no cache to answer from".to_owned();
                let problem = Problem::new(self.file, cached.at, format!("{path}.cached"), message);
                self.problems.push(problem.expected("`cache` in the service"));
            }
            let Some(named) = entry.get("service") else { continue };
            if named.text().is_some() && named.text() == service.get("name").and_then(Node::text) {
                let message = format!("`{}` can't stand in for itself", named.shown());
                let problem = Problem::new(self.file, named.at, format!("{path}.service"), message);
                self.problems.push(problem.value(named.shown()).expected("another service"));
            } else if names.len() == services.len() {
                self.exists("service", named, &names, format!("{path}.service"));
            }
        }
    }

    /// A limit that is given needs no maximum.
    fn admission(&mut self, service: &Node, path: &str) {
        let Some(admission) = service.get("admission") else { return };
        let given = |key: &str| admission.get(key).filter(|node| !node.is_null());
        let (Some(limit), Some(max)) = (given("limit"), given("max")) else { return };
        if limit.is_whole_number() {
            let message = format!("`max` has no effect: `limit` is always `{}`", limit.shown());
            let problem = Problem::new(self.file, max.at, format!("{path}.admission.max"), message);
            self.problems.push(problem.value(max.shown()).expected("no `max`, or `limit: adaptive`"));
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
            self.version(version, &path);
        }
    }

    /// What it changes in requests, and its endpoints, which are not at the same place.
    fn version(&mut self, version: &Node, path: &str) {
        self.request(version, path);
        let mut targets: Seen<Target> = HashMap::new();
        for (index, endpoint) in items(version, "endpoints").iter().enumerate() {
            let Some((url, Ok(HttpUrl(mut target)))) =
                text_of(endpoint, "url").map(|(node, text)| (node, HttpUrl::parse(text)))
            else {
                continue;
            };
            target.host.make_ascii_lowercase();
            let path = join(path, &format!("endpoints[{index}]"));
            self.first(&mut targets, target, url, format!("{path}.url"), "another endpoint is at");
            self.endpoint(endpoint, &path);
        }
    }

    /// A key that would have no effect is a mistake.
    fn endpoint(&mut self, endpoint: &Node, path: &str) {
        let Some((url, Ok(HttpUrl(target)))) =
            text_of(endpoint, "url").map(|(node, text)| (node, HttpUrl::parse(text)))
        else {
            return;
        };
        if let Some(tls) = endpoint.get("tls").filter(|tls| !tls.is_null())
            && target.scheme == Scheme::Http
        {
            let message = format!("`{}` has no certificate to check", url.shown());
            let problem = Problem::new(self.file, tls.at, join(path, "tls"), message);
            self.problems.push(problem.expected("a URL that begins with `https://`, or no `tls`"));
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
            self.exists("version", stable, &names, format!("{path}.stable"));
        }
        if let Some(to) = service.get("shadow").and_then(|shadow| shadow.get("to")) {
            self.exists("version", to, &names, format!("{path}.shadow.to"));
            self.shadow(service, to, path);
        }
        for (index, rule) in items(service, "rules").iter().enumerate() {
            if let Some(version) = rule.get("version") {
                self.exists("version", version, &names, format!("{path}.rules[{index}].version"));
            }
        }
    }

    fn exists(&mut self, kind: &str, reference: &Node, names: &[&Node], path: String) {
        let Some(text) = reference.text() else { return };
        if names.iter().any(|name| name.text() == Some(text)) {
            return;
        }
        let known: Vec<String> = names.iter().map(|name| name.shown()).collect();
        let meant = nearest(&reference.shown(), known.iter().map(String::as_str));
        let message = format!("there is no {kind} `{}`", reference.shown());
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
