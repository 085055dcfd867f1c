//! Drills: each way through one, and what must hold of all.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000;

fn plan() -> Plan {
    let step = Step { buckets: 1_000, hold: Duration::from_secs(300), min_requests: 100, approval: true };
    Plan {
        steps: vec![step],
        bake: Duration::from_secs(300),
        max_age: Duration::from_secs(86_400),
        on_expiry: OnExpiry::Ask,
        alpha: 0.01,
        on_critical: Way::Instant,
        on_regressed: Way::Gradual,
        retreat: vec![20_000, 2_000, 0],
        retreat_every: Duration::from_secs(10),
        verify: Duration::from_secs(300),
    }
}

fn drill(way: Way) -> Release {
    let plan = plan().of_drill(Drilling { buckets: 5_000, way }, Duration::from_secs(10));
    Release::begin("d1", "chat", Kind::Drill, "v1", &twin("v1"), plan)
}

fn well(requests: u64) -> Observed {
    Observed { canary_ready: true, stable_ready: true, requests, ..Observed::default() }
}

/// A look as the runner makes it, a second later.
#[track_caller]
fn look(release: &Release, observed: Observed) -> (Release, Vec<Effect>) {
    let now = release.now + SECOND;
    let is_due = release.drill_is_due(observed.requests, now);
    let event = if is_due { Event::drill(observed) } else { Event::Tick(observed) };
    release.step(event, now).unwrap()
}

#[track_caller]
fn after(release: &Release, seconds: u64, observed: &Observed) -> Release {
    (0..seconds).fold(release.clone(), |release, _| look(&release, observed.clone()).0)
}

fn texts(effects: &[Effect]) -> Vec<(Severity, &str)> {
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Tell(told) => Some((told.severity, told.text.as_str())),
        _ => None,
    });
    told.collect()
}

#[test]
fn it_gets_its_share_goes_back_as_by_a_trigger_and_is_verified() {
    let begun = after(&drill(Way::Instant), 1, &well(0));
    assert_eq!((begun.phase, begun.buckets()), (Phase::Step { index: 0 }, 5_000), "outside of any window");
    assert_eq!(after(&begun, 10, &well(19)).buckets(), 5_000);
    let (back, effects) = look(&begun, well(20));
    assert_eq!((back.phase, back.buckets()), (Phase::Verifying, 0));
    assert_eq!(back.cause, Some(Cause::Trigger { trigger: DRILL.to_owned() }));
    assert!(!effects.contains(&Effect::Veto));
    assert_eq!(texts(&effects), [(Severity::Info, "v1~drill goes back: trigger: drill")], "nobody is woken");
    for (recovered, seconds, expected) in [
        (Some(true), 1, Phase::RolledBack),
        (Some(false), 59, Phase::Verifying),
        (Some(false), 60, Phase::VerifyFailed),
        (None, 60, Phase::RolledBack),
    ] {
        let ended = after(&back, seconds, &Observed { recovered, ..well(20) });
        assert_eq!(ended.phase, expected, "{recovered:?} after {seconds} s");
        assert_eq!((ended.exposure().stable.as_str(), ended.buckets()), ("v1", 0));
    }
}

#[test]
fn it_does_not_wait_for_ever_for_requests() {
    let begun = after(&drill(Way::Instant), 1, &well(0));
    let quiet = after(&begun, 59, &well(3));
    assert_eq!(quiet.buckets(), 5_000);
    let (back, effects) = look(&quiet, well(3));
    assert_eq!(back.phase, Phase::Verifying);
    assert!(texts(&effects)[0].1.starts_with("too little traffic: 3 of 20"), "{effects:?}");
}

#[test]
fn gradually_it_goes_back_by_the_shares_below_its_own() {
    let begun = after(&drill(Way::Gradual), 1, &well(0));
    let (first, _) = look(&begun, well(20));
    assert_eq!((first.phase, first.buckets()), (Phase::Retreat { index: 1 }, 2_000));
    assert_eq!(after(&first, 9, &well(20)).buckets(), 2_000);
    assert_eq!(after(&first, 10, &well(20)).phase, Phase::Verifying);
}

