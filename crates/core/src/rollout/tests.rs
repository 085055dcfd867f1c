//! The transitions one by one, and what must hold of any way through them.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::assign::Place;

const MINUTE: u64 = 60_000;

fn plan() -> Plan {
    let step = |buckets| Step { buckets, hold: Duration::from_secs(300), min_requests: 100, approval: false };
    Plan {
        steps: vec![step(1_000), step(10_000), step(50_000), step(ALL)],
        bake: Duration::from_secs(300),
        max_age: Duration::from_secs(7 * 86_400),
        on_expiry: OnExpiry::Rollback,
        alpha: 0.01,
        on_critical: Way::Instant,
        on_regressed: Way::Instant,
        retreat: vec![50_000, 20_000, 5_000, 0],
        retreat_every: Duration::from_secs(60),
        verify: Duration::from_secs(300),
    }
}

fn release(plan: Plan) -> Release {
    Release::begin("r1", "chat", Kind::Canary, "v1", "v2", plan)
}

fn well() -> Observed {
    Observed {
        canary_ready: true,
        stable_ready: true,
        window_open: true,
        requests: 1_000,
        ..Observed::default()
    }
}

fn bad() -> Observed {
    Observed { regressed: Some("error_rate".to_owned()), ..well() }
}

fn say(command: Command) -> Event {
    Event::Command { command, stable_ready: true, canary_ready: true }
}

fn back(way: Way) -> Command {
    Command::Rollback { way, actor: "ops".to_owned(), reason: String::new() }
}

fn give_way() -> Command {
    Command::GiveWay { to: "v0".to_owned(), actor: "ops".to_owned(), reason: String::new() }
}

/// Ticks a minute apart.
#[track_caller]
fn after(release: &Release, minutes: u64, observed: &Observed) -> Release {
    let mut release = release.clone();
    for _ in 0..minutes {
        let now = release.now + MINUTE;
        release = release.step(Event::Tick(observed.clone()), now).unwrap().0;
    }
    release
}

#[track_caller]
fn told(release: &Release, command: Command) -> Release {
    release.step(say(command), release.now).unwrap().0
}

/// At so many percent, with nothing against it.
fn at(percent: u32, plan: Plan) -> Release {
    let mut release = release(plan);
    while release.buckets() < percent * 1_000 {
        release = after(&release, 1, &well());
    }
    release
}

#[test]
fn a_good_version_goes_up_step_by_step() {
    let mut release = release(plan());
    let mut shares = vec![];
    for _ in 0..60 {
        release = after(&release, 1, &well());
        shares.push(release.buckets());
    }
    shares.dedup();
    assert_eq!(shares, [1_000, 10_000, 50_000, ALL, 0]);
    assert_eq!(release.phase, Phase::Promoted);
    assert_eq!(release.exposure().stable, "v2");
    assert_eq!(release.now / MINUTE, 60);
}

#[test]
fn each_change_of_the_split_is_an_epoch() {
    let mut release = release(plan());
    let mut exposures = vec![release.exposure()];
    while !release.phase.is_final() {
        let (next, effects) = release.step(Event::Tick(well()), release.now + MINUTE).unwrap();
        let exposed: Vec<_> = effects.iter().filter(|effect| matches!(effect, Effect::Expose(_))).collect();
        assert_eq!(exposed.len() as u32, next.epoch - release.epoch);
        if next.epoch > release.epoch {
            assert_eq!(exposed, [&Effect::Expose(next.exposure())]);
            exposures.push(next.exposure());
        }
        release = next;
    }
    assert_eq!(exposures.iter().map(|e| e.step).collect::<Vec<_>>(), [0, 0, 1, 2, 3, 4, 9]);
}

#[test]
fn it_goes_on_only_with_enough_time_and_requests() {
    let one = at(1, plan());
    assert_eq!(after(&one, 4, &well()).phase, Phase::Step { index: 0 });
    assert_eq!(after(&one, 5, &well()).phase, Phase::Step { index: 1 });
    // Traffic has gone: it waits, and is not promoted for want of bad news.
    let quiet = Observed { requests: 99, ..well() };
    assert_eq!(after(&one, 500, &quiet).phase, Phase::Step { index: 0 });
    let baking = after(&at(100, plan()), 5, &well());
    assert_eq!(baking.phase, Phase::Bake);
    assert_eq!(after(&baking, 500, &quiet).phase, Phase::Bake);
}

