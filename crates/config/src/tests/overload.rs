//! How much comes in: admission and rate limits.

use super::*;

#[track_caller]
fn admits(lines: &str, limit: AdmissionLimit, queue: u32) {
    assert_eq!(service(lines).admission, Some(AdmissionSpec { limit, queue }), "{lines}");
}

#[test]
fn admission() {
    assert_eq!(service("admission:").admission, None, "off unless configured");
    admits("admission: {}", AdmissionLimit::Adaptive { max: 256 }, 512);
    admits("admission: { limit: 8 }", AdmissionLimit::Fixed(8), 512);
    admits("admission: { limit: adaptive, max: 1, queue: 0 }", AdmissionLimit::Adaptive { max: 1 }, 0);
    admits("admission: { limit: \"${ATTEMPTS}\" }", AdmissionLimit::Fixed(3), 512);
    assert_eq!(service("timeouts: { queue: 200ms }").timeouts.queue, Duration::from_millis(200));
    check_service(
        "admission: { limit: 0, queue: -1 }",
        &[
            "3:25 services[0].admission.limit: `0` is out of range",
            "3:35 services[0].admission.queue: `-1` is out of range",
        ],
    );
    check_service(
        "admission: { limit: 1000000, queue: 1e9 }",
        &[
            "3:25 services[0].admission.limit: `1000000` is out of range",
            "3:41 services[0].admission.queue: `1e9` is not a whole number",
        ],
    );
    check_service(
        "admission: { limit: adaptve, max: 0 }",
        &[
            "3:25 services[0].admission.limit: `adaptve` is neither a whole number nor `adaptive`",
            "3:39 services[0].admission.max: `0` is out of range",
        ],
    );
    check_service(
        "admission: { limit: 2.5 }",
        &["3:25 services[0].admission.limit: `2.5` is neither a whole number nor `adaptive`"],
    );
    check_service(
        "admission: { limit: [1] }",
        &["3:25 services[0].admission.limit: `[…]` is not a single value"],
    );
    check_service(
        "admission: { limit: 8, max: 16 }",
        &["3:33 services[0].admission.max: `max` has no effect: `limit` is always `8`"],
    );
    check_service("timeouts: { queue: 0s }", &["3:24 services[0].timeouts.queue: `0s` is too short"]);
    let problems = read(&with_service("admission: { limit: many }")).unwrap_err();
    assert!(
        problems.to_string().contains("expected: `adaptive` or a whole number from 1 to 100000"),
        "{problems}"
    );
}

#[test]
fn limits() {
    let s = service("limits: { tokens_per_minute: 5 }\nlimits_per_user: { requests_per_minute: 7 }");
    assert_eq!(s.limits, RateSpec { requests_per_minute: None, tokens_per_minute: Some(5) });
    assert_eq!(s.limits_per_user, RateSpec { requests_per_minute: Some(7), tokens_per_minute: None });
    check_service(
        "limits: { requests_per_minute: 0, tokens_per_minute: 10k, requests_per_second: 1 }",
        &[
            "3:36 services[0].limits.requests_per_minute: `0` is out of range",
            "3:58 services[0].limits.tokens_per_minute: `10k` is not a whole number",
            "3:63 services[0].limits.requests_per_second: unknown key `requests_per_second`",
        ],
    );
    check_service(
        "limits_per_user: { requests_per_minute: 1000000001, tokens_per_minute: -5 }",
        &[
            "3:45 services[0].limits_per_user.requests_per_minute: `1000000001` is out of range",
            "3:76 services[0].limits_per_user.tokens_per_minute: `-5` is out of range",
        ],
    );
}

/// What is served says the same as the file, in the file's own words.
#[test]
fn shown_as_written() {
    let shown = |lines: &str| {
        let config = read(&with_service(lines)).unwrap();
        config.effective(&Intent::default())["services"][0]["admission"]["limit"].clone()
    };
    assert_eq!(shown("admission: { limit: 8 }"), 8);
    assert_eq!(shown("admission: {}"), "adaptive");
}
