//! [`Written`]: a version as somebody wrote it, so that it can be kept and shown.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::node::Node;
use crate::problem::Problem;
use crate::raw::is_reference;

/// The one key of a version that is a secret.
const SECRET: &str = "api_key";

/// A version as it was written: `${NAME}` where the environment is filled in, and no key in clear.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// As in the file, without its name.
    pub definition: Value,
    /// Paths of the keys that were written in clear and are left out, such as `endpoints[0].api_key`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
}

impl Written {
    /// `definition` is as in the file, keys and all.
    pub(crate) fn of(mut definition: Value) -> Self {
        let mut without = Vec::new();
        if let Some(version) = definition.as_object_mut() {
            version.remove("name");
        }
        let endpoints = definition.get_mut("endpoints").and_then(Value::as_array_mut);
        for (index, endpoint) in endpoints.into_iter().flatten().enumerate() {
            let in_clear = endpoint[SECRET].as_str().is_some_and(|key| !is_reference(key));
            if let (true, Some(keys)) = (in_clear, endpoint.as_object_mut()) {
                keys.remove(SECRET);
                without.push(format!("endpoints[{index}].{SECRET}"));
            }
        }
        Self { definition, without }
    }
}

/// Complains of keys in clear: what operators register is kept, and shown to viewers.
pub(crate) fn no_secrets(version: &Node, file: &str, problems: &mut Vec<Problem>) {
    for (index, endpoint) in version.get("endpoints").map(Node::items).unwrap_or_default().iter().enumerate()
    {
        let Some(key) = endpoint.get(SECRET).filter(|key| key.text().is_some() && !key.is_reference()) else {
            continue;
        };
        let message = "this key would be kept in clear".to_owned();
        let problem = Problem::new(file, key.at, format!("endpoints[{index}].{SECRET}"), message);
        let hint = "set the variable in the environment of the running Backstop".to_owned();
        problems.push(problem.value("***").expected("`\"${NAME}\"`, from the environment").hint(Some(hint)));
    }
}