#[test]
fn a_worse_version_goes_back_from_any_step() {
    for percent in [1, 10, 50, 100] {
        let before = at(percent, plan());
        let (release, effects) = before.step(Event::Tick(bad()), before.now + MINUTE).unwrap();
        assert_eq!(release.phase, Phase::Verifying);
        assert_eq!((release.buckets(), release.exposure().stable.as_str()), (0, "v1"));
        assert!(effects.contains(&Effect::Veto));
        assert_eq!(release.cause, Some(Cause::Regressed { metric: "error_rate".to_owned() }));
    }
}

#[test]
fn a_dead_version_goes_back_at_once_even_if_the_plan_is_gradual() {
    let plan = Plan { on_critical: Way::Gradual, on_regressed: Way::Gradual, ..plan() };
    let dead = Observed { hard_stop: Some("no endpoint".to_owned()), ..bad() };
    let release = after(&at(50, plan), 1, &dead);
    assert_eq!(release.phase, Phase::Verifying);
    assert_eq!(release.cause, Some(Cause::HardStop { reason: "no endpoint".to_owned() }));
}

#[test]
fn what_hits_both_is_nobodys_fault() {
    let trouble = Observed { stable_in_trouble: true, critical: Some("errors".to_owned()), ..bad() };
    let broken = Observed { stable_ready: false, hard_stop: Some("down".to_owned()), ..bad() };
    for both in [trouble, broken] {
        let before = at(10, plan());
        let during = after(&before, 60, &both);
        assert_eq!((during.phase, during.buckets()), (before.phase, before.buckets()));
        assert!(during.holds.contains_key(&Hold::Incident));
        let afterwards = after(&during, 1, &well());
        assert!(afterwards.holds.is_empty());
        assert_eq!(afterwards.phase, before.phase, "the time of the incident does not count");
        assert_eq!(
            after(&during, 1, &bad()).phase,
            Phase::Verifying,
            "it is over, and the canary is still bad"
        );
    }
}

#[test]
fn stable_alone_in_trouble_freezes_every_phase_until_it_has_recovered() {
    let trouble = Observed {
        stable_in_trouble: true,
        trouble: Some("the trigger error_rate > 20% over 30 s".to_owned()),
        ..well()
    };
    let gradual = told(&at(100, plan()), back(Way::Gradual));
    let baking = after(&at(100, plan()), 5, &well());
    let stages = [release(plan()), at(1, plan()), at(50, plan()), baking, gradual];
    for before in stages {
        let (during, effects) = before.step(Event::Tick(trouble.clone()), before.now + MINUTE).unwrap();
        let text = "v2 is held up: incident: v1 is in trouble (the trigger error_rate > 20% over 30 s)";
        assert_eq!(effects, [Effect::tell(Severity::Critical, text)], "{}", before.phase);
        let during = after(&during, 60, &trouble);
        assert_eq!((during.phase, during.buckets()), (before.phase, before.buckets()));
        let afterwards = after(&during, 1, &well());
        assert!(!afterwards.holds.contains_key(&Hold::Incident), "{}", before.phase);
        assert_eq!(told(&during, back(Way::Instant)).phase, Phase::Verifying, "an operator may");
    }
    // After it all it has to be told, but not waited for.
    let verifying = told(&at(10, plan()), back(Way::Instant));
    let (during, effects) = verifying.step(Event::Tick(trouble), verifying.now + MINUTE).unwrap();
    assert!(during.holds.contains_key(&Hold::Incident) && effects.len() == 1, "{effects:?}");
}

#[test]
fn what_is_not_known_is_not_good() {
    let unsettled = Observed { unsettled: true, ..well() };
    let waits = after(&at(10, plan()), 60, &unsettled);
    assert_eq!((waits.phase, waits.holds.is_empty()), (Phase::Step { index: 1 }, true));
    assert_eq!(after(&waits, 1, &well()).phase, Phase::Step { index: 2 }, "its time has passed meanwhile");

    let before = at(10, plan());
    let unknown = Observed { provider_error: Some("queue: refused".to_owned()), ..well() };
    let (held, effects) = before.step(Event::Tick(unknown.clone()), before.now + MINUTE).unwrap();
    let text = "v2 is held up: a source of metrics does not answer (queue: refused)";
    assert_eq!(effects, [Effect::tell(Severity::Warning, text)]);
    let held = after(&held, 60, &unknown);
    assert_eq!(after(&held, 4, &well()).phase, Phase::Step { index: 1 }, "its time did not count");
    let late = Plan { max_age: Duration::from_secs(1_800), ..plan() };
    assert_eq!(after(&at(10, late), 60, &unknown).cause, Some(Cause::Expired), "not for ever");
    let worse = Observed { regressed: Some("error_rate".to_owned()), ..unknown };
    assert_eq!(after(&held, 1, &worse).phase, Phase::Verifying, "what is known counts");
}

