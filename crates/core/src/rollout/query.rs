//! Questions to Prometheus about a service and one of its versions.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An expression of PromQL in which `$service` and `$version` stand for names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Query(String);

/// Why a text can't be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryError {
    /// A variable that there is not.
    Unknown(String),
    /// A variable within back quotes, where nothing can be escaped.
    Raw(String),
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(f, "there is no variable `${name}`"),
            Self::Raw(name) => write!(f, "`${name}` stands within back quotes, where nothing can be escaped"),
        }
    }
}

impl std::error::Error for QueryError {}

impl Query {
    /// # Errors
    ///
    /// It has a variable that can't be filled in.
    pub fn new(text: &str) -> Result<Self, QueryError> {
        let mut wrong = None;
        walk(text, |piece| match piece {
            Piece::Variable(name, _) if !["service", "version"].contains(&name) => {
                wrong.get_or_insert(QueryError::Unknown(name.to_owned()));
            }
            Piece::Variable(name, Some('`')) => {
                wrong.get_or_insert(QueryError::Raw(name.to_owned()));
            }
            _ => {}
        });
        wrong.map_or_else(|| Ok(Self(text.to_owned())), Err)
    }

    /// It is asked for each version. Otherwise it is about whatever it names itself.
    pub fn is_by_version(&self) -> bool {
        let mut found = false;
        walk(&self.0, |piece| found |= matches!(piece, Piece::Variable("version", _)));
        found
    }

    /// As it is asked: names are written so that they stay names, within quotes or without.
    pub fn about(&self, service: &str, version: &str) -> String {
        let mut out = String::new();
        walk(&self.0, |piece| match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Variable(name, quote) => {
                let value = if name == "service" { service } else { version };
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\'', "\\'");
                if quote.is_some() {
                    out.push_str(&value);
                } else {
                    out.extend(["\"", &value, "\""]);
                }
            }
        });
        out
    }
}

enum Piece<'a> {
    Text(&'a str),
    /// A variable, and the quote within which it stands.
    Variable(&'a str, Option<char>),
}

fn walk<'a>(text: &'a str, mut tell: impl FnMut(Piece<'a>)) {
    let (mut quote, mut escaped, mut told) = (None, false, 0);
    for (at, c) in text.char_indices() {
        if at < told {
            continue;
        }
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some('"' | '\''), '\\') => escaped = true,
            (Some(open), _) if open == c => quote = None,
            (None, '"' | '\'' | '`') => quote = Some(c),
            (_, '$') => {
                let rest = &text[at + 1..];
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                // In a regular expression it stands for the end of a line.
                if rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                    tell(Piece::Text(&text[told..at]));
                    tell(Piece::Variable(&rest[..end], quote));
                    told = at + 1 + end;
                }
            }
            _ => {}
        }
    }
    tell(Piece::Text(&text[told..]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, version: &str, expected: &str) {
        assert_eq!(Query::new(text).unwrap().about("chat", version), expected);
    }

    #[test]
    fn names_stay_names() {
        check(r#"q{s="$service",v="$version"}"#, "v1", r#"q{s="chat",v="v1"}"#);
        check("q{s=$service,v='a-$version'}", "v1", r#"q{s="chat",v='a-v1'}"#);
        check(r#"q{v="$version"}"#, r#"v"}\or"#, r#"q{v="v\"}\\or"}"#);
        check(r"q{v='$version'}", "it's", r"q{v='it\'s'}");
        check(r#"q{x="\"$version"} > 1"#, "v1", r#"q{x="\"v1"} > 1"#);
        check("sum(q) # no variable, 5 €", "v1", "sum(q) # no variable, 5 €");
        check(r#"q{x=~"a$",y=~"b$|c"}"#, "v1", r#"q{x=~"a$",y=~"b$|c"}"#);
    }

    #[test]
    fn what_names_the_version_is_asked_for_each() {
        assert!(Query::new("q{v=$version}").unwrap().is_by_version());
        assert!(!Query::new("q{s=$service}").unwrap().is_by_version());
    }

    #[test]
    fn what_cannot_be_filled_in_is_refused() {
        assert_eq!(Query::new("q{v=$versions}"), Err(QueryError::Unknown("versions".to_owned())));
        assert_eq!(Query::new("q{v=`$version`}"), Err(QueryError::Raw("version".to_owned())));
    }
}
