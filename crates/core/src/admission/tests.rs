use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn fixed(limit: u32, queue: u32) -> Admission {
    Admission::new(Some(&AdmissionSpec { limit: AdmissionLimit::Fixed(limit), queue }))
}

/// Requests by name, so that tables can be read: `a1` is one of tenant `a`.
struct Gate {
    admission: Admission,
    names: BTreeMap<Ticket, String>,
}

impl Gate {
    fn new(limit: u32, queue: u32) -> Self {
        Self { admission: fixed(limit, queue), names: BTreeMap::new() }
    }

    /// `in`, `waits`, `full`, or who had to go.
    fn enter(&mut self, name: &str, priority: Priority) -> String {
        match self.admission.enter(&tenant(name), priority) {
            Entry::Admitted => "in".to_owned(),
            Entry::Rejected => "full".to_owned(),
            Entry::Waiting { ticket, displaced } => {
                self.names.insert(ticket, name.to_owned());
                displaced.map_or("waits".to_owned(), |ticket| format!("for {}", self.names[&ticket]))
            }
        }
    }

    /// A request ends; who comes in for it.
    fn leave(&mut self, name: &str) -> String {
        self.admission.leave(&tenant(name), Some(Duration::from_secs(2)));
        self.admitted()
    }

    fn admitted(&mut self) -> String {
        let next = std::iter::from_fn(|| self.admission.admit_next());
        next.map(|ticket| self.names[&ticket].clone()).collect::<Vec<_>>().join(" ")
    }

    fn cancel(&mut self, name: &str) -> bool {
        let ticket = *self.names.iter().find(|(_, other)| *other == name).expect("it waited").0;
        self.admission.cancel(ticket)
    }
}

fn tenant(name: &str) -> Arc<str> {
    name[..1].into()
}

use Priority::{High, Low, Normal};

#[test]
fn first_come_first_served() {
    let mut gate = Gate::new(1, 2);
    assert_eq!(
        ["a1", "a2", "a3", "a4"].map(|name| gate.enter(name, Normal)),
        ["in", "waits", "waits", "full"]
    );
    assert_eq!([gate.leave("a1"), gate.leave("a2"), gate.leave("a3")], ["a2", "a3", ""]);
    assert_eq!(gate.enter("a5", Normal), "in");
}

#[test]
fn higher_priority_first() {
    let mut gate = Gate::new(1, 9);
    gate.enter("a0", Normal);
    for (name, priority) in [("a1", Low), ("a2", Normal), ("b3", High), ("a4", High)] {
        assert_eq!(gate.enter(name, priority), "waits");
    }
    assert_eq!(["a0", "b3", "a4", "a2"].map(|name| gate.leave(name)), ["b3", "a4", "a2", "a1"]);
}

#[test]
fn within_a_priority_the_tenant_with_the_fewest_in_flight() {
    let mut gate = Gate::new(3, 9);
    for name in ["a1", "a2", "a3", "a4", "a5", "b1", "b2", "c1"] {
        gate.enter(name, Normal);
    }
    // b and c have none; b came first. Then c, then b has one against a's one, and a's waited longer.
    assert_eq!(["a1", "a2", "a3", "b1"].map(|name| gate.leave(name)), ["b1", "c1", "a4", "b2"]);
}

#[test]
fn a_full_queue_displaces_whoever_has_less_right() {
    let mut gate = Gate::new(1, 4);
    gate.enter("a0", Normal);
    for (name, priority) in [("a1", Normal), ("a2", Normal), ("a3", Normal), ("b1", Low)] {
        gate.enter(name, priority);
    }
    for (name, priority, expected) in [
        ("c1", Low, "full"),
        // The lowest priority first, even another tenant's only one.
        ("a4", Normal, "for b1"),
        // Not for itself, and nobody of a higher priority.
        ("a5", Normal, "full"),
        ("c1", Low, "full"),
        // The newest of the tenant with the most, as long as that makes it fairer.
        ("b2", Normal, "for a4"),
        ("b3", Normal, "for a3"),
        ("b4", Normal, "full"),
        ("c2", Normal, "for b3"),
        ("c3", Normal, "full"),
        ("c4", High, "for a2"),
        ("c5", High, "for c2"),
    ] {
        assert_eq!(gate.enter(name, priority), expected, "{name}");
        assert!(gate.admission.waiting() <= 4);
    }
    assert_eq!(["a0", "c4", "c5", "a1"].map(|name| gate.leave(name)), ["c4", "c5", "a1", "b2"]);
}

#[test]
fn whoever_leaves_the_queue_is_gone_at_once() {
    let mut gate = Gate::new(1, 2);
    for name in ["a0", "a1", "a2"] {
        gate.enter(name, Normal);
    }
    assert!(gate.cancel("a1"));
    assert!(!gate.cancel("a1"), "only once");
    assert_eq!(gate.enter("a3", Normal), "waits");
    assert_eq!(gate.leave("a0"), "a2");
    assert!(!gate.cancel("a2"), "it is in");
}