#[test]
fn what_really_goes_wrong_ends_it_at_once() {
    let waiting = drill(Way::Gradual);
    let begun = after(&waiting, 1, &well(0));
    let retreating = look(&begun, well(20)).0;
    let text = || Some("x".to_owned());
    let troubles = [
        Observed { stable_ready: false, ..well(20) },
        Observed { stable_in_trouble: true, ..well(20) },
        Observed { hard_stop: text(), ..well(20) },
        Observed { critical: text(), ..well(20) },
        Observed { regressed: text(), ..well(20) },
    ];
    for trouble in troubles {
        for stage in [&waiting, &begun, &retreating] {
            let (ended, effects) = look(stage, trouble.clone());
            assert_eq!((ended.phase, ended.buckets()), (Phase::Aborted, 0), "{trouble:?} in {}", stage.phase);
            assert!(!effects.contains(&Effect::Veto) && effects.contains(&Effect::Account));
        }
    }
    let not_ready = Observed { canary_ready: false, ..well(0) };
    assert_eq!(after(&waiting, 59, &not_ready).phase, Phase::Waiting);
    assert_eq!(after(&waiting, 60, &not_ready).phase, Phase::Aborted);
}

#[test]
fn operators_can_only_end_it() {
    let begun = after(&drill(Way::Gradual), 1, &well(0));
    let retreating = look(&begun, well(20)).0;
    let verifying = after(&retreating, 10, &well(20));
    let rollback = || (String::from("ops"), String::new());
    let ends = [
        Command::Abort,
        Command::Rollback { way: Way::Gradual, actor: rollback().0, reason: rollback().1 },
        Command::GiveWay { to: "v0".to_owned(), actor: rollback().0, reason: rollback().1 },
    ];
    for stage in [&drill(Way::Instant), &begun, &retreating, &verifying] {
        for (command, stable_ready) in ends.iter().flat_map(|command| [(command, true), (command, false)]) {
            let event = Event::Command { command: command.clone(), stable_ready, canary_ready: true };
            let (ended, effects) = stage.step(event, stage.now).unwrap();
            assert_eq!((ended.phase, ended.buckets()), (Phase::Aborted, 0), "{command:?} in {}", stage.phase);
            assert!(!effects.contains(&Effect::Veto));
        }
        for command in [Command::Pause, Command::Resume, Command::Approve, Command::Promote] {
            let event = Event::Command { command, stable_ready: true, canary_ready: true };
            assert!(matches!(stage.step(event, stage.now), Err(Refused::Pointless(_))), "in {}", stage.phase);
        }
    }
}

#[test]
fn one_that_is_called_off_from_outside_has_ended_and_stays_so() {
    let begun = after(&drill(Way::Instant), 1, &well(0));
    let (ended, effects) = begun.called_off("restarted", begun.now);
    assert_eq!((ended.phase, ended.buckets()), (Phase::Aborted, 0));
    assert!(ended.epoch > begun.epoch, "what is served has to change");
    assert_eq!(effects.first(), Some(&Effect::Expose(ended.exposure())));
    assert_eq!(ended.called_off("again", ended.now), (ended.clone(), vec![]));
}

fn observed() -> impl Strategy<Value = Observed> {
    let text = || prop::option::weighted(0.03, Just("x".to_owned()));
    let usually = || prop::bool::weighted(0.97);
    let ready = (usually(), usually(), usually());
    (ready, (text(), text(), text()), 0_u64..40, prop::option::of(any::<bool>())).prop_map(
        |(ready, texts, requests, recovered)| Observed {
            canary_ready: ready.0,
            stable_ready: ready.1,
            stable_in_trouble: !ready.2,
            hard_stop: texts.0,
            regressed: texts.1,
            critical: texts.2,
            requests,
            recovered,
            ..Observed::default()
        },
    )
}

proptest! {
    #[test]
    fn whatever_happens_stable_has_all_in_the_end(
        way in prop_oneof![Just(Way::Instant), Just(Way::Gradual)],
        looks in prop::collection::vec((observed(), 0_u64..70_000), 1..60),
    ) {
        let mut release = drill(way);
        for (observed, later) in looks {
            let now = release.now + later;
            let is_due = release.drill_is_due(observed.requests, now);
            let event = if is_due { Event::drill(observed) } else { Event::Tick(observed) };
            let (next, effects) = release.step(event, now).unwrap();
            // It never takes the stable version's place, and nothing is held against it.
            prop_assert!(!matches!(next.phase, Phase::Promoted | Phase::Bake));
            prop_assert!(!effects.contains(&Effect::Veto));
            prop_assert_eq!(next.exposure().stable, "v1".to_owned());
            // Its share comes once, and then only goes.
            prop_assert!(next.buckets() <= release.buckets() || release.phase == Phase::Waiting);
            prop_assert!(next.buckets() <= 5_000);
            if next.phase.is_final() {
                prop_assert_eq!(next.buckets(), 0);
            }
            release = next;
        }
        // Left alone it comes to an end.
        for _ in 0..400 {
            release = look(&release, well(0)).0;
        }
        prop_assert!(release.phase.is_final(), "{}", release.phase);
    }
}