#[test]
fn what_has_to_be_proven_is_before_there_is_nothing_to_compare() {
    let unproven = Observed { unproven: Some("error_rate".to_owned()), ..well() };
    let waits = after(&release(plan()), 120, &unproven);
    assert_eq!(waits.phase, Phase::Step { index: 2 });
    assert_eq!(waits.holds.keys().collect::<Vec<_>>(), [&Hold::Proof]);
    assert_eq!(after(&waits, 1, &well()).phase, Phase::Step { index: 3 });
    // A plan that never compares with more than this.
    let baking = after(&at(100, plan()), 5, &well());
    assert_eq!(after(&baking, 30, &unproven).phase, Phase::Promoted, "it was proven before");
}

#[test]
fn a_comparison_that_does_not_hold_is_no_verdict() {
    for what in [
        Observed { imbalance: true, ..bad() },
        Observed { provider_error: Some("queue: down".to_owned()), ..well() },
        Observed { warning: Some("slow".to_owned()), ..well() },
    ] {
        let release = after(&at(10, plan()), 60, &what);
        assert_eq!(release.phase, Phase::Step { index: 1 }, "{what:?}");
        assert_eq!(release.holds.len(), 1);
    }
}

#[test]
fn nothing_gets_more_while_what_is_decided_can_not_be_written_down() {
    let unkept = Observed { unkept: true, ..well() };
    for before in [release(plan()), at(10, plan()), at(100, plan())] {
        let during = after(&before, 60, &unkept);
        assert_eq!((during.phase, during.clean), (before.phase, before.clean));
        assert_eq!(during.holds.keys().collect::<Vec<_>>(), [&Hold::Unkept]);
        assert_eq!(after(&during, 5, &Observed { requests: 1_000, ..well() }).holds.len(), 0);
    }
    let bad = Observed { unkept: true, ..bad() };
    assert_eq!(after(&at(10, plan()), 1, &bad).phase, Phase::Verifying, "but what is bad goes back");
    let gradual = after(&at(100, Plan { on_regressed: Way::Gradual, ..plan() }), 4, &bad);
    assert_eq!((gradual.phase, gradual.buckets()), (Phase::Verifying, 0), "gradually too");
}

#[test]
fn what_has_gone_back_is_ahead_of_all_that_has_not() {
    let step = at(10, plan());
    let further = after(&step, 5, &well());
    let (back, off) = (told(&step, back(Way::Instant)), told(&step, Command::Abort));
    let promoted = told(&further, Command::Promote);
    assert!(further.is_ahead_of(&step) && !step.is_ahead_of(&further) && !step.is_ahead_of(&step));
    for over in [&back, &off] {
        // Each knows nothing of the other one's decision, and both have the same number.
        assert_eq!(over.epoch, further.epoch);
        assert!(over.is_ahead_of(&further) && !further.is_ahead_of(over));
        assert!(over.is_ahead_of(&promoted) && !promoted.is_ahead_of(over));
    }
    assert!(promoted.is_ahead_of(&further));
}

#[test]
fn a_pause_by_a_trigger_lasts_until_somebody_ends_it() {
    let warned = after(&at(10, plan()), 1, &Observed { warning: Some("slow".to_owned()), ..well() });
    let later = after(&warned, 60, &well());
    assert_eq!(later.phase, Phase::Step { index: 1 });
    assert_eq!(after(&told(&later, Command::Resume), 5, &well()).phase, Phase::Step { index: 2 });
}

#[test]
fn approvals_and_windows_hold_a_step_back_but_not_its_clock() {
    let mut plan = plan();
    plan.steps[1].approval = true;
    let waiting = after(&at(1, plan), 60, &well());
    assert_eq!(waiting.phase, Phase::Step { index: 0 });
    assert!(waiting.holds.contains_key(&Hold::Approval));
    let approved = told(&waiting, Command::Approve);
    let closed = after(&approved, 60, &Observed { window_open: false, ..well() });
    assert_eq!(closed.phase, Phase::Step { index: 0 });
    assert_eq!(closed.holds.keys().collect::<Vec<_>>(), [&Hold::Window]);
    assert_eq!(after(&closed, 1, &well()).phase, Phase::Step { index: 1 });
    assert_eq!(after(&waiting, 1, &bad()).phase, Phase::Verifying, "it is watched meanwhile");
}

