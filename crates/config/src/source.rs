//! A YAML text as a tree that remembers where everything stands.
//!
//! Built from parser events instead of a loaded document, because that keeps duplicate keys (to report all of
//! them), scalars as written (to show them without secrets) and aliases as shared nodes (so that they cannot
//! blow up), and because depth and size are bounded while reading.

use std::collections::HashMap;
use std::rc::Rc;

use saphyr::{Scalar as Plain, ScalarStyle};
use saphyr_parser::{Event, Marker, Parser, ScanError, Span, Tag};

use crate::env::{Env, Expansion, Fault, expand};
use crate::node::{Content, Entry, Kind, Node, Scalar};
use crate::problem::{Position, Problem, alternatives, shown};

/// Deeper nesting is refused. The format itself needs eight levels.
const DEEPEST: usize = 64;
/// More values, aliases counted as what they stand for, are refused.
const MOST_NODES: usize = 100_000;

/// The document in `text`; `None` if there is nothing to check. Adds what is wrong to `problems`.
pub(crate) fn read(text: &str, file: &str, env: &Env<'_>, problems: &mut Vec<Problem>) -> Option<Rc<Node>> {
    let mut builder =
        Builder { file, env, problems, stack: Vec::new(), anchors: HashMap::new(), nodes: 0, root: None };
    let mut documents = 0;
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                builder.syntax(&error, text);
                return None;
            }
        };
        if let Event::DocumentStart(_) = event {
            documents += 1;
            if documents > 1 {
                builder.another_document(span);
                break;
            }
        }
        builder.event(event, span).ok()?;
    }
    if builder.root.is_none() {
        let problem = Problem::of_file(file, "the configuration is empty".to_owned());
        builder.problems.push(problem.expected("at least `listen` and `services`"));
    }
    builder.root
}

/// Reading cannot go on; the reason is among the problems.
struct Stop;

struct Builder<'a> {
    file: &'a str,
    env: &'a Env<'a>,
    problems: &'a mut Vec<Problem>,
    stack: Vec<Frame>,
    /// By the parser's number; a missing one is still being built.
    anchors: HashMap<usize, Rc<Node>>,
    nodes: usize,
    root: Option<Rc<Node>>,
}

/// A list or mapping that is being built.
struct Frame {
    at: Position,
    anchor: usize,
    open: Open,
}

enum Open {
    List(Vec<Rc<Node>>),
    Map { entries: Vec<Entry>, seen: HashMap<String, Position>, merge: Option<Rc<Node>>, key: Option<Key> },
}

/// The key whose value comes next.
enum Key {
    Name(String, Position),
    Merge,
    /// Reported; its value is dropped.
    Broken,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Stop> {
        let at = position(span.start);
        match event {
            Event::SequenceStart(anchor, tag) => {
                self.tag(tag.as_deref(), at);
                self.open(Frame { at, anchor, open: Open::List(Vec::new()) })
            }
            Event::MappingStart(anchor, tag) => {
                self.tag(tag.as_deref(), at);
                let (entries, seen) = (Vec::new(), HashMap::new());
                self.open(Frame { at, anchor, open: Open::Map { entries, seen, merge: None, key: None } })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Scalar(text, style, anchor, tag) => {
                if self.expects_key() {
                    self.key(&text, style, at);
                    if anchor > 0 {
                        let content = Content::Scalar(Scalar::new(text.into_owned(), None, Kind::Text));
                        self.anchors.insert(anchor, Rc::new(Node::new(at, content)));
                    }
                    return Ok(());
                }
                self.tag(tag.as_deref().filter(|tag| !tag.is_yaml_core_schema()), at);
                let content = self.scalar(text.into_owned(), style, tag.as_deref(), at);
                self.add(Rc::new(Node::new(at, content)), anchor)
            }
            Event::Alias(anchor) => self.alias(anchor, at),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn open(&mut self, frame: Frame) -> Result<(), Stop> {
        if self.stack.len() >= DEEPEST {
            return Err(self.too_deep(frame.at));
        }
        self.stack.push(frame);
        Ok(())
    }

    fn close(&mut self) -> Result<(), Stop> {
        let Some(Frame { at, anchor, open }) = self.stack.pop() else { return Ok(()) };
        let content = match open {
            Open::List(items) => Content::List(items),
            Open::Map { mut entries, mut seen, merge, .. } => {
                if let Some(source) = merge {
                    self.merge(&source, &mut entries, &mut seen)?;
                }
                Content::Map(entries)
            }
        };
        self.add(Rc::new(Node::new(at, content)), anchor)
    }

    /// Puts a complete node where it belongs.
    fn add(&mut self, node: Rc<Node>, anchor: usize) -> Result<(), Stop> {
        self.count(1, node.at)?;
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        let complex_key = self.expects_key();
        let path = if complex_key { self.path() } else { String::new() };
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut frame.open {
            Open::List(items) => items.push(node),
            Open::Map { key: key @ None, .. } => {
                *key = Some(Key::Broken);
                let problem = Problem::new(self.file, node.at, path, "this key is not text".to_owned());
                self.problems.push(problem.expected("a plain name"));
            }
            Open::Map { entries, merge, key, .. } => match key.take() {
                Some(Key::Name(name, at)) => entries.push(Entry { name, at, node }),
                Some(Key::Merge) => *merge = Some(node),
                Some(Key::Broken) | None => {}
            },
        }
        Ok(())
    }

    fn expects_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame { open: Open::Map { key: None, .. }, .. }))
    }

