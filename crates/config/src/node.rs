//! [`Node`]: a value of the configuration file and where it stands.

use std::rc::Rc;

use saphyr::Scalar as Plain;

use crate::problem::{Position, shown};

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) content: Content,
    /// Values in this one, itself included; shared ones count every time.
    pub(crate) size: usize,
    /// Levels of lists and mappings.
    pub(crate) height: usize,
}

#[derive(Debug)]
pub(crate) enum Content {
    Scalar(Scalar),
    List(Vec<Rc<Node>>),
    /// In the order of the file; keys are unique.
    Map(Vec<Entry>),
    /// A problem has been reported; nothing more can be said of it.
    Broken,
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Where the key stands.
    pub(crate) at: Position,
    pub(crate) node: Rc<Node>,
}

#[derive(Debug)]
pub(crate) struct Scalar {
    /// With the environment filled in: may be secret.
    pub(crate) text: String,
    /// As in the file, if that differs.
    written: Option<String>,
    kind: Kind,
}

/// What YAML takes a scalar for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text,
    /// From the environment, which has no types: whatever is expected and can be read from the text.
    Filled,
}

impl From<&Plain<'_>> for Kind {
    fn from(plain: &Plain<'_>) -> Self {
        match plain {
            Plain::Null => Self::Null,
            Plain::Boolean(value) => Self::Bool(*value),
            Plain::Integer(value) => Self::Integer(*value),
            Plain::FloatingPoint(value) => Self::Float(value.into_inner()),
            Plain::String(_) => Self::Text,
        }
    }
}

impl Scalar {
    pub(crate) fn new(text: String, written: Option<String>, kind: Kind) -> Self {
        Self { text, written, kind }
    }

    /// As what a text is wanted for.
    pub(crate) fn as_text(&self) -> Option<&str> {
        matches!(self.kind, Kind::Text | Kind::Filled).then_some(self.text.as_str())
    }

    /// As what something else than a text is wanted for.
    pub(crate) fn kind(&self) -> Kind {
        match self.kind {
            Kind::Filled => Kind::from(&Plain::parse_from_cow(self.text.trim().into())),
            kind => kind,
        }
    }

    /// As in the file.
    pub(crate) fn written(&self) -> &str {
        self.written.as_deref().unwrap_or(&self.text)
    }
}

impl Node {
    pub(crate) fn new(at: Position, content: Content) -> Self {
        let children: Vec<&Node> = match &content {
            Content::List(items) => items.iter().map(Rc::as_ref).collect(),
            Content::Map(entries) => entries.iter().map(|entry| entry.node.as_ref()).collect(),
            Content::Scalar(_) | Content::Broken => Vec::new(),
        };
        let inner = matches!(content, Content::List(_) | Content::Map(_));
        let height = children.iter().map(|child| child.height).max().unwrap_or(0) + usize::from(inner);
        let size = children.iter().fold(1_usize, |size, child| size.saturating_add(child.size));
        Self { at, content, size, height }
    }

    /// The value of a key, if this is a mapping that has it.
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        self.entries().iter().find(|entry| entry.name == name).map(|entry| entry.node.as_ref())
    }

    /// The value at a path of simple names and indices, such as `services[0].name`.
    pub(crate) fn find(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, part| {
            let mut names = part.split('[');
            let node = node.get(names.next()?)?;
            names.try_fold(node, |node, index| {
                let index: usize = index.strip_suffix(']')?.parse().ok()?;
                node.items().get(index).map(Rc::as_ref)
            })
        })
    }

    /// Empty if this is not a mapping.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.content {
            Content::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Empty if this is not a list.
    pub(crate) fn items(&self) -> &[Rc<Node>] {
        match &self.content {
            Content::List(items) => items,
            _ => &[],
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar(scalar) => scalar.as_text(),
            _ => None,
        }
    }

    pub(crate) fn is_whole_number(&self) -> bool {
        matches!(&self.content, Content::Scalar(scalar) if matches!(scalar.kind(), Kind::Integer(_)))
    }

    pub(crate) fn is_number(&self) -> bool {
        let Content::Scalar(scalar) = &self.content else { return false };
        matches!(scalar.kind(), Kind::Integer(_) | Kind::Float(_))
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar(Scalar { kind: Kind::Null, .. }))
    }

    /// Whether its text comes from the environment.
    pub(crate) fn is_filled(&self) -> bool {
        matches!(&self.content, Content::Scalar(Scalar { kind: Kind::Filled, .. }))
    }

    /// Whether it is written as `${NAME}` and nothing else, so that it may be shown even if its value must not.
    pub(crate) fn is_reference(&self) -> bool {
        let Content::Scalar(scalar) = &self.content else { return false };
        let name = scalar.written().strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
        self.is_filled() && name.is_some_and(|name| !name.contains(['$', ':', '{', '}']))
    }

    /// For messages: as in the file, so never with what the environment filled in.
    pub(crate) fn shown(&self) -> String {
        match &self.content {
            Content::Scalar(scalar) => shown(scalar.written()),
            Content::List(_) => "[…]".to_owned(),
            Content::Map(_) => "{…}".to_owned(),
            Content::Broken => "…".to_owned(),
        }
    }
}