#[test]
fn it_waits_for_the_canary() {
    let waiting = after(&release(plan()), 60, &Observed { canary_ready: false, ..bad() });
    assert_eq!((waiting.phase, waiting.buckets()), (Phase::Waiting, 0));
    assert!(waiting.holds.contains_key(&Hold::NotReady));
    assert_eq!(after(&waiting, 1, &well()).buckets(), 1_000);
    let down = Observed { canary_ready: false, ..well() };
    assert_eq!(after(&at(1, plan()), 60, &down).buckets(), 1_000, "and does not go on with one that is down");
}

#[test]
fn what_does_not_end_in_time_goes_back_or_asks() {
    let max_age = Duration::from_secs(600);
    let quiet = Observed { requests: 0, ..well() };
    let back = after(&release(Plan { max_age, ..plan() }), 10, &quiet);
    assert_eq!((back.phase, back.cause), (Phase::Verifying, Some(Cause::Expired)));

    let asks = after(&release(Plan { max_age, on_expiry: OnExpiry::Ask, ..plan() }), 30, &quiet);
    assert_eq!((asks.phase, asks.buckets()), (Phase::Step { index: 0 }, 1_000));
    assert!(asks.holds.contains_key(&Hold::Expired));
    let longer = after(&told(&asks, Command::Resume), 5, &well());
    assert!(!longer.holds.contains_key(&Hold::Expired));
    assert_eq!(longer.buckets(), 10_000);
}

#[test]
fn one_that_only_took_too_long_may_come_again() {
    let late = at(1, Plan { max_age: Duration::from_secs(600), ..plan() });
    let (late, effects) = late.step(Event::Tick(well()), 10 * MINUTE).unwrap();
    assert_eq!(late.cause, Some(Cause::Expired));
    assert!(!effects.contains(&Effect::Veto));
}

#[test]
fn a_gradual_retreat_skips_what_is_not_lower() {
    let plan = Plan { on_regressed: Way::Gradual, ..plan() };
    for (from, expected) in
        [(100, &[50_000, 20_000, 5_000, 0][..]), (50, &[20_000, 5_000, 0]), (10, &[5_000, 0]), (1, &[0])]
    {
        let mut release = at(from, plan.clone());
        let mut shares = vec![];
        while release.phase != Phase::RolledBack {
            release = after(&release, 1, &Observed { recovered: Some(true), ..bad() });
            shares.push(release.buckets());
        }
        shares.dedup();
        assert_eq!(shares, expected);
    }
}

#[test]
fn the_veto_comes_with_the_last_of_the_traffic() {
    let mut release = at(50, Plan { on_regressed: Way::Gradual, ..plan() });
    loop {
        let (next, effects) = release.step(Event::Tick(bad()), release.now + MINUTE).unwrap();
        assert_eq!(effects.contains(&Effect::Veto), next.buckets() == 0);
        release = next;
        if release.phase == Phase::Verifying {
            return;
        }
    }
}

#[test]
fn a_retreat_hurries_when_it_gets_worse_and_waits_when_stable_does() {
    let retreating = after(&at(50, Plan { on_regressed: Way::Gradual, ..plan() }), 1, &bad());
    assert_eq!(retreating.buckets(), 20_000);
    assert_eq!(after(&retreating, 0, &bad()).buckets(), 20_000);
    let worse = Observed { critical: Some("errors".to_owned()), ..bad() };
    assert_eq!(after(&retreating, 1, &worse).phase, Phase::Verifying);
    let both = Observed { stable_in_trouble: true, ..worse };
    let waiting = after(&retreating, 60, &both);
    assert_eq!(waiting.buckets(), 20_000);
    assert!(waiting.holds.contains_key(&Hold::Incident));
    assert_eq!(told(&waiting, back(Way::Instant)).phase, Phase::Verifying);
}

