//! What happened, as operators read it and later decisions go by it.

use serde::{Deserialize, Serialize};

use crate::health::State;
use crate::rollout::Severity;
use crate::standby::Stage;
use crate::status::DependencyState;

/// Something an operator may want to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Grows by one with each event of this process.
    pub id: u64,
    /// Milliseconds since the Unix epoch.
    pub at: u64,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// An endpoint changed its state.
    Health { endpoint: EndpointName, from: State, to: State, reason: String },
    /// Consecutive failures opened the breaker, or a probe closed it.
    Breaker { endpoint: EndpointName, open: bool },
    /// It failed clearly more often than its siblings.
    Ejected { endpoint: EndpointName, seconds: f64, reason: String },
    /// Work moves from a tier of endpoints to the next ones, or back.
    Failover {
        service: String,
        version: String,
        /// The tier by its priority, and its region if it has one, such as `priority 0`.
        tier: String,
        stage: Stage,
        /// Of the requests that reach the tier, how much it may take, 0–1.
        share: f64,
        reason: String,
    },
    /// Something happened to a release.
    Release {
        service: String,
        release: String,
        /// The version on trial.
        version: String,
        /// Such as `step 2` or `rolled back`.
        phase: String,
        /// Of the version on trial, 0–1.
        share: f64,
        severity: Severity,
        reason: String,
    },
    /// Something that a service depends on came or went.
    Dependency { service: String, name: String, state: DependencyState, reason: String },
    /// A host name can't be resolved any more, or can again, or has more addresses than can be used.
    Resolution {
        name: String,
        state: ResolutionState,
        /// How many are in use.
        addresses: usize,
        reason: String,
    },
    /// Something about the certificate that one of our listeners shows.
    Certificate {
        /// `clients` or `admin`.
        listener: String,
        state: CertificateState,
        reason: String,
        /// End of the certificate in use, in seconds since the Unix epoch.
        not_after: u64,
    },
    /// What is decided can't be written down any more, or can again.
    Storage { what: Medium, works: bool, reason: String },
    /// A new table serves.
    Table { revision: u64 },
    /// Somebody changed what is to be served.
    Change {
        /// Name of the token, `file` for the configuration file, `signal` for SIGHUP, or `local` where there are no
        /// tokens.
        actor: String,
        /// What was done, such as `drain` or `reload`.
        action: String,
        /// What it was done to, such as an endpoint's URL.
        subject: String,
        /// Of the table that came of it.
        revision: u64,
    },
    /// A change was refused, and nothing was changed.
    Refused { actor: String, action: String, subject: String, reason: String },
    /// Somebody will not be told of something.
    Undelivered {
        /// Such as `webhook at https://hooks.example:443`.
        recipient: String,
        /// What it was about.
        notice: String,
        reason: String,
    },
}

impl What {
    /// All that [`What::kind`] may say.
    pub const KINDS: [&str; 13] = [
        "health",
        "breaker",
        "ejected",
        "failover",
        "release",
        "dependency",
        "resolution",
        "certificate",
        "storage",
        "table",
        "change",
        "refused",
        "undelivered",
    ];

    /// What `event` says in its serialised form.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Health { .. } => "health",
            Self::Breaker { .. } => "breaker",
            Self::Ejected { .. } => "ejected",
            Self::Failover { .. } => "failover",
            Self::Release { .. } => "release",
            Self::Dependency { .. } => "dependency",
            Self::Resolution { .. } => "resolution",
            Self::Certificate { .. } => "certificate",
            Self::Storage { .. } => "storage",
            Self::Table { .. } => "table",
            Self::Change { .. } => "change",
            Self::Refused { .. } => "refused",
            Self::Undelivered { .. } => "undelivered",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ResolutionState {
    Resolved,
    /// The last good answer stays in use, if there was one.
    Failing,
    /// Some addresses are left out.
    Limited,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CertificateState {
    /// A new one is in use.
    Renewed,
    /// What is in the files now can't be used; the old one stays in use.
    Refused,
    /// It ends soon.
    Expiring,
    /// It has ended. It is still shown: those who don't check it are served.
    Expired,
}

/// Where decisions are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// What `store` in the configuration names.
    Store,
    /// `routes.json` in the state directory.
    Routes,
}

impl Medium {
    pub const ALL: [Self; 2] = [Self::Store, Self::Routes];

    pub fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Routes => "routes",
        }
    }
}

/// Where an endpoint stands in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EndpointName {
    pub service: String,
    pub version: String,
    pub url: String,
}
