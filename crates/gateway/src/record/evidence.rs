//! What the account of a request says of the version that it is assigned to: how long its first attempt took, and the evidence
//! for or against a release.

use std::time::{Duration, Instant};

use backstop_openai::Usage;
use backstop_openai::answer::Flaws;
use backstop_openai::stream::StreamState;
use http::StatusCode;
use tokio::sync::oneshot;

use super::Record;
use crate::clock;
use crate::fault::Fault;
use crate::shadow::Answer;
use crate::trial::{Subject, Whole};

impl Record {
    /// The request is evidence for or against a release.
    pub(crate) fn counts(&mut self, subject: Subject) {
        self.arm = Some(subject.place());
        self.subject = Some(Box::new(subject));
    }

    /// Whatever comes now says nothing about the version that it is assigned to.
    pub(crate) fn counts_no_more(&mut self) {
        self.subject = None;
    }

    /// An attempt has brought no whole answer.
    pub(crate) fn lost(&mut self, fault: &Fault) {
        if let Some(subject) = self.subject.take() {
            subject.lost(fault);
        }
    }

    /// An attempt has brought a plain answer, good or bad.
    pub(crate) fn plain(&mut self, status: StatusCode, usage: Option<Usage>, flaws: impl FnOnce() -> Flaws) {
        let Some(subject) = self.subject.take() else { return };
        if status.is_success() || status.is_redirection() {
            subject.whole(Whole { usage, pieces: None, flaws: flaws() }, clock::now());
        } else if status.is_client_error() {
            subject.rejected();
        } else {
            subject.failed();
        }
    }

    /// Since its only attempt began, if there was no other.
    pub(super) fn since_tried(&self, now: Instant) -> Option<Duration> {
        let is_first = self.attempts == 1 && self.resumes == 0;
        self.tried.filter(|_| is_first).map(|tried| now.saturating_duration_since(tried))
    }

    /// The answer is to be compared with another one when it is whole.
    pub(crate) fn compare(&mut self, with: oneshot::Sender<Answer>) {
        self.comparing = Some(with);
    }

    /// It is whole. Nobody compares answers that more than one attempt has made.
    pub(crate) fn compared(&mut self, text: impl FnOnce() -> Option<String>) {
        if let (Some(with), Some(took)) = (self.comparing.take(), self.since_tried(clock::now())) {
            // Whoever does not want it any more need not have it.
            let _ = with.send(Answer { text: text(), took });
        }
    }

    /// A stream is whole and had so many pieces of text.
    pub(crate) fn streamed(&mut self, state: &StreamState, pieces: u64) {
        let now = clock::now();
        let first = self.since_tried(now);
        if let (Some(metrics), Some(first_token)) = (&self.metrics, self.first_token) {
            let pace = metrics.paced(pieces, (now - self.started).saturating_sub(first_token));
            if let Some(took) = first.filter(|_| !state.failed) {
                metrics.recent.total.observe(took, now);
                if let Some(pace) = pace {
                    metrics.recent.tpot.observe(pace, now);
                }
            }
        }
        if !state.failed {
            self.compared(|| state.transcript.text().map(str::to_owned));
        }
        match self.subject.take() {
            Some(subject) if state.failed => subject.failed(),
            Some(subject) => {
                let flaws = Flaws { empty: !state.meaningful, reasons: state.reasons };
                subject.whole(Whole { usage: state.usage, pieces: Some(pieces), flaws }, now);
            }
            None => {}
        }
    }
}
