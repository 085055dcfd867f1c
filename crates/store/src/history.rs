//! What was done, by whom and why: entries that are chained by their hashes, so that none can be changed, left out or
//! put in between unnoticed. Somebody who can write the file could make all of it anew; whoever keeps a hash elsewhere
//! notices that too.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Begins what is hashed, and says how the rest of it is put together.
const FORMAT: &[u8] = b"backstop history 1\n";

/// Something to be remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Milliseconds since the Unix epoch.
    pub at: u64,
    /// Who did it: a token's name, `file`, or a part of Backstop.
    pub actor: String,
    /// Empty if it concerns none.
    pub service: String,
    /// What was done, such as `release_started`.
    pub kind: String,
    /// What it was done to, such as a release's id.
    pub subject: String,
    pub body: Value,
}

/// An entry in its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recorded {
    /// From 1, without gaps.
    pub seq: u64,
    #[serde(flatten)]
    pub entry: HistoryEntry,
    /// Of the entry before; zeros for the first.
    pub prev: Hash,
    /// Of this one, with `prev`.
    pub hash: Hash,
}

/// SHA-256, in hexadecimal digits when it is shown.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Hash(pub [u8; 32]);

/// Which entries are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryFilter {
    pub service: Option<String>,
    pub kind: Option<String>,
    /// Not older, in milliseconds since the Unix epoch.
    pub since: Option<u64>,
    /// Only those with a smaller number: the next page.
    pub before: Option<u64>,
    /// At most so many, 1 to 1,000; more count as 1,000.
    pub limit: usize,
}

/// What a check has found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checked {
    /// Entries whose place in the chain is proven.
    pub entries: u64,
    /// Of the last of them. Kept elsewhere it proves, later, that nothing up to there has been changed.
    pub head: Hash,
    /// Where the chain breaks.
    pub broken: Option<Break>,
}

/// The first entry that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Break {
    pub seq: u64,
    pub what: &'static str,
}

/// An entry as it is stored: what is hashed is the very text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    pub(crate) seq: u64,
    pub(crate) at: u64,
    pub(crate) actor: String,
    pub(crate) service: String,
    pub(crate) kind: String,
    pub(crate) subject: String,
    pub(crate) body: String,
    pub(crate) prev: Hash,
    pub(crate) hash: Hash,
}

impl Stored {
    /// `entry` behind the one that `chain` ends with.
    pub(crate) fn next(chain: Chain, entry: &HistoryEntry) -> Self {
        let HistoryEntry { at, actor, service, kind, subject, body } = entry.clone();
        let body = body.to_string();
        let (seq, prev) = (chain.entries + 1, chain.head);
        let mut stored = Self { seq, at, actor, service, kind, subject, body, prev, hash: Hash::default() };
        stored.hash = stored.digest();
        stored
    }

    /// Every text with its length, so that no two entries are alike.
    fn digest(&self) -> Hash {
        let mut hasher = Sha256::new();
        hasher.update(FORMAT);
        hasher.update(self.prev.0);
        hasher.update(self.seq.to_be_bytes());
        hasher.update(self.at.to_be_bytes());
        for text in [&self.actor, &self.service, &self.kind, &self.subject, &self.body] {
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text.as_bytes());
        }
        Hash(hasher.finalize().into())
    }
}

impl TryFrom<Stored> for Recorded {
    type Error = serde_json::Error;

    fn try_from(stored: Stored) -> Result<Self, serde_json::Error> {
        let Stored { seq, at, actor, service, kind, subject, body, prev, hash } = stored;
        let body = serde_json::from_str(&body)?;
        Ok(Self { seq, entry: HistoryEntry { at, actor, service, kind, subject, body }, prev, hash })
    }
}

impl HistoryEntry {
    pub(crate) fn size(&self) -> usize {
        let texts = [&self.actor, &self.service, &self.kind, &self.subject];
        texts.iter().map(|text| text.len()).sum::<usize>() + self.body.to_string().len()
    }
}