#[test]
fn without_a_queue_nobody_waits() {
    let mut gate = Gate::new(2, 0);
    assert_eq!(["a1", "a2", "b1"].map(|name| gate.enter(name, High)), ["in", "in", "full"]);
    assert!(!gate.admission.try_enter(&tenant("c")));
    gate.leave("a1");
    assert!(gate.admission.try_enter(&tenant("c")));
}

#[test]
fn settings_change_under_load() {
    let mut gate = Gate::new(4, 4);
    for name in ["a1", "a2", "a3", "a4", "a5", "a6"] {
        gate.enter(name, Normal);
    }
    // Fewer than there are: nobody is thrown out, and nobody comes in before there is room.
    gate.admission.configure(Some(&AdmissionSpec { limit: AdmissionLimit::Fixed(2), queue: 1 }));
    assert_eq!((gate.admission.in_flight(), gate.admission.waiting()), (4, 2));
    assert_eq!(gate.enter("a7", Normal), "full");
    assert_eq!(["a1", "a2", "a3"].map(|name| gate.leave(name)), ["", "", "a5"]);
    gate.admission.configure(Some(&AdmissionSpec { limit: AdmissionLimit::Fixed(5), queue: 1 }));
    assert_eq!(gate.admitted(), "a6");
    for name in ["a8", "a9", "b1"] {
        gate.enter(name, Normal);
    }
    assert_eq!(gate.admission.waiting(), 1);
    // Without admission everybody goes on.
    gate.admission.configure(None);
    assert_eq!((gate.admitted(), gate.admission.limit()), ("b1".to_owned(), None));
    gate.admission.configure(Some(&AdmissionSpec { limit: AdmissionLimit::Adaptive { max: 8 }, queue: 1 }));
    assert_eq!((gate.admission.limit(), gate.admission.in_flight()), (Some(8), 6), "still known");
}

#[test]
fn when_to_come_back() {
    let mut gate = Gate::new(4, 100);
    assert_eq!(gate.admission.retry_after(), Duration::from_secs(1));
    for i in 0..44 {
        gate.enter(&format!("a{i}"), Normal);
    }
    // Two seconds each, four at a time, forty and one more.
    gate.admission.leave(&tenant("a"), Some(Duration::from_secs(2)));
    gate.admitted();
    assert_eq!(gate.admission.retry_after(), Duration::from_secs(20));
    for _ in 0..50 {
        gate.admission.leave(&tenant("a"), Some(Duration::from_secs(600)));
    }
    assert_eq!(gate.admission.retry_after(), Duration::from_secs(60));
}

