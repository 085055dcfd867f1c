//! The situations in which the rules are compared.

/// What happens to a service while a version is released.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) kind: Kind,
    pub(crate) load: Load,
    /// Share of the canary and minutes of each step.
    pub(crate) ramp: [(f64, u32); 3],
    /// Minutes after which nobody looks any more.
    pub(crate) horizon: u32,
    /// How often requests fail anyway, with all load and with the least.
    pub(crate) errors: (f64, f64),
    pub(crate) fault: Fault,
    pub(crate) incident: Option<Incident>,
    /// Who asks; without it every request is a unit of its own.
    pub(crate) users: Option<Users>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The canary is no worse: sending it back is wrong.
    Same,
    /// The canary is worse: sending it back is right.
    Worse,
}

/// Requests in a minute.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    Steady(f64),
    /// From the first to the second within an hour.
    Growing(f64, f64),
    /// Nothing any more after so many minutes.
    Vanishing(f64, f64),
}

/// What is wrong with the canary, from a minute on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) onset: f64,
    /// How often its requests fail; nothing, if not more often than stable's.
    pub(crate) errors: f64,
    /// How often its answers are empty.
    pub(crate) empty: f64,
    /// How many times as long it takes.
    pub(crate) latency: f64,
}

/// Something happens to both arms.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Incident {
    /// In minutes.
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) errors: f64,
    pub(crate) latency: f64,
    /// Seconds until a request of stable or of the canary fails.
    pub(crate) takes: (f64, f64),
}

/// The same users ask all the time, and stay in their arm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Users {
    pub(crate) count: u32,
    /// So many requests in a row fail, on average, once one does.
    pub(crate) burst: f64,
    /// How many of them always fail.
    pub(crate) failing: u32,
}

/// Seconds until a request fails that fails.
pub(crate) const FAILS_AFTER: f64 = 0.2;

const NO_FAULT: Fault = Fault { onset: 0.0, errors: 0.0, empty: 0.0, latency: 1.0 };

fn same(name: &'static str, what: &'static str, rpm: f64) -> Case {
    Case {
        name,
        what,
        kind: Kind::Same,
        load: Load::Steady(rpm),
        ramp: [(0.01, 20), (0.1, 20), (0.5, 20)],
        horizon: 1440,
        errors: (0.005, 0.005),
        fault: NO_FAULT,
        incident: None,
        users: None,
    }
}

fn worse(name: &'static str, what: &'static str, rpm: f64, fault: Fault) -> Case {
    Case { kind: Kind::Worse, fault, ..same(name, what, rpm) }
}

fn failing(name: &'static str, what: &'static str, rpm: f64, errors: f64) -> Case {
    worse(name, what, rpm, Fault { errors, ..NO_FAULT })
}

fn slower(name: &'static str, what: &'static str, latency: f64) -> Case {
    worse(name, what, 1000.0, Fault { latency, ..NO_FAULT })
}

/// All cases, in the order in which they are told.
pub(crate) fn all() -> Vec<Case> {
    [alike(), disturbed(), broken(), late()].concat()
}

/// Both versions are the same.
fn alike() -> Vec<Case> {
    let users = |name, what, users| Case { users: Some(users), ..same(name, what, 1000.0) };
    vec![
        same("same", "both versions are the same", 1000.0),
        same("same-100", "the same with 100 requests a minute", 100.0),
        same("same-10", "the same with 10 requests a minute", 10.0),
        Case {
            load: Load::Growing(200.0, 2000.0),
            errors: (0.002, 0.02),
            ..same("growing", "load and errors grow tenfold along the ramp", 0.0)
        },
        users(
            "bursts",
            "2,000 users, whose requests fail five in a row on average",
            Users { count: 2000, burst: 5.0, failing: 0 },
        ),
        users(
            "failing-user",
            "1,000 users, for one of whom everything fails",
            Users { count: 1000, burst: 1.0, failing: 1 },
        ),
        users(
            "failing-users",
            "1,000 users, for ten of whom everything fails",
            Users { count: 1000, burst: 1.0, failing: 10 },
        ),
        Case {
            load: Load::Vanishing(1000.0, 30.0),
            horizon: 180,
            ..same("vanishing", "the same, and no requests after 30 minutes", 1000.0)
        },
    ]
}

/// Both versions suffer from the same.
fn disturbed() -> Vec<Case> {
    let with = |name, what, incident| Case { incident: Some(incident), ..same(name, what, 1000.0) };
    let quick = (FAILS_AFTER, FAILS_AFTER);
    let usual = Incident { from: 25.0, to: 35.0, errors: 0.2, latency: 3.0, takes: quick };
    vec![
        with("incident", "for ten minutes 20 % of both fail, and the rest is three times as slow", usual),
        with(
            "incident-ramp",
            "from the 38th to the 50th minute, while the canary goes from 10 to 50 %, 20 % of both fail",
            Incident { from: 38.0, to: 50.0, ..usual },
        ),
        with(
            "incident-timeout",
            "20 % of both fail, the canary's at once and stable's after 10 s",
            Incident { takes: (10.0, FAILS_AFTER), latency: 1.0, ..usual },
        ),
        with(
            "incident-long-timeout",
            "20 % of both fail, the canary's at once and stable's after 40 s",
            Incident { takes: (40.0, FAILS_AFTER), latency: 1.0, ..usual },
        ),
        with(
            "both-bad",
            "20 % of both fail all the time",
            Incident { from: 0.0, to: 1e9, latency: 1.0, ..usual },
        ),
    ]
}

/// The canary is worse from the beginning.
fn broken() -> Vec<Case> {
    vec![
        failing("dead", "every request of the canary fails", 1000.0, 1.0),
        failing("errors-20", "20 % of the canary's requests fail", 1000.0, 0.2),
        failing("errors-5", "5 % fail", 1000.0, 0.05),
        failing("errors-2", "2 % fail", 1000.0, 0.02),
        failing("errors-1", "1 % fail", 1000.0, 0.01),
        failing("dead-10", "every request fails, 10 requests a minute", 10.0, 1.0),
        failing("errors-5-100", "5 % fail, 100 requests a minute", 100.0, 0.05),
        failing("errors-2-100", "2 % fail, 100 requests a minute", 100.0, 0.02),
        slower("latency-2", "the canary takes twice as long", 2.0),
        slower("latency-1.5", "1.5 times as long", 1.5),
        slower("latency-1.2", "1.2 times as long", 1.2),
        worse("empty", "5 % of the canary's answers are empty", 1000.0, Fault { empty: 0.05, ..NO_FAULT }),
    ]
}

/// The canary gets worse after having been good.
fn late() -> Vec<Case> {
    let late = |name, what, first, onset| Case {
        ramp: [(0.01, first), (0.1, 60), (0.5, 60)],
        ..worse(name, what, 1000.0, Fault { onset, errors: 0.05, ..NO_FAULT })
    };
    vec![
        late("late-60", "5 % fail after 60 good minutes, when the share goes up to 10 %", 60, 60.0),
        late("late-240", "5 % fail after 240 good minutes, when the share goes up to 10 %", 240, 240.0),
        late("late-inside", "5 % fail after 120 good minutes of a step of four hours at 1 %", 240, 120.0),
    ]
}
