//! [`Recipient`]: somebody who is told of events.

use std::fmt;

use backstop_core::table::Target;

use crate::types;
use crate::units::NotifyUrl;

/// Whom to tell, how and of what.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient {
    pub form: Form,
    /// Host and port; without a path of its own.
    pub target: Target,
    /// With its query. It may be all there is of a secret.
    pub path: String,
    pub topics: Vec<Topic>,
    /// What webhooks are signed with, as it is written.
    pub secret: Option<String>,
    pub token: Option<String>,
}

/// What the recipient understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    Webhook,
    Slack,
    Alertmanager,
}

/// What one is told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    Failover,
    Release,
    Trigger,
    Drill,
}

/// `None` for an entry without a URL, which the check has ruled out.
pub(crate) fn recipient(notify: &types::Notify) -> Option<Recipient> {
    let (form, url) = match notify {
        types::Notify { webhook: Some(url), .. } => (Form::Webhook, url),
        types::Notify { slack: Some(url), .. } => (Form::Slack, url),
        types::Notify { alertmanager: Some(url), .. } => (Form::Alertmanager, url),
        _ => return None,
    };
    let NotifyUrl { target, path } = url.clone();
    let path = match form {
        Form::Alertmanager => {
            let base = path.trim_end_matches('/');
            format!("{}/api/v2/alerts", base.strip_suffix("/api/v2/alerts").unwrap_or(base))
        }
        Form::Webhook | Form::Slack => path,
    };
    let text = |secret: &crate::units::Secret| secret.0.clone();
    Some(Recipient {
        form,
        target,
        path,
        topics: notify.events.iter().map(topic).collect(),
        secret: notify.secret.as_ref().map(text),
        token: notify.token.as_ref().map(text),
    })
}

fn topic(topic: &types::Topic) -> Topic {
    match topic {
        types::Topic::Failover => Topic::Failover,
        types::Topic::Release => Topic::Release,
        types::Topic::Trigger => Topic::Trigger,
        types::Topic::Drill => Topic::Drill,
    }
}

/// As logs call it: without what may be secret.
impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            Form::Webhook => "webhook",
            Form::Slack => "slack",
            Form::Alertmanager => "alertmanager",
        };
        write!(f, "{form} at {}", self.target.url())
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} about {:?}", self.topics)
    }
}