#[test]
fn priorities_by_name() {
    for (text, expected) in [
        ("high", High),
        ("Low", Low),
        ("normal", Normal),
        ("urgent", Normal),
        ("", Normal),
        ("hi\u{e9}gh", Normal),
    ] {
        assert_eq!(Priority::from_text(text), expected);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Enter(u8, Priority),
    TryEnter(u8),
    /// One of those in flight ends.
    Leave(prop::sample::Index),
    /// One of those who ever got a ticket gives up.
    Cancel(prop::sample::Index),
    Configure(Option<(u32, u32)>),
    Adapt(u32),
    Answer(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let priority = prop::sample::select(vec![High, Normal, Low]);
    prop_oneof![
        8 => (0_u8..4, priority).prop_map(|(tenant, priority)| Step::Enter(tenant, priority)),
        1 => (0_u8..4).prop_map(Step::TryEnter),
        4 => any::<prop::sample::Index>().prop_map(Step::Leave),
        2 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        1 => prop::option::of((1_u32..8, 0_u32..8)).prop_map(Step::Configure),
        1 => (1_u32..8).prop_map(Step::Adapt),
        1 => (1_u64..5000).prop_map(Step::Answer),
    ]
}

/// What each request has come to, kept beside the code under test.
#[derive(Default)]
struct Ledger {
    waiting: BTreeMap<Ticket, (Priority, u8)>,
    tickets: Vec<Ticket>,
    in_flight: Vec<u8>,
}

impl Ledger {
    fn in_flight_of(&self, tenant: u8) -> usize {
        self.in_flight.iter().filter(|other| **other == tenant).count()
    }

    /// Takes in who is admitted, and checks that it was their turn.
    fn admit(&mut self, admission: &mut Admission) -> Result<(), TestCaseError> {
        while let Some(ticket) = admission.admit_next() {
            let (priority, tenant) = self.waiting.remove(&ticket).expect("only those who wait come in");
            let before = admission.in_flight() - 1;
            prop_assert!(admission.limit().is_none_or(|limit| before < limit), "there was room");
            prop_assert!(self.waiting.values().all(|(other, _)| *other >= priority), "nobody above waits");
            let own = self.in_flight_of(tenant);
            for (other, (class, who)) in &self.waiting {
                let theirs = self.in_flight_of(*who);
                prop_assert!(*class > priority || own < theirs || (own == theirs && ticket < *other));
            }
            self.in_flight.push(tenant);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// However requests come, end and give up, and however the settings change: never more in flight than allowed,
    /// nobody waits while there is room, nobody is lost, and it is always the right one's turn.
    #[test]
    fn everybody_is_accounted_for(steps in prop::collection::vec(step(), 1..200)) {
        let names: Vec<Arc<str>> = ["a", "b", "c", "d"].map(Arc::from).into();
        let mut admission = fixed(3, 4);
        let mut ledger = Ledger::default();
        let mut now = Instant::now();
        for step in steps {
            let room = admission.has_room();
            match step {
                Step::Enter(tenant, priority) => match admission.enter(&names[tenant as usize], priority) {
                    Entry::Admitted => {
                        prop_assert!(room);
                        ledger.in_flight.push(tenant);
                    }
                    Entry::Waiting { ticket, displaced } => {
                        prop_assert!(!room);
                        if let Some(displaced) = displaced {
                            let (class, _) = ledger.waiting.remove(&displaced).expect("it waited");
                            prop_assert!(class >= priority);
                        }
                        ledger.waiting.insert(ticket, (priority, tenant));
                        ledger.tickets.push(ticket);
                    }
                    Entry::Rejected => prop_assert!(!room && admission.waiting() >= admission.queue),
                },
                Step::TryEnter(tenant) => {
                    let admitted = admission.try_enter(&names[tenant as usize]);
                    prop_assert_eq!(admitted, room);
                    if admitted {
                        ledger.in_flight.push(tenant);
                    }
                }
                Step::Leave(which) if !ledger.in_flight.is_empty() => {
                    let tenant = ledger.in_flight.swap_remove(which.index(ledger.in_flight.len()));
                    admission.leave(&names[tenant as usize], Some(Duration::from_millis(100)));
                }
                Step::Cancel(which) if !ledger.tickets.is_empty() => {
                    let ticket = ledger.tickets[which.index(ledger.tickets.len())];
                    prop_assert_eq!(admission.cancel(ticket), ledger.waiting.remove(&ticket).is_some());
                }
                Step::Leave(_) | Step::Cancel(_) => {}
                Step::Configure(None) => admission.configure(None),
                Step::Configure(Some((limit, queue))) => {
                    admission.configure(Some(&AdmissionSpec { limit: AdmissionLimit::Fixed(limit), queue }));
                }
                Step::Adapt(max) => {
                    let limit = AdmissionLimit::Adaptive { max };
                    admission.configure(Some(&AdmissionSpec { limit, queue: 4 }));
                }
                Step::Answer(millis) => {
                    for _ in 0..12 {
                        now += Duration::from_millis(100);
                        admission.observe(Latency::FirstToken, Duration::from_millis(millis), now);
                    }
                }
            }
            ledger.admit(&mut admission)?;
            prop_assert_eq!(admission.in_flight() as usize, ledger.in_flight.len());
            prop_assert_eq!(admission.waiting(), ledger.waiting.len());
            prop_assert!(!admission.has_room() || ledger.waiting.is_empty(), "nobody waits while there is room");
            let tenants = admission.tenants.values().sum::<u32>();
            prop_assert_eq!(tenants, admission.in_flight(), "tenants without requests are forgotten");
        }
    }

    /// Two tenants that always want more than they get have shares within one of each other, however unlike their
    /// demands.
    #[test]
    fn shares_are_fair(limit in 2_u32..9, greed in 1_usize..20, ends in prop::collection::vec(any::<bool>(), 1..100)) {
        let names: [Arc<str>; 2] = ["a".into(), "b".into()];
        let mut admission = fixed(limit, 1000);
        let mut who = BTreeMap::new();
        let mut in_flight = [0_u32; 2];
        let ask = |admission: &mut Admission, who: &mut BTreeMap<Ticket, usize>, in_flight: &mut [u32; 2], i: usize| {
            match admission.enter(&names[i], Normal) {
                Entry::Admitted => in_flight[i] += 1,
                Entry::Waiting { ticket, .. } => drop(who.insert(ticket, i)),
                Entry::Rejected => unreachable!("the queue is long"),
            }
        };
        for _ in 0..120 {
            for _ in 0..greed {
                ask(&mut admission, &mut who, &mut in_flight, 0);
            }
            ask(&mut admission, &mut who, &mut in_flight, 1);
            if admission.waiting() > 900 {
                break;
            }
        }
        for first in ends {
            let before = in_flight[0].abs_diff(in_flight[1]);
            // Whichever's ends, if it has one.
            let i = if in_flight[usize::from(first)] > 0 { usize::from(first) } else { usize::from(!first) };
            in_flight[i] -= 1;
            admission.leave(&names[i], Some(Duration::from_secs(1)));
            let ticket = admission.admit_next().expect("somebody always waits");
            in_flight[who[&ticket]] += 1;
            if admission.waiting[Normal as usize].len() < 2 {
                break;
            }
            // However lopsided it began.
            prop_assert!(in_flight[0].abs_diff(in_flight[1]) <= before.max(1));
        }
    }
}