    fn key(&mut self, text: &str, style: ScalarStyle, at: Position) {
        let path = self.path();
        let Some(Frame { open: Open::Map { seen, key, .. }, .. }) = self.stack.last_mut() else {
            return;
        };
        let merge = text == "<<" && style == ScalarStyle::Plain;
        if let Some(first) = seen.get(text) {
            let path = join(&path, text);
            let message = format!("`{}` is given twice", shown(text));
            let problem = Problem::new(self.file, at, path, message).value(shown(text));
            self.problems.push(problem.hint(Some(format!("the first one is in line {}", first.line))));
            *key = Some(Key::Broken);
            return;
        }
        seen.insert(text.to_owned(), at);
        *key = Some(if merge { Key::Merge } else { Key::Name(text.to_owned(), at) });
    }

    /// `<<: *other` or `<<: [*one, *two]`: keys that are not given here are taken from there.
    fn merge(
        &mut self,
        source: &Rc<Node>,
        entries: &mut Vec<Entry>,
        seen: &mut HashMap<String, Position>,
    ) -> Result<(), Stop> {
        match &source.content {
            Content::Map(others) => {
                for other in others {
                    if !seen.contains_key(&other.name) {
                        self.count(other.node.size, source.at)?;
                        seen.insert(other.name.clone(), other.at);
                        entries.push(other.clone());
                    }
                }
            }
            Content::List(sources) if sources.iter().all(|s| matches!(s.content, Content::Map(_))) => {
                for source in sources {
                    self.merge(source, entries, seen)?;
                }
            }
            Content::Broken => {}
            _ => {
                let path = join(&self.path(), "<<");
                let message = format!("`{}` can't be merged", source.shown());
                let problem = Problem::new(self.file, source.at, path, message).value(source.shown());
                self.problems.push(problem.expected("an alias of a mapping, such as `*defaults`"));
            }
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Result<(), Stop> {
        let node = match self.anchors.get(&anchor) {
            Some(node) => Rc::clone(node),
            None => {
                let message = "this alias stands for something that contains it".to_owned();
                self.problems.push(Problem::new(self.file, at, self.path(), message));
                Rc::new(Node::new(at, Content::Broken))
            }
        };
        if self.expects_key() {
            // A name works as a key however it got there.
            if let Some(name) = node.text().map(str::to_owned)
                && !node.is_filled()
            {
                self.key(&name, ScalarStyle::DoubleQuoted, at);
                return Ok(());
            }
        }
        if self.stack.len() + node.height > DEEPEST {
            return Err(self.too_deep(at));
        }
        self.count(node.size, at)?;
        self.add(node, 0)
    }

    /// The value of a scalar, with the environment filled in.
    fn scalar(&mut self, text: String, style: ScalarStyle, tag: Option<&Tag>, at: Position) -> Content {
        match expand(&text, self.env) {
            Ok(Expansion::Filled(filled)) => Content::Scalar(Scalar::new(filled, Some(text), Kind::Filled)),
            Ok(Expansion::Unescaped(unescaped)) => {
                Content::Scalar(Scalar::new(unescaped, Some(text), Kind::Text))
            }
            Ok(Expansion::AsWritten) => {
                let tag = tag.filter(|tag| tag.is_yaml_core_schema()).cloned().map(std::borrow::Cow::Owned);
                match Plain::parse_from_cow_and_metadata(text.as_str().into(), style, tag.as_ref()) {
                    Some(plain) => {
                        let kind = Kind::from(&plain);
                        Content::Scalar(Scalar::new(text, None, kind))
                    }
                    None => {
                        // Not which value: that it is a secret is not known yet.
                        let suffix = tag.map(|tag| shown(&tag.suffix)).unwrap_or_default();
                        let message = format!("the value does not fit its tag `!!{suffix}`");
                        let problem = Problem::new(self.file, at, self.path(), message);
                        self.problems.push(problem.hint(Some("leave the tag out".to_owned())));
                        Content::Broken
                    }
                }
            }
            Err(faults) => {
                for fault in faults {
                    self.fault(fault, at);
                }
                Content::Broken
            }
        }
    }

    /// Shows no more of the value than the name of a variable: that it is a secret is not known yet.
    fn fault(&mut self, fault: Fault, at: Position) {
        let (value, message, hint) = match fault {
            Fault::Unset(name) => {
                let name = shown(&name);
                let hint = "set it before the start";
                (
                    Some(format!("${{{name}}}")),
                    format!("environment variable `{name}` is not set"),
                    format!("{hint} (`export {name}=…`) or give a default: `${{{name}:-default}}`"),
                )
            }
            Fault::Unclosed => (
                None,
                "`${` has no closing `}`".to_owned(),
                "for the characters themselves write `$${`".to_owned(),
            ),
            Fault::BadName => (
                None,
                "`${…}` does not hold the name of an environment variable".to_owned(),
                "write `${NAME}` or `${NAME:-default}`; for the characters themselves write `$${`".to_owned(),
            ),
            Fault::TooLong => (None, "the value from the environment is too long".to_owned(), String::new()),
        };
        let mut problem = Problem::new(self.file, at, self.path(), message);
        problem.value = value;
        self.problems.push(problem.hint(Some(hint).filter(|hint| !hint.is_empty())));
    }

    fn tag(&mut self, tag: Option<&Tag>, at: Position) {
        if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema()) {
            let message = format!("tag `{}` is not known", shown(&tag.to_string()));
            let problem = Problem::new(self.file, at, self.path(), message);
            self.problems.push(problem.hint(Some("leave the tag out".to_owned())));
        }
    }

    fn count(&mut self, nodes: usize, at: Position) -> Result<(), Stop> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes <= MOST_NODES {
            return Ok(());
        }
        let message = format!("more than {MOST_NODES} values, aliases counted in full");
        self.problems.push(Problem::new(self.file, at, self.path(), message));
        Err(Stop)
    }

