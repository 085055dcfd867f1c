//! What recipients are sent.

use std::collections::BTreeMap;

use backstop_config::{Form, Recipient, Topic};
use backstop_core::rollout::Severity;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::Full;
use hyper::Request;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use serde_json::{Value, json};
use sha2::Sha256;

use super::notice::{Notice, Status};
use super::time::rfc3339;

/// How long an Alertmanager takes an alert for true that is not sent again, in milliseconds.
pub(super) const ALERT_LASTS: u64 = 5 * 60_000;

/// A request that tells `notice` at `now`, in milliseconds since the Unix epoch.
pub(super) fn request(
    recipient: &Recipient,
    notice: &Notice,
    now: u64,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let body = match recipient.form {
        Form::Webhook => serde_json::to_value(notice).unwrap_or_default(),
        Form::Slack => json!({ "text": slack(notice) }),
        Form::Alertmanager => json!([alert(notice, now)]),
    };
    let body = body.to_string();
    let mut request = post(recipient, &body)?;
    if recipient.form == Form::Webhook {
        let headers = request.headers_mut();
        headers.insert("webhook-id", HeaderValue::from_str(&notice.id)?);
        headers.insert("webhook-timestamp", HeaderValue::from(now / 1000));
        if let Some(secret) = &recipient.secret {
            let signature = signature(secret, &notice.id, now / 1000, &body);
            headers.insert("webhook-signature", HeaderValue::from_str(&signature)?);
        }
    }
    Ok(request)
}

/// A request that tells an Alertmanager that these still last.
pub(super) fn still_firing<'a>(
    recipient: &Recipient,
    notices: impl Iterator<Item = &'a Notice>,
    now: u64,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let alerts: Vec<_> = notices.map(|notice| alert(notice, now)).collect();
    post(recipient, &Value::from(alerts).to_string())
}

fn post(recipient: &Recipient, body: &str) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let target = &recipient.target;
    let host = if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
    let mut request = Request::post(&recipient.path)
        .header(HOST, format!("{host}:{}", target.port))
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("backstop/", env!("CARGO_PKG_VERSION")));
    if let Some(token) = &recipient.token {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    request.body(Full::from(body.to_owned()))
}

/// As Standard Webhooks has it.
fn signature(secret: &str, id: &str, seconds: u64, body: &str) -> String {
    let decoded = secret
        .strip_prefix("whsec_")
        .and_then(|base64| BASE64_STANDARD_NO_PAD.decode(base64.trim_end_matches('=')).ok());
    let key = decoded.unwrap_or_else(|| secret.as_bytes().to_vec());
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("a key of any length will do");
    mac.update(format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}

fn slack(notice: &Notice) -> String {
    let mark = match (notice.status, notice.severity) {
        (Status::Resolved, _) => "RESOLVED",
        (_, Severity::Critical) => "CRITICAL",
        (_, Severity::Warning) => "WARNING",
        (_, Severity::Info) => "INFO",
    };
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let (title, reason) = (escaped(&notice.title), escaped(&notice.reason));
    format!("*{mark}* {title}\n{reason}").trim_end().to_owned()
}

fn alert(notice: &Notice, now: u64) -> Value {
    let name = match notice.topic {
        Topic::Failover => "BackstopFailover",
        Topic::Release => "BackstopRelease",
        Topic::Trigger => "BackstopTrigger",
        Topic::Drill => "BackstopDrill",
    };
    let severity = match notice.severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    };
    let mut labels: BTreeMap<&str, &str> =
        notice.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    labels.extend([("alertname", name), ("severity", severity)]);
    let annotations = json!({ "summary": notice.title, "description": notice.reason, "state": notice.state });
    let mut alert = json!({ "labels": labels, "annotations": annotations });
    // Its beginning is known there; a later one would make it another alert.
    if notice.status != Status::Resolved {
        alert["startsAt"] = rfc3339(notice.at).into();
    }
    let ends = match notice.status {
        Status::Resolved => notice.at,
        Status::Firing => now + ALERT_LASTS,
        Status::Note => notice.at + ALERT_LASTS,
    };
    alert["endsAt"] = rfc3339(ends).into();
    alert
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of the specification's own libraries.
    #[test]
    fn signs_as_receivers_check() {
        let signed = |secret| {
            signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#)
        };
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signed("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), expected);
        assert_ne!(signed("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), expected);
    }
}
