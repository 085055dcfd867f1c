//! [`Told`]: what people have been told of a subject, and whether they have to be told more. A pure decision.
//!
//! A change is told at once, unless the same state has been told shortly before: then it waits, and is told only if it is
//! still so. So what goes up and down all the time is told now and then, and the last word is always right.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::notice::{Notice, Status};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    /// What was told last.
    pub(super) last: Notice,
    /// When each state was told, as long as it counts.
    at: BTreeMap<String, u64>,
    /// How things are, if that is something else and waits.
    held: Option<Notice>,
    /// How often it has changed since something was told.
    changes: u32,
}

/// What is known of a subject from now on, and what is to be told of it.
pub(super) type Heard = (Option<Told>, Option<Notice>);

/// Something has happened to a subject. `window`: for so long a state is not told again, in milliseconds.
pub(super) fn hear(told: Option<Told>, notice: Notice, now: u64, window: u64) -> Heard {
    let Some(mut told) = told else {
        // Nobody was told of trouble, so nobody waits for its end.
        return if notice.status == Status::Resolved { (None, None) } else { tell(None, notice, now) };
    };
    told.forget(now, window);
    let recently = told.at.contains_key(&notice.state);
    if notice.state == told.last.state {
        let again = notice.status == Status::Note && !recently;
        told.changes += u32::from(told.held.take().is_some());
        return if again { tell(Some(told), notice, now) } else { (Some(told), None) };
    }
    told.changes += 1;
    if recently {
        told.held = Some(notice);
        return (Some(told), None);
    }
    tell(Some(told), notice, now)
}

/// Time has passed.
pub(super) fn wait(mut told: Told, now: u64, window: u64) -> Heard {
    told.forget(now, window);
    match told.held.take() {
        Some(mut held) if !told.at.contains_key(&held.state) => {
            held.reason = format!("{}; it has changed {} times meanwhile", held.reason, told.changes);
            tell(Some(told), held, now)
        }
        held => {
            told.held = held;
            let is_over = told.held.is_none() && told.last.status != Status::Firing && told.at.is_empty();
            ((!is_over).then_some(told), None)
        }
    }
}

fn tell(told: Option<Told>, notice: Notice, now: u64) -> Heard {
    let mut at = told.map(|told| told.at).unwrap_or_default();
    at.insert(notice.state.clone(), now);
    (Some(Told { last: notice.clone(), at, held: None, changes: 0 }), Some(notice))
}

impl Told {
    fn forget(&mut self, now: u64, window: u64) {
        // One that is still to come was noted by a clock that was put back since.
        self.at.retain(|_, at| *at <= now && now < at.saturating_add(window));
    }
}

#[cfg(test)]
mod tests {
    use backstop_config::Topic;
    use backstop_core::rollout::Severity;

    use super::*;

    fn notice(state: &str) -> Notice {
        let status = match state {
            "serving" => Status::Resolved,
            "ejected" => Status::Note,
            _ => Status::Firing,
        };
        let text = || "x".to_owned();
        let (id, subject, title, reason, labels) = (text(), text(), text(), text(), BTreeMap::new());
        let (topic, severity, state) = (Topic::Failover, Severity::Warning, state.to_owned());
        Notice { id, topic, at: 0, severity, status, subject, state, title, reason, labels }
    }

    /// `time state` → what is told then, with a window of 60; an empty state: only time passes.
    #[track_caller]
    fn check(heard: &[(u64, &str)], expected: &[(u64, &str)], is_kept: bool) {
        let mut told = None;
        let mut found = Vec::new();
        for (now, state) in heard {
            let (next, say) = match (*state, told.take()) {
                ("", None) => (None, None),
                ("", Some(told)) => wait(told, *now, 60),
                (state, told) => hear(told, notice(state), *now, 60),
            };
            found.extend(say.map(|notice| (*now, notice.state)));
            told = next;
        }
        let expected: Vec<_> = expected.iter().map(|(now, state)| (*now, (*state).to_owned())).collect();
        assert_eq!((found, told.is_some()), (expected, is_kept));
    }

    #[test]
    fn each_change_is_told_once() {
        check(&[(0, "serving")], &[], false);
        check(&[(0, "unhealthy"), (1, "unhealthy"), (500, "unhealthy")], &[(0, "unhealthy")], true);
        check(&[(0, "unhealthy"), (9, "serving"), (9, "serving")], &[(0, "unhealthy"), (9, "serving")], true);
        check(&[(0, "unhealthy"), (9, "serving"), (68, "")], &[(0, "unhealthy"), (9, "serving")], true);
        check(&[(0, "unhealthy"), (9, "serving"), (69, "")], &[(0, "unhealthy"), (9, "serving")], false);
        // Trouble is remembered for as long as it lasts.
        check(&[(0, "unhealthy"), (9999, "")], &[(0, "unhealthy")], true);
    }

    #[test]
    fn what_goes_up_and_down_is_told_now_and_then_and_rightly_in_the_end() {
        let up_and_down: &[_] =
            &[(0, "unhealthy"), (10, "serving"), (20, "unhealthy"), (30, "serving"), (40, "unhealthy")];
        let first = [(0, "unhealthy"), (10, "serving")];
        check(up_and_down, &first, true);
        check(&[up_and_down, &[(59, "")]].concat(), &first, true);
        check(&[up_and_down, &[(60, "")]].concat(), &[&first[..], &[(60, "unhealthy")]].concat(), true);
        // As it was told last: nothing to say.
        check(&[up_and_down, &[(50, "serving"), (70, "")]].concat(), &first, false);
    }

    #[test]
    fn a_clock_that_is_put_back_keeps_nothing_back() {
        let first = [(9000, "unhealthy"), (9010, "serving")];
        let again = [(100, "unhealthy"), (110, "serving")];
        check(&[first, again].concat(), &[first, again].concat(), true);
        check(&[&first[..], &[(100, "")]].concat(), &first, false);
    }

    #[test]
    fn what_only_happens_is_told_again_after_a_while() {
        check(&[(0, "ejected"), (59, "ejected")], &[(0, "ejected")], true);
        check(&[(0, "ejected"), (60, "ejected")], &[(0, "ejected"), (60, "ejected")], true);
        check(&[(0, "ejected"), (60, "")], &[(0, "ejected")], false);
    }
}
