//! [`Problem`]: one mistake in a configuration, told so that it can be mended without asking.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

/// One mistake: where it is, what is there, what should be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// The file as the caller named it.
    pub file: String,
    /// From 1; 0 if the problem is the file itself.
    pub line: usize,
    /// In characters, from 1; 0 if the problem is the file itself.
    pub column: usize,
    /// Key path such as `services[0].versions[1].name`; empty for the document as a whole.
    pub path: String,
    /// What is wrong: a sentence without full stop.
    pub message: String,
    /// The value as written, never with environment variables filled in; absent if there is none to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// A way to get there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// A problem of the whole file, without a position.
    pub(crate) fn of_file(file: &str, message: String) -> Self {
        Self::new(file, Position { line: 0, column: 0 }, String::new(), message)
    }

    pub(crate) fn new(file: &str, at: Position, path: String, message: String) -> Self {
        Self {
            file: file.to_owned(),
            line: at.line,
            column: at.column,
            path,
            message,
            value: None,
            expected: None,
            hint: None,
        }
    }

    pub(crate) fn value(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }

    pub(crate) fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    pub(crate) fn hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        f.write_str(": ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(expected) = &self.expected {
            write!(f, "\n  expected: {expected}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// Everything wrong with a configuration, in order of position; never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Those of `text`. What the parser places behind its end, since it notices one line late, or behind the end of a
    /// line, since it counts bytes in some places, is put there.
    pub(crate) fn new(mut problems: Vec<Problem>, text: &str) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        let lines = text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'));
        let mut unplaced = problems.iter_mut().skip_while(|problem| problem.line == 0).peekable();
        let mut end = (1, 1);
        for (line, number) in lines.zip(1..) {
            if unplaced.peek().is_none() {
                break;
            }
            end = (number, line.chars().count() + 1);
            while let Some(problem) = unplaced.next_if(|problem| problem.line == number) {
                problem.column = problem.column.min(end.1);
            }
        }
        for problem in unplaced {
            (problem.line, problem.column) = end;
        }
        Self(problems)
    }

    /// A single one, found by somebody else than the reader of the file.
    pub fn one(file: &str, path: &str, message: String) -> Self {
        let at = Position { line: 0, column: 0 };
        Problem::new(file, at, path.to_owned(), message).into()
    }

    /// The same, of a text that nobody has written: where in it they are helps nobody.
    pub(crate) fn without_places(mut self) -> Self {
        for problem in &mut self.0 {
            (problem.line, problem.column) = (0, 0);
        }
        self
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "there is always at least one")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// In order of position.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// Of at least one.
impl From<Vec<Problem>> for Problems {
    fn from(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Self(problems)
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Line and column of a key or value, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// A value fit for a message: one line, printable, short, without the password of a URL.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 80;
    let text = &without_password(text);
    let mut shown: String = text.chars().take(MOST).flat_map(visible).collect();
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    shown
}

/// Hides `user:password@` of a URL.
fn without_password(text: &str) -> Cow<'_, str> {
    let Some(start) = text.find("://").map(|at| at + 3) else { return text.into() };
    let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |at| start + at);
    match text[start..end].rfind('@') {
        Some(at) => format!("{}***{}", &text[..start], &text[start + at..]).into(),
        None => text.into(),
    }
}

fn visible(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control().then(|| c.escape_debug());
    let plain = (!c.is_control()).then_some(c);
    escaped.into_iter().flatten().chain(plain)
}

/// The candidate that `name` is most likely a misspelling of.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Nobody misspells a longer name into one of ours, and the comparison takes space for both.
    const LONGEST: usize = 64;
    if name.len() > LONGEST {
        return None;
    }
    let lower = name.to_lowercase();
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= name.len().max(candidate.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `` `a`, `b` or `c` ``
pub(crate) fn alternatives<S: AsRef<str>>(names: &[S]) -> String {
    let mut list = String::new();
    for (index, name) in names.iter().enumerate() {
        let separator = match index {
            0 => "",
            _ if index + 1 == names.len() => " or ",
            _ => ", ",
        };
        list.push_str(separator);
        list.push('`');
        list.push_str(name.as_ref());
        list.push('`');
    }
    list
}
