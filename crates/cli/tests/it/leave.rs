//! Clients that speak HTTP/2 by TLS, when the process stops or hands over.

use std::sync::Arc;

use backstop_engine_sim::Sim;

use crate::backstop::{Backstop, Directory, config, oracle, sim};
use crate::client::{CHAT, End, hi, until};
use crate::h2client::{H2, Tape, Taped, piece, reply};
use crate::secure::{Authority, Folder, connect};

/// A long drain: whoever waits for its end has hung.
const DRAIN: [&str; 2] = ["--drain", "10m"];

struct Secured {
    backstop: Backstop,
    ca: String,
    _folder: Folder,
}

impl Secured {
    async fn start(sim: &Sim) -> Self {
        let (authority, folder) = (Authority::new(), Folder::new());
        let files = folder.pair(&authority.issue());
        let tls =
            format!("tls: {{ cert: \"{}\", key: \"{}\" }}\n", files.cert.display(), files.key.display());
        let backstop = Backstop::serve(&(config(&[sim]) + &tls), &DRAIN).await;
        let secured = Self { backstop, ca: authority.pem.clone(), _folder: folder };
        let client = secured.client(&Tape::default()).await;
        while client.call("GET", "/ready", &[], "").await.status != 200 {}
        secured
    }

    async fn client(&self, tape: &Tape) -> H2 {
        let stream = connect(self.backstop.addr, &self.ca, &["h2"]).await;
        H2::over(Taped(stream, tape.clone())).await
    }

    /// The next process, once it serves alone.
    async fn next(&self) -> Backstop {
        let directory: &Arc<Directory> = &self.backstop.directory;
        let mut next = Backstop::start(directory, &[&["--take-over"], &DRAIN[..]].concat(), &[]);
        next.serving().await;
        until("handed over", || self.backstop.logged("handed over")).await;
        next
    }
}

#[tokio::test]
async fn streams_end_and_nobody_holds_up_the_end() {
    for hands_over in [false, true] {
        let sim = sim(20, 64).await;
        let mut secured = Secured::start(&sim).await;
        let tape = Tape::default();
        let client = secured.client(&tape).await;
        // Agreed on HTTP/2, and never says or reads anything.
        let _idle = connect(secured.backstop.addr, &secured.ca, &["h2"]).await;
        let mut running = client.begin().await;
        let begun = piece(&mut running).await;
        let next = if hands_over {
            Some(secured.next().await)
        } else {
            secured.backstop.signal("TERM");
            None
        };
        let mut rest = reply(running).await;
        rest.body.splice(..0, begun);
        assert_eq!((rest.end, rest.content(), rest.is_done()), (End::Complete, oracle(64), true));
        until("told", || client.is_closed()).await;
        assert_eq!(tape.ended_before_goaway(), Some(1));
        assert_eq!(secured.backstop.exit().await.code(), Some(0));
        assert!(!secured.backstop.logged("drain deadline"), "{}", secured.backstop.text());
        let Some(next) = next else { continue };
        assert_eq!(next.addr, secured.backstop.addr);
        let answer = secured.client(&Tape::default()).await.call("POST", CHAT, &[], hi(true)).await;
        assert_eq!((answer.status, answer.content()), (200, oracle(64)));
    }
}
