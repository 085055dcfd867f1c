//! Who is told: keys that need or exclude each other.

use super::{Validator, items};
use crate::node::Node;
use crate::problem::Problem;

const FORMS: [&str; 3] = ["webhook", "slack", "alertmanager"];

impl Validator<'_> {
    /// Each entry is one recipient, with nothing that would have no effect.
    pub(super) fn notify(&mut self, root: &Node) {
        for (index, entry) in items(root, "notify").iter().enumerate() {
            let path = format!("notify[{index}]");
            let given = |key: &str| entry.get(key).filter(|node| !node.is_null());
            let forms: Vec<&str> = FORMS.into_iter().filter(|form| given(form).is_some()).collect();
            let [form] = forms[..] else {
                let message = if forms.is_empty() { "tells nobody" } else { "is several recipients" };
                let problem = Problem::new(self.file, entry.at, path, message.to_owned());
                let hint = (!forms.is_empty()).then(|| "make an entry of each".to_owned());
                let expected = "one of `webhook`, `slack` or `alertmanager`";
                self.problems.push(problem.expected(expected).hint(hint));
                continue;
            };
            for (key, forms) in [("secret", &FORMS[..1]), ("token", &["webhook", "alertmanager"][..])] {
                if let Some(node) = given(key).filter(|_| !forms.contains(&form)) {
                    let message = format!("`{key}` has no effect with `{form}`");
                    let problem = Problem::new(self.file, node.at, format!("{path}.{key}"), message);
                    self.problems.push(problem.expected(format!("no `{key}`")));
                }
            }
            if let Some(url) =
                given("alertmanager").filter(|url| url.text().is_some_and(|it| it.contains('?')))
            {
                let message = "the URL of an Alertmanager has no query".to_owned();
                let problem = Problem::new(self.file, url.at, format!("{path}.alertmanager"), message);
                self.problems.push(problem.expected("such as `http://alertmanager:9093`"));
            }
            if let Some(node) = given("secret")
                && let Some(base64) = node.text().and_then(|text| text.strip_prefix("whsec_"))
                && !is_base64(base64)
            {
                let message = "what follows `whsec_` is not base64".to_owned();
                let problem = Problem::new(self.file, node.at, format!("{path}.secret"), message);
                self.problems.push(problem.expected("the secret as your webhook's receiver has it"));
            }
            let mut seen = std::collections::HashMap::new();
            for (index, topic) in items(entry, "events").iter().enumerate() {
                self.unique(&mut seen, topic, format!("{path}.events[{index}]"), "this list already has");
            }
        }
    }
}

/// With or without the padding at its end.
fn is_base64(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"+/".contains(&b);
    let rest = digits.len() % 4;
    !digits.is_empty()
        && digits.bytes().all(valid)
        && rest != 1
        && (padding == 0 || padding == (4 - rest) % 4)
}