/// How far the history goes, or has been looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) entries: u64,
    pub(crate) head: Hash,
}

impl Chain {
    /// Goes on by one entry.
    pub(crate) fn follow(&mut self, entry: &Stored) -> Result<(), Break> {
        let seq = self.entries + 1;
        let broken = |what| Err(Break { seq, what });
        if entry.seq != seq {
            return broken("it is missing");
        }
        if entry.prev != self.head {
            return broken("it does not follow the entry before");
        }
        if entry.digest() != entry.hash {
            return broken("it has been changed");
        }
        *self = Self { entries: seq, head: entry.hash };
        Ok(())
    }

    /// Whether all that should be there has been followed.
    pub(crate) fn checked_against(self, head: Self) -> Checked {
        let seq = self.entries + 1;
        let broken = match self.entries.cmp(&head.entries) {
            std::cmp::Ordering::Less => Some(Break { seq, what: "it is missing" }),
            _ if self == head => None,
            _ => Some(Break { seq: self.entries, what: "it is not the last one that was written" }),
        };
        Checked { entries: self.entries, head: self.head, broken }
    }

    pub(crate) fn broken(self, broken: Break) -> Checked {
        Checked { entries: self.entries, head: self.head, broken: Some(broken) }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the history breaks at entry {}: {}", self.seq, self.what)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(subject: &str) -> HistoryEntry {
        let (actor, service, kind) = ("ops".to_owned(), "chat".to_owned(), "release_started".to_owned());
        HistoryEntry {
            at: 1_700_000_000_000,
            actor,
            service,
            kind,
            subject: subject.to_owned(),
            body: json!({ "b": 1, "a": 2 }),
        }
    }

    /// What is on disks must be checked in the same way by every version to come.
    #[test]
    fn the_hash_of_an_entry_never_changes() {
        let first = Stored::next(Chain::default(), &entry("r1"));
        assert_eq!(first.body, r#"{"a":2,"b":1}"#);
        assert_eq!(
            first.hash.to_string(),
            "dc32e2dd279c83cd8b89b9fba724ec5d1d5eef52ddd4fd550745e644d2c9c8c6"
        );
    }

    #[test]
    fn any_change_is_found_where_it_is() {
        let mut chain = Chain::default();
        let mut entries = Vec::new();
        for number in 0..4 {
            let next = Stored::next(chain, &entry(&format!("r{number}")));
            chain.follow(&next).unwrap();
            entries.push(next);
        }
        let whole = chain;
        let check = |entries: &[Stored]| {
            let mut chain = Chain::default();
            for entry in entries {
                if let Err(broken) = chain.follow(entry) {
                    return chain.broken(broken).broken;
                }
            }
            chain.checked_against(whole).broken
        };
        assert_eq!(check(&entries), None);
        assert_eq!(check(&entries[..3]).map(|it| (it.seq, it.what)), Some((4, "it is missing")));
        let changes: [fn(&mut Stored); 6] = [
            |entry| entry.at += 1,
            |entry| entry.actor.push('x'),
            |entry| entry.body = "{}".to_owned(),
            // A text moves from one field to the next.
            |entry| (entry.kind, entry.subject) = (String::new(), format!("{}{}", entry.kind, entry.subject)),
            |entry| entry.hash.0[5] ^= 1,
            |entry| {
                entry.actor = "somebody else".to_owned();
                entry.hash = entry.digest();
            },
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut changed = entries.clone();
            change(&mut changed[1]);
            let at = if index == 5 { 3 } else { 2 };
            assert_eq!(check(&changed).map(|it| it.seq), Some(at), "change {index}");
        }
        let mut without = entries.clone();
        without.remove(2);
        assert_eq!(check(&without).map(|it| (it.seq, it.what)), Some((3, "it is missing")));
    }
}