#[test]
fn stable_is_looked_at_afterwards() {
    let back = after(&at(10, plan()), 1, &bad());
    for (recovered, minutes, expected) in [
        (Some(true), 1, Phase::RolledBack),
        (Some(false), 4, Phase::Verifying),
        (Some(false), 5, Phase::VerifyFailed),
        (None, 4, Phase::Verifying),
        (None, 5, Phase::RolledBack),
    ] {
        let release = after(&back, minutes, &Observed { recovered, ..well() });
        assert_eq!(release.phase, expected, "{recovered:?} after {minutes}");
    }
}

#[test]
fn commands_and_where_they_are_refused() {
    let stages = || {
        let step = at(10, plan());
        let retreat = told(&step, back(Way::Gradual));
        let verifying = told(&step, back(Way::Instant));
        let baking = after(&at(100, plan()), 5, &well());
        let done = told(&step, Command::Promote);
        [release(plan()), step, baking, retreat, verifying, done]
    };
    let table: [(Command, [Option<Phase>; 6]); 6] = {
        use Phase::{Aborted, Bake, Promoted, Retreat, Step, Verifying, Waiting};
        let step = Step { index: 1 };
        let retreat = Retreat { index: 2 };
        [
            (Command::Pause, [Some(Waiting), Some(step), Some(Bake), Some(retreat), None, None]),
            (Command::Approve, [None; 6]),
            (Command::Resume, [None; 6]),
            (Command::Promote, [Some(Promoted), Some(Promoted), Some(Promoted), None, None, None]),
            (Command::Abort, [Some(Aborted), Some(Aborted), Some(Aborted), None, None, None]),
            (
                back(Way::Instant),
                [Some(Verifying), Some(Verifying), Some(Verifying), Some(Verifying), None, None],
            ),
        ]
    };
    for (command, expected) in table {
        for (stage, expected) in stages().iter().zip(expected) {
            let outcome = stage.step(say(command.clone()), stage.now);
            let phase = outcome.as_ref().ok().map(|(release, _)| release.phase);
            assert_eq!(phase, expected, "{command:?} in {}: {outcome:?}", stage.phase);
        }
    }
}

/// In each phase with everything that may hold it up, stable ready or not.
#[test]
fn it_can_be_called_off_whatever_holds_it_up_until_it_goes_back() {
    const HOLDS: [Hold; 9] = [
        Hold::Paused,
        Hold::Approval,
        Hold::Incident,
        Hold::Imbalance,
        Hold::Provider,
        Hold::Unkept,
        Hold::Window,
        Hold::NotReady,
        Hold::Expired,
    ];
    let step = at(10, plan());
    let baking = after(&at(100, plan()), 5, &well());
    let (retreat, verifying) = (told(&step, back(Way::Gradual)), told(&step, back(Way::Instant)));
    let pointless = || Err(Refused::Pointless("the version is being sent back"));
    for held in HOLDS.map(Some).into_iter().chain([None]) {
        for (stage, stable_ready, expected) in [
            (release(plan()), true, Ok(Phase::Aborted)),
            (release(plan()), false, Ok(Phase::Aborted)),
            (at(1, plan()), true, Ok(Phase::Aborted)),
            (step.clone(), true, Ok(Phase::Aborted)),
            (step.clone(), false, Err(Refused::StableNotReady)),
            (baking.clone(), true, Ok(Phase::Aborted)),
            (baking.clone(), false, Err(Refused::StableNotReady)),
            (retreat.clone(), true, pointless()),
            (verifying.clone(), true, pointless()),
            (told(&step, Command::Abort), true, Err(Refused::Finished(Phase::Aborted))),
            (told(&step, Command::Promote), true, Err(Refused::Finished(Phase::Promoted))),
        ] {
            let mut stage = stage;
            stage.holds.extend(held.map(|hold| (hold, 0)));
            let event = Event::Command { command: Command::Abort, stable_ready, canary_ready: false };
            let outcome = stage.step(event, stage.now);
            let phase = outcome.as_ref().map(|(release, _)| release.phase).map_err(Clone::clone);
            assert_eq!(phase, expected, "{} with {held:?}", stage.phase);
            let Ok((off, effects)) = outcome else { continue };
            assert_eq!((off.buckets(), off.exposure().stable.as_str()), (0, "v1"));
            assert!(off.holds.is_empty() && off.cause.is_none());
            assert!(effects.contains(&Effect::Account) && !effects.contains(&Effect::Veto));
        }
    }
}

