//! Which events are failovers, and what is told of them. `docs/operations.md` has the same as a table.

use std::collections::BTreeMap;

use backstop_config::Topic;
use backstop_core::event::{EndpointName, Event, What};
use backstop_core::health::State;
use backstop_core::rollout::Severity;
use backstop_core::standby::Stage;

use super::notice::{Notice, Status};

/// What is to be told of an event; `process` tells the ids of this one from those of others.
pub(super) fn notices(event: &Event, process: &str) -> Vec<Notice> {
    let told = match &event.what {
        What::Health { endpoint, to, reason, .. } => health(endpoint, *to, reason),
        What::Breaker { endpoint, open } => vec![breaker(endpoint, *open)],
        What::Ejected { endpoint, seconds, reason } => {
            let title = format!("{} gets nothing for {seconds:.0} s", place(endpoint));
            vec![of_endpoint(
                endpoint,
                "outlier",
                (Status::Note, "ejected"),
                Severity::Warning,
                title,
                reason,
            )]
        }
        What::Failover { service, version, tier, stage, share, reason } => {
            vec![tiers(service, version, tier, (*stage, *share), reason)]
        }
        _ => Vec::new(),
    };
    let numbered = told.into_iter().enumerate();
    numbered
        .map(|(index, notice)| Notice {
            id: format!("{process}-{}-{index}", event.id),
            at: event.at,
            ..notice
        })
        .collect()
}

/// Whether it serves is one thing, and whether it is meant to another.
fn health(endpoint: &EndpointName, to: State, reason: &str) -> Vec<Notice> {
    let health = |status, state, what| {
        let title = format!("{} {what}", place(endpoint));
        of_endpoint(endpoint, "health", (status, state), Severity::Warning, title, reason)
    };
    let duty = |status, state, what| {
        let title = format!("{} {what}", place(endpoint));
        of_endpoint(endpoint, "duty", (status, state), Severity::Info, title, reason)
    };
    let back = || duty(Status::Resolved, "active", "is in service again");
    match to {
        State::Unhealthy => vec![back(), health(Status::Firing, "unhealthy", "can't serve")],
        State::Healthy | State::Degraded => {
            vec![back(), health(Status::Resolved, "serving", "serves again")]
        }
        State::Draining => vec![duty(Status::Firing, "draining", "is being drained")],
        State::Isolated => vec![duty(Status::Firing, "isolated", "is isolated")],
        State::Starting => vec![back()],
    }
}

fn breaker(endpoint: &EndpointName, open: bool) -> Notice {
    let place = place(endpoint);
    let (state, title, reason) = if open {
        ((Status::Firing, "open"), format!("{place} gets nothing"), "requests kept failing")
    } else {
        ((Status::Resolved, "closed"), format!("{place} gets requests again"), "a request succeeded")
    };
    of_endpoint(endpoint, "breaker", state, Severity::Warning, title, reason)
}

fn tiers(service: &str, version: &str, tier: &str, (stage, share): (Stage, f64), reason: &str) -> Notice {
    let subject = format!("{tier} of {service}/{version}");
    let (status, title) = match stage {
        Stage::Primary => (Status::Resolved, format!("{subject} has its work again")),
        Stage::Leaving => {
            (Status::Firing, format!("{subject} hands its work over, {:.0} % left", share * 100.0))
        }
        Stage::Standby => (Status::Firing, format!("the standby of {subject} has its work")),
        Stage::Returning => {
            (Status::Firing, format!("{subject} gets its work back, {:.0} % so far", share * 100.0))
        }
    };
    let labels = [("service", service), ("version", version), ("tier", tier)];
    notice(subject, (status, &stage.to_string()), Severity::Warning, (title, reason), &labels)
}

fn of_endpoint(
    endpoint: &EndpointName,
    about: &str,
    state: (Status, &str),
    severity: Severity,
    title: String,
    reason: &str,
) -> Notice {
    let EndpointName { service, version, url } = endpoint;
    let labels = [("service", &**service), ("version", version), ("endpoint", url), ("about", about)];
    notice(format!("{about} of {}", place(endpoint)), state, severity, (title, reason), &labels)
}

fn notice(
    subject: String,
    (status, state): (Status, &str),
    severity: Severity,
    (title, reason): (String, &str),
    labels: &[(&str, &str)],
) -> Notice {
    let labels: BTreeMap<_, _> =
        labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let (state, reason) = (state.to_owned(), reason.to_owned());
    let (id, topic, at) = (String::new(), Topic::Failover, 0);
    Notice { id, topic, at, severity, status, subject, state, title, reason, labels }
}

fn place(EndpointName { service, version, url }: &EndpointName) -> String {
    format!("{url} of {service}/{version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: What) -> Event {
        Event { id: 7, at: 1000, what }
    }

    fn endpoint() -> EndpointName {
        EndpointName { service: "chat".into(), version: "v1".into(), url: "http://h:1".into() }
    }

    #[track_caller]
    fn check(what: What, expected: &[&str]) {
        let told = |notice: Notice| format!("{:?} {}: {}", notice.status, notice.subject, notice.title);
        let found: Vec<_> = notices(&event(what), "p").into_iter().map(told).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_told_of_events() {
        let health = |to| What::Health {
            endpoint: endpoint(),
            from: State::Starting,
            to,
            reason: "process: refused".to_owned(),
        };
        let back = "Resolved duty of http://h:1 of chat/v1: http://h:1 of chat/v1 is in service again";
        check(
            health(State::Unhealthy),
            &[back, "Firing health of http://h:1 of chat/v1: http://h:1 of chat/v1 can't serve"],
        );
        let well = "Resolved health of http://h:1 of chat/v1: http://h:1 of chat/v1 serves again";
        check(health(State::Healthy), &[back, well]);
        check(health(State::Degraded), &[back, well]);
        check(
            health(State::Isolated),
            &["Firing duty of http://h:1 of chat/v1: http://h:1 of chat/v1 is isolated"],
        );
        check(
            What::Breaker { endpoint: endpoint(), open: true },
            &["Firing breaker of http://h:1 of chat/v1: http://h:1 of chat/v1 gets nothing"],
        );
        let tier = |stage, share| What::Failover {
            service: "chat".to_owned(),
            version: "v1".to_owned(),
            tier: "priority 0".to_owned(),
            stage,
            share,
            reason: "all gone".to_owned(),
        };
        check(
            tier(Stage::Standby, 0.0),
            &["Firing priority 0 of chat/v1: the standby of priority 0 of chat/v1 has its work"],
        );
        check(
            tier(Stage::Returning, 0.25),
            &["Firing priority 0 of chat/v1: priority 0 of chat/v1 gets its work back, 25 % so far"],
        );
        check(What::Table { revision: 1 }, &[]);
    }

    /// Otherwise an Alertmanager would take the end of an alert for that of another one.
    #[test]
    fn both_ends_of_a_trouble_have_the_same_labels() {
        let open = notices(&event(What::Breaker { endpoint: endpoint(), open: true }), "p");
        let closed = notices(&event(What::Breaker { endpoint: endpoint(), open: false }), "p");
        assert_eq!((&open[0].labels, open[0].severity), (&closed[0].labels, closed[0].severity));
        assert_eq!((open[0].id.as_str(), open[0].at), ("p-7-0", 1000));
    }
}
