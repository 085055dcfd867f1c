//! What Backstop's log says of single requests.

use std::collections::{BTreeMap, BTreeSet};

/// The lines of some requests, by id, and what should never be in a log.
#[derive(Debug, Default)]
pub(crate) struct Log {
    lines: BTreeMap<String, Vec<String>>,
    /// Panics.
    pub(crate) panics: Vec<String>,
}

impl Log {
    pub(crate) fn read(text: &str, wanted: &BTreeSet<&str>) -> Self {
        let mut log = Self::default();
        for line in text.lines() {
            if line.contains("panicked at") {
                log.panics.push(line.to_owned());
            }
            let id = line.split("\"request_id\":\"").nth(1).and_then(|rest| rest.split('"').next());
            if let Some(id) = id.filter(|id| wanted.contains(id)) {
                log.lines.entry(id.to_owned()).or_default().push(line.to_owned());
            }
        }
        log
    }

    pub(crate) fn of(&self, id: &str) -> &[String] {
        self.lines.get(id).map(Vec::as_slice).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_requests() {
        let text = "{\"message\":\"serving\"}\n\
            {\"message\":\"attempt failed\",\"request_id\":\"a\",\"endpoint\":\"x\"}\n\
            {\"message\":\"request\",\"request_id\":\"a\",\"endpoint\":\"y\"}\n\
            {\"message\":\"request\",\"request_id\":\"b\",\"endpoint\":\"z\"}\n\
            thread 'main' panicked at src/main.rs:1:1:\n";
        let log = Log::read(text, &BTreeSet::from(["a", "c"]));
        assert_eq!(log.of("a").len(), 2);
        assert!(log.of("b").is_empty() && log.of("c").is_empty());
        assert_eq!(log.panics.len(), 1);
    }
}