#[test]
fn it_gives_way_to_a_third_version_at_once_and_with_its_veto() {
    let step = at(10, plan());
    let stages = [
        (release(plan()), Phase::Aborted, false),
        (step.clone(), Phase::RolledBack, true),
        (after(&at(100, plan()), 5, &well()), Phase::RolledBack, true),
        (told(&step, back(Way::Gradual)), Phase::RolledBack, true),
        (told(&step, back(Way::Instant)), Phase::RolledBack, true),
    ];
    for (stage, expected, vetoed) in stages {
        let (ended, effects) = stage.step(say(give_way()), stage.now).unwrap();
        assert_eq!((ended.phase, ended.buckets()), (expected, 0), "in {}", stage.phase);
        assert_eq!(effects.contains(&Effect::Veto), vetoed, "in {}", stage.phase);
        assert!(effects.contains(&Effect::Account));
        assert!(ended.step(say(give_way()), ended.now).is_err(), "final is final");
    }
    let back = told(&step, back(Way::Instant));
    let (_, effects) = back.step(say(give_way()), back.now).unwrap();
    let text = |effect: &Effect| matches!(effect, Effect::Tell(told) if told.text.contains("before v1 was verified"));
    assert!(effects.iter().any(text), "{effects:?}");
}

#[test]
fn nothing_goes_on_during_a_freeze_and_everything_goes_back() {
    let frozen = Observed { frozen: true, ..well() };
    let waiting = after(&release(plan()), 60, &frozen);
    assert_eq!((waiting.phase, waiting.buckets()), (Phase::Waiting, 0));
    let step = after(&at(1, plan()), 60, &frozen);
    assert_eq!(step.phase, Phase::Step { index: 0 });
    assert_eq!(step.holds.keys().collect::<Vec<_>>(), [&Hold::Freeze]);
    let thawed = after(&step, 4, &well());
    assert_eq!(thawed.phase, Phase::Step { index: 0 }, "its time does not count for the step");
    assert_eq!(after(&thawed, 1, &well()).phase, Phase::Step { index: 1 });
    let baked = after(&after(&at(100, plan()), 5, &well()), 60, &frozen);
    assert_eq!(baked.phase, Phase::Bake, "nor is anything promoted");

    assert_eq!(after(&step, 1, &Observed { frozen: true, ..bad() }).phase, Phase::Verifying);
    assert_eq!(told(&step, Command::Abort).phase, Phase::Aborted);
    let retreating = told(&at(100, plan()), back(Way::Gradual));
    assert_eq!(after(&retreating, 60, &frozen).buckets(), 0, "a retreat goes on");
    let old = after(&at(1, Plan { max_age: Duration::from_secs(600), ..plan() }), 10, &frozen);
    assert_eq!(old.cause, Some(Cause::Expired), "but its age counts");
}

#[test]
fn nobody_is_sent_to_a_version_that_cannot_serve() {
    let step = at(10, plan());
    let refused = |command, stable_ready, canary_ready| {
        step.step(Event::Command { command, stable_ready, canary_ready }, step.now).unwrap_err()
    };
    assert_eq!(refused(back(Way::Instant), false, true), Refused::StableNotReady);
    assert_eq!(refused(Command::Abort, false, true), Refused::StableNotReady);
    assert_eq!(refused(Command::Promote, true, false), Refused::CanaryNotReady);
}

#[test]
fn time_does_not_go_back() {
    let step = at(10, plan());
    let (later, _) = step.step(Event::Tick(well()), 0).unwrap();
    assert_eq!((later.now, later.phase), (step.now, step.phase));
}

fn observed() -> impl Strategy<Value = Observed> {
    let rarely = || prop::bool::weighted(0.05);
    let text = || prop::option::weighted(0.05, Just("x".to_owned()));
    (
        (prop::bool::weighted(0.95), prop::bool::weighted(0.95), prop::bool::weighted(0.9)),
        (text(), text(), text(), text()),
        (rarely(), rarely(), rarely(), rarely(), rarely(), rarely()),
        0_u64..300,
        prop::option::of(any::<bool>()),
    )
        .prop_map(|(ready, texts, flags, requests, recovered)| Observed {
            canary_ready: ready.0,
            stable_ready: ready.1,
            window_open: ready.2,
            hard_stop: texts.0,
            regressed: texts.1,
            critical: texts.2,
            warning: texts.3,
            stable_in_trouble: flags.0,
            imbalance: flags.1,
            unkept: flags.3,
            provider_error: flags.2.then(|| "queue: down".to_owned()),
            unsettled: flags.4,
            unproven: flags.4.then(|| "latency".to_owned()),
            frozen: flags.5,
            requests,
            recovered,
            ..Observed::default()
        })
}