    fn too_deep(&mut self, at: Position) -> Stop {
        let message = format!("nested deeper than {DEEPEST} levels");
        self.problems.push(Problem::new(self.file, at, String::new(), message));
        Stop
    }

    fn another_document(&mut self, span: Span) {
        let message = "a second document begins here".to_owned();
        let problem = Problem::new(self.file, position(span.start), String::new(), message);
        self.problems.push(problem.expected("one document; remove the `---` between them"));
    }

    fn syntax(&mut self, error: &ScanError, text: &str) {
        let at = position(*error.marker());
        let message = format!("not valid YAML: {}", error.info());
        self.problems
            .push(Problem::new(self.file, at, String::new(), message).hint(syntax_hint(text, at.line)));
    }

    /// The key path of what comes next.
    fn path(&self) -> String {
        self.stack.iter().fold(String::new(), |path, frame| match &frame.open {
            Open::List(items) => format!("{path}[{}]", items.len()),
            Open::Map { key: Some(Key::Name(name, _)), .. } => join(&path, name),
            Open::Map { .. } => path,
        })
    }
}

/// `path.key`
pub(crate) fn join(path: &str, key: &str) -> String {
    let key = shown(key);
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// What most often breaks a line of this format.
fn syntax_hint(text: &str, line: usize) -> Option<String> {
    // The parser often notices one line late.
    let near = |line: usize| text.lines().nth(line.checked_sub(1)?);
    let lines = [near(line), near(line.saturating_sub(1))];
    let any = |test: fn(&str) -> bool| lines.iter().flatten().any(|line| test(line));
    if any(|line| line.trim_start_matches(' ').starts_with('\t')) {
        Some("indent with spaces, not tabs".to_owned())
    } else if any(|line| line.contains("${") && line.contains(['{', '['])) {
        let right = ["\"${NAME}\""];
        Some(format!("within `{{ }}` and `[ ]` write {} in quotes", alternatives(&right)))
    } else if any(|line| line.trim_end().ends_with("memory:")) {
        Some("a value that ends with a colon needs quotes: `\"memory:\"`".to_owned())
    } else {
        None
    }
}

fn position(mark: Marker) -> Position {
    Position { line: mark.line().max(1), column: mark.col() + 1 }
}
