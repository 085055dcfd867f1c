//! `notify`: who is told, and its mistakes.

use backstop_core::table::Scheme;

use super::*;
use crate::{Form, Topic};

fn with(entries: &str) -> String {
    format!("notify: [{entries}]\n{MINIMAL}")
}

#[test]
fn recipients() {
    let text = with(
        "{ webhook: \"https://hooks.example/in?key=${SECRET}\", events: [release], secret: whsec_aGVsbG8=, token: t }, \
         { slack: \"https://slack.example:8443/T0/B0/xyz\" }, { alertmanager: \"http://am:9093/prefix/\" }",
    );
    let config = read(&text).unwrap();
    let [webhook, slack, alertmanager] = &config.notify()[..] else { panic!("three") };
    assert_eq!((webhook.form, &webhook.topics[..]), (Form::Webhook, &[Topic::Release][..]));
    assert_eq!((webhook.target.scheme, webhook.target.port), (Scheme::Https, 443));
    assert_eq!(webhook.path, format!("/in?key={SECRET}"));
    assert_eq!((webhook.secret.as_deref(), webhook.token.as_deref()), (Some("whsec_aGVsbG8="), Some("t")));
    assert_eq!((slack.path.as_str(), slack.topics.len()), ("/T0/B0/xyz", 4));
    assert_eq!(
        (alertmanager.form, alertmanager.path.as_str()),
        (Form::Alertmanager, "/prefix/api/v2/alerts")
    );

    // Such URLs are secrets, wherever they stand.
    let effective = config.effective(&Intent::default()).to_string();
    assert!(effective.contains("https://hooks.example:443/***"), "{effective}");
    for shown in [effective, format!("{config:?} {:?}", config.notify()), slack.to_string()] {
        assert!(!shown.contains(SECRET) && !shown.contains("/T0") && !shown.contains("whsec"), "{shown}");
    }
}

#[test]
fn mistakes() {
    check(
        &with(
            "{ events: [failover] }, { slack: \"http://a/x\", webhook: \"http://b/y\" }, \
             { slack: \"http://a/x\", token: t, secret: s }, { webhook: \"http://a\", events: [failovers] }, \
             { webhook: \"ftp://u:p@secret/path\" }, { webhook: \"http://a\", secret: whsec_a }, \
             { alertmanager: \"http://a?x=y\" }",
        ),
        &[
            "1:10 notify[0]: tells nobody",
            "1:34 notify[1]: is several recipients",
            "1:112 notify[2].token: `token` has no effect with `slack`",
            "1:123 notify[2].secret: `secret` has no effect with `slack`",
            "1:160 notify[3].events[0]: `failovers` is not one of the choices",
            "1:185 notify[4].webhook: `***` is not an HTTP URL",
            "1:243 notify[5].secret: what follows `whsec_` is not base64",
            "1:270 notify[6].alertmanager: the URL of an Alertmanager has no query",
        ],
    );
}