fn event() -> impl Strategy<Value = Event> {
    let command = prop_oneof![
        Just(Command::Pause),
        Just(Command::Resume),
        Just(Command::Approve),
        Just(Command::Promote),
        Just(Command::Abort),
        Just(back(Way::Instant)),
        Just(back(Way::Gradual)),
        Just(give_way()),
    ];
    let command = (command, prop::bool::weighted(0.9), prop::bool::weighted(0.9)).prop_map(
        |(command, stable_ready, canary_ready)| Event::Command { command, stable_ready, canary_ready },
    );
    prop_oneof![20 => observed().prop_map(Event::Tick), 1 => command]
}

fn plans() -> impl Strategy<Value = Plan> {
    let way = || prop_oneof![Just(Way::Instant), Just(Way::Gradual)];
    (any::<bool>(), way(), way(), any::<bool>()).prop_map(|(approval, on_critical, on_regressed, ask)| {
        let mut plan = Plan { on_critical, on_regressed, max_age: Duration::from_secs(6_000), ..plan() };
        plan.steps[2].approval = approval;
        plan.on_expiry = if ask { OnExpiry::Ask } else { OnExpiry::Rollback };
        plan
    })
}

proptest! {
    #[test]
    fn whatever_happens(plan in plans(), events in prop::collection::vec((event(), 0_u64..200_000), 1..200)) {
        let mut release = release(plan);
        let mut earned = vec![false; release.plan.steps.len() + 1];
        for (event, later) in events {
            let before = release.clone();
            let was = event.clone();
            let Ok((next, effects)) = release.step(event, release.now + later) else { continue };
            // Final is final.
            if before.phase.is_final() {
                prop_assert_eq!(next.phase, before.phase);
                prop_assert!(effects.is_empty());
            }
            // All that the canary does not get is stable's; nobody else is in it.
            let exposure = next.exposure();
            prop_assert!(exposure.buckets <= ALL);
            prop_assert!([&next.stable, &next.canary].contains(&&exposure.stable));
            let [first, last] = [0, ALL - 1].map(|bucket| Place { bucket, hash: 0 }.is_within(exposure.buckets));
            prop_assert_eq!((first, last), (exposure.buckets > 0, exposure.buckets == ALL));
            prop_assert_eq!(next.given() == ALL, last || exposure.stable == next.canary);
            // Whoever knows less never takes it back.
            prop_assert!(!before.is_ahead_of(&next));
            // What goes back does not come again.
            if before.phase.is_back() {
                prop_assert!(next.phase.is_back());
                prop_assert!(next.buckets() <= before.buckets());
            }
            // A share grows only by steps that were earned, or because somebody said so.
            let index = match before.phase { Phase::Step { index } => Some(index), Phase::Bake => Some(earned.len() - 1), _ => None };
            if let (Some(index), Event::Tick(observed)) = (index, &was) {
                let plan = &before.plan;
                let (hold, least) = plan.steps.get(index).map_or((plan.bake, plan.steps[3].min_requests), |step| (step.hold, step.min_requests));
                let clean = next.phase != before.phase && before.clean + later >= hold.as_millis() as u64;
                if clean && observed.requests >= least { earned[index] = true; }
                if next.buckets() > before.buckets() || next.phase == Phase::Promoted {
                    prop_assert!(earned[index], "{} -> {}", before.phase, next.phase);
                    prop_assert!(observed.regressed.is_none() && observed.critical.is_none() && observed.hard_stop.is_none());
                    prop_assert!(!before.holds.contains_key(&Hold::Paused) && !observed.unkept);
                    // Neither in an incident, nor on what is not known, nor in a freeze.
                    prop_assert!(!observed.stable_in_trouble && observed.stable_ready && !observed.frozen);
                    prop_assert!(observed.provider_error.is_none() && !observed.unsettled);
                }
            }
            // Until it has ended a rollback is possible, and leaves nothing with the canary.
            if !matches!(next.phase, Phase::Verifying) && !next.phase.is_final() {
                let (back, effects) = next.step(say(back(Way::Instant)), next.now).unwrap();
                prop_assert_eq!(back.buckets(), 0);
                prop_assert_eq!(&back.exposure().stable, &back.stable);
                prop_assert!(effects.contains(&Effect::Veto));
            }
            release = next;
        }
    }
}
