//! `${NAME}`, `${NAME:-default}` and `$${` in values.

/// Gives the value of an environment variable.
pub(crate) type Env<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Longest text that a value may become; a configuration is not a place for documents.
const LONGEST: usize = 1 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Expansion {
    /// Nothing to expand.
    AsWritten,
    /// Only escapes: the text is still the author's.
    Unescaped(String),
    /// Holds values from the environment: must not be shown.
    Filled(String),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not set, and no default.
    Unset(String),
    /// `${` without `}`.
    Unclosed,
    /// Not the name of a variable.
    BadName,
    TooLong,
}

/// Fills `text` from `env`; on failure every fault of the text.
pub(crate) fn expand(text: &str, env: &Env<'_>) -> Result<Expansion, Vec<Fault>> {
    if !text.contains("${") {
        return Ok(Expansion::AsWritten);
    }
    let mut out = String::new();
    let mut filled = false;
    let mut faults = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, reference) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &reference[2..];
            continue;
        }
        out.push_str(before);
        let Some((inner, after)) = reference[2..].split_once('}') else {
            faults.push(Fault::Unclosed);
            return Err(faults);
        };
        match look_up(inner, env) {
            Ok(value) if out.len() + value.len() > LONGEST => return Err(vec![Fault::TooLong]),
            Ok(value) => out.push_str(&value),
            Err(fault) if faults.contains(&fault) => {}
            Err(fault) => faults.push(fault),
        }
        filled = true;
        rest = after;
    }
    out.push_str(rest);
    match (faults.is_empty(), filled) {
        (false, _) => Err(faults),
        (true, true) => Ok(Expansion::Filled(out)),
        (true, false) => Ok(Expansion::Unescaped(out)),
    }
}

/// As in a shell, a default stands in for an unset and for an empty variable.
fn look_up(inner: &str, env: &Env<'_>) -> Result<String, Fault> {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(valid) {
        return Err(Fault::BadName);
    }
    match (env(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(Fault::Unset(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands() {
        #[track_caller]
        fn check(text: &str, expected: Result<Expansion, Vec<Fault>>) {
            let env = |name: &str| match name {
                "A" => Some("a-value".to_owned()),
                "EMPTY" => Some(String::new()),
                _ => None,
            };
            assert_eq!(expand(text, &env), expected, "{text}");
        }
        let filled = |text: &str| Ok(Expansion::Filled(text.to_owned()));
        let unescaped = |text: &str| Ok(Expansion::Unescaped(text.to_owned()));
        check("", Ok(Expansion::AsWritten));
        check("$5 and $A", Ok(Expansion::AsWritten));
        check("${A}", filled("a-value"));
        check("x${A}y${A}z", filled("xa-valueya-valuez"));
        check("${EMPTY}", filled(""));
        check("${EMPTY:-d}", filled("d"));
        check("${NOT:-}", filled(""));
        check("${NOT:-a:-b}", filled("a:-b"));
        check("${A:-d}", filled("a-value"));
        check("$${A}", unescaped("${A}"));
        check("$${A} ${A}", filled("${A} a-value"));
        check("$$${A}", unescaped("$${A}"));
        check("${NOT}", Err(vec![Fault::Unset("NOT".into())]));
        check("${NOT}${NOT}${B}", Err(vec![Fault::Unset("NOT".into()), Fault::Unset("B".into())]));
        check("${A", Err(vec![Fault::Unclosed]));
        check("${NOT}${", Err(vec![Fault::Unset("NOT".into()), Fault::Unclosed]));
        check("${}", Err(vec![Fault::BadName]));
        check("${1A}", Err(vec![Fault::BadName]));
        check("${a b}", Err(vec![Fault::BadName]));
        check(&"${A}".repeat(1 << 18), Err(vec![Fault::TooLong]));
    }
}
