//! [`Key`]: the name of a value.

use std::fmt;

/// In bytes, as it is stored.
pub(crate) const MAX_KEY: usize = 512;

/// The name of a value: parts of any text, such as `release` and `chat`. Those that begin alike can be listed together.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// A key is too long, or has no parts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}…` is no key: it needs parts, of at most {MAX_KEY} bytes together")]
pub struct InvalidKey(String);

impl Key {
    /// # Errors
    ///
    /// There are no parts, or they are too long.
    pub fn new(parts: &[&str]) -> Result<Self, InvalidKey> {
        let text = parts.iter().map(|part| escaped(part)).collect::<Vec<_>>().join("/");
        if parts.is_empty() || text.len() > MAX_KEY {
            return Err(InvalidKey(text.chars().take(64).collect()));
        }
        Ok(Self(text))
    }

    /// As they were given.
    pub fn parts(&self) -> Vec<String> {
        self.0.split('/').map(unescaped).collect()
    }

    pub(crate) fn stored(&self) -> &str {
        &self.0
    }

    pub(crate) fn of_stored(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

/// Visible ASCII without the separator, so that the order of keys is that of their bytes.
fn escaped(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_graphic() && !b"/%".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

fn unescaped(part: &str) -> String {
    let mut pieces = part.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        match piece.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend(piece.as_bytes().iter().take(2)),
        }
        bytes.extend(piece.as_bytes().iter().skip(2));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_as_they_were() {
        for parts in [&["release", "chat"][..], &["a/b", "100%"], &["größe", "", " "], &["%2F"]] {
            assert_eq!(Key::new(parts).unwrap().parts(), parts);
        }
        assert_ne!(Key::new(&["a/b"]), Key::new(&["a", "b"]));
        assert!(Key::new(&[]).is_err());
        assert!(Key::new(&[&"x".repeat(MAX_KEY)]).is_ok());
        assert!(Key::new(&[&"ü".repeat(MAX_KEY / 4)]).is_err());
    }
}
