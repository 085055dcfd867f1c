//! A new process takes over from the running one.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::backstop::{BIN, Backstop, Directory, config, oracle, sim};
use crate::client::{CHAT, Conn, End, call, chat, hi, soon, until};

const DRAIN: [&str; 2] = ["--drain", "60s"];

impl Backstop {
    /// Starts another process in the same directory.
    fn start_next(&self, arguments: &[&str]) -> Self {
        Self::start(&self.directory, &[&["--take-over"], arguments].concat(), &[])
    }

    /// The same, up to the moment when it serves alone.
    async fn next(&self, arguments: &[&str]) -> Self {
        let mut next = self.start_next(arguments);
        next.serving().await;
        until("handed over", || self.logged("handed over")).await;
        next
    }

    fn socket(&self) -> PathBuf {
        self.path("state/handover.sock")
    }

    /// A line of the log with its message.
    fn line(&self, message: &str) -> Value {
        let log = self.log();
        log.into_iter().find(|line| line["message"].as_str().unwrap().contains(message)).unwrap()
    }

    async fn answers(&self) {
        let reply = chat(self.addr, true).await;
        assert_eq!((reply.status, reply.is_done()), (200, true));
    }
}

/// Exit code and last words of one that ends on its own.
async fn ended(backstop: &mut Backstop) -> (Option<i32>, String) {
    let code = backstop.exit().await.code();
    until("all is read", || backstop.has_been_read()).await;
    (code, backstop.text())
}

/// Short requests from now on: on new connections, and on kept ones with pauses.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn on(addr: std::net::SocketAddr) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..8).map(|client| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut kept = None;
                while !stop.load(Ordering::Relaxed) {
                    let mut conn = match kept.take() {
                        Some(conn) => conn,
                        None => Conn::open(addr).await,
                    };
                    conn.send("POST", CHAT, "", &hi(client % 4 < 2)).await;
                    let reply = conn.reply().await;
                    assert_eq!((reply.status, reply.end), (200, End::Complete), "client {client}");
                    assert_eq!(reply.content(), oracle(8), "client {client}");
                    answered.fetch_add(1, Ordering::Relaxed);
                    if client % 2 == 0 && reply.header("connection") != Some("close") {
                        kept = Some(conn);
                        tokio::time::sleep(Duration::from_millis(client)).await;
                    }
                }
            })
        });
        Self { clients: clients.collect(), stop, answered }
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            soon("a client", client).await.unwrap();
        }
    }
}

/// The services `chat` and `slow`.
fn two_services(fast: &backstop_engine_sim::Sim, slow: &backstop_engine_sim::Sim) -> String {
    let second = config(&[slow]).replace("name: chat", "name: slow");
    let second = second.split_once("services:\n").unwrap().1.to_owned();
    config(&[fast]) + &second
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_upgrades_under_load_lose_nothing() {
    const STREAMS: u64 = 500;
    let (fast, slow) = (sim(0, 8).await, sim(100, 64).await);
    let mut backstop = Backstop::serve(&two_services(&fast, &slow), &DRAIN).await;
    backstop.ready().await;
    let load = Load::on(backstop.addr);
    for round in 0..3 {
        let streams: Vec<_> = (0..STREAMS)
            .map(|_| {
                let addr = backstop.addr;
                tokio::spawn(async move {
                    let mut conn = Conn::open(addr).await;
                    let body = String::from_utf8(hi(true)).unwrap().replace("\"chat\"", "\"slow\"");
                    conn.send("POST", CHAT, "", body.as_bytes()).await;
                    conn.reply().await
                })
            })
            .collect();
        until("all streams flow", || slow.in_flight() == STREAMS).await;
        let before = load.answered();
        let next = backstop.next(&DRAIN).await;
        assert_eq!(next.addr, backstop.addr);
        assert!(slow.in_flight() > 0, "streams must be running while the processes change");
        until("a thousand more requests", || load.answered() > before + 1000).await;
        for stream in streams {
            let reply = soon("a stream", stream).await.unwrap();
            assert_eq!((reply.status, reply.end), (200, End::Complete), "round {round}");
            assert_eq!((reply.content(), reply.is_done()), (oracle(64), true), "round {round}");
        }
        // The old one has nothing left to do; the new one answers.
        assert_eq!(backstop.exit().await.code(), Some(0));
        assert!(!backstop.logged("drain deadline"), "{}", backstop.text());
        backstop = next;
        backstop.answers().await;
    }
    load.end().await;
    assert_eq!(slow.cancelled() + fast.cancelled(), 0, "no engine was asked in vain");
}

#[tokio::test]
async fn without_a_predecessor_it_just_starts() {
    let sim = sim(0, 8).await;
    let mut backstop = Backstop::serve(&config(&[&sim]), &["--take-over"]).await;
    backstop.ready().await;
    backstop.answers().await;
    until("found", || backstop.socket().exists()).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&backstop.socket()), mode(backstop.socket().parent().unwrap())), (0o600, 0o700));
    backstop.signal("TERM");
    assert_eq!(backstop.exit().await.code(), Some(0));
    assert!(!backstop.socket().exists(), "it leaves nothing behind");
}

#[tokio::test]
async fn kept_connections_bring_one_more_request_and_are_told_to_go() {
    let (fast, slow) = (sim(0, 8).await, sim(100, 64).await);
    let mut old = Backstop::serve(&two_services(&fast, &slow), &DRAIN).await;
    old.ready().await;
    let mut streaming = Conn::open(old.addr).await;
    let body = String::from_utf8(hi(true)).unwrap().replace("\"chat\"", "\"slow\"");
    streaming.send("POST", CHAT, "", body.as_bytes()).await;
    streaming.head().await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut conn = Conn::open(old.addr).await;
        conn.send("GET", "/ready", "", b"").await;
        assert_eq!(conn.reply().await.header("connection"), None);
        idle.push(conn);
    }
    // One that has not said anything yet.
    let mut silent = Conn::open(old.addr).await;
    let mut operator = Conn::open(old.admin).await;
    operator.send("GET", "/api/v1/services", "", b"").await;
    operator.reply().await;
    let _next = old.next(&DRAIN).await;
    // Whoever asks the old one means the service, which is ready.
    idle[0].send("GET", "/ready", "", b"").await;
    let reply = idle[0].reply().await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert!(idle[0].rest().await.0.is_empty());
    for conn in [&mut idle[1], &mut silent] {
        conn.send("POST", CHAT, "", &hi(true)).await;
        let reply = conn.reply().await;
        assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
        assert_eq!((reply.content(), reply.is_done()), (oracle(8), true));
        assert!(conn.rest().await.0.is_empty());
    }
    // One that says nothing more does not hold up the end, nor does an operator's.
    assert!(idle[2].rest().await.0.is_empty());
    assert!(operator.rest().await.0.is_empty());
    // The control API is the new one's alone, which knows nothing of the old one's requests.
    for _ in 0..50 {
        let services = call(old.admin, "GET", "/api/v1/services", "", b"").await.json();
        assert_eq!(services["totals"]["requests"], 0);
    }
    assert_eq!(old.exit().await.code(), Some(0));
}

#[tokio::test]
async fn the_old_process_follows_the_new_one_while_it_drains() {
    let slow = sim(100, 64).await;
    let text = config(&[&slow]);
    let mut old = Backstop::serve(&text, &DRAIN).await;
    old.ready().await;
    let mut streaming = Conn::open(old.addr).await;
    streaming.send("POST", CHAT, "", &hi(true)).await;
    let mut reply = streaming.head().await.unwrap();
    let next = old.next(&DRAIN).await;
    let followed = |count| {
        let log = old.log();
        log.iter().filter(|line| line["action"] == "follow").count() >= count
    };
    old.write(&text.replace("name: chat", "name: chat\n    models: [chat, more]"));
    until("the file is followed", || followed(1)).await;
    until("by both", || next.logged("configuration reloaded")).await;
    // So are changes made at run time, by whoever may make them now.
    next.order(&["endpoint", "drain", "--force", &slow.url()]);
    until("the change is followed", || followed(2)).await;
    assert!(!old.logged("stopped"));
    assert_eq!(next.models().await, ["chat", "more"]);
    streaming.body(&mut reply).await;
    assert_eq!((reply.content(), reply.is_done()), (oracle(64), true));
    assert_eq!(old.exit().await.code(), Some(0));
}

/// Where the endpoints of a process stand, by its control API.
fn states(backstop: &Backstop) -> Vec<String> {
    let list: Value = serde_json::from_str(&backstop.order(&["endpoint", "list", "--json"])).unwrap();
    list.as_array().unwrap().iter().map(|it| it["state"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn changes_made_while_the_new_process_prepares_are_not_lost() {
    let sim = sim(0, 8).await;
    let old = Backstop::serve(&with_a_dead_service(&sim), &DRAIN).await;
    let mut new = old.start_next(&DRAIN);
    until("it has the sockets", || new.logged("taking over")).await;
    old.order(&["endpoint", "isolate", "--force", &sim.url()]);
    assert!(!old.logged("handed over"), "too late to tell anything");
    new.serving().await;
    until("handed over", || old.logged("handed over")).await;
    until("taken", || states(&new).iter().any(|state| state == "isolated")).await;
    // The new one takes changes from here on, and the next one finds them.
    new.order(&["endpoint", "restore", &sim.url()]);
    new.order(&["endpoint", "drain", "--force", &sim.url()]);
    let third = new.next(&DRAIN).await;
    until("kept", || states(&third).iter().any(|state| state == "draining")).await;
}

#[tokio::test]
async fn a_new_process_with_a_broken_configuration_changes_nothing() {
    let sim = sim(0, 8).await;
    let text = config(&[&sim]);
    let old = Backstop::serve(&text, &DRAIN).await;
    old.ready().await;
    old.write(&text.replace("engine: sim", "engine: none"));
    let mut new = old.start_next(&[]);
    let (code, said) = ended(&mut new).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("services[0].versions[0].endpoints[0].engine"), "{said}");
    // One that can't listen has had the sockets in its hands.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    old.write(&text.replace("listen: 127.0.0.1:0\n", &format!("listen: {}\n", taken.local_addr().unwrap())));
    let mut new = old.start_next(&[]);
    let (code, said) = ended(&mut new).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("in use") && said.contains("hint: "), "{said}");
    until("noticed", || old.logged("ended before it served; serving on")).await;
    old.answers().await;
    old.write(&text);
    old.next(&DRAIN).await.answers().await;
}

/// An endpoint that nobody listens at: a process that takes over waits for it before it serves.
fn with_a_dead_service(sim: &backstop_engine_sim::Sim) -> String {
    let second = config(&[sim]).split_once("services:\n").unwrap().1.replace("name: chat", "name: dead");
    config(&[sim]) + &second.replace(&sim.url(), "http://127.0.0.1:1")
}

#[tokio::test]
async fn a_new_process_that_is_killed_leaves_the_old_one_serving() {
    let sim = sim(0, 8).await;
    let old = Backstop::serve(&with_a_dead_service(&sim), &DRAIN).await;
    let up = async { while chat(old.addr, false).await.status != 200 {} };
    soon("up", up).await;
    let load = Load::on(old.addr);
    for delay in [0, 5, 50, 500] {
        let mut new = old.start_next(&[]);
        if delay > 0 {
            until("it has the sockets", || new.logged("taking over")).await;
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        new.signal("KILL");
        new.exit().await;
        old.answers().await;
    }
    until("told", || old.logged("ended before it served; serving on")).await;
    // The next one is not worse off for it; though one service has no endpoint, it takes over after a while.
    let new = old.next(&DRAIN).await;
    assert!(new.logged("taking over though no endpoint is healthy yet"));
    assert_eq!(new.line("taking over though no endpoint is healthy yet")["service"], "dead");
    new.answers().await;
    load.end().await;
}

#[tokio::test]
async fn an_old_process_that_is_killed_leaves_its_clients_to_the_new_one() {
    let sim = sim(0, 8).await;
    let mut old = Backstop::serve(&with_a_dead_service(&sim), &DRAIN).await;
    let mut new = old.start_next(&DRAIN);
    until("it has the sockets", || new.logged("taking over")).await;
    old.signal("KILL");
    old.exit().await;
    // Nobody accepts, yet nobody is refused.
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut conn = Conn::open(old.addr).await;
        conn.send("POST", CHAT, "", &hi(true)).await;
        waiting.push(conn);
    }
    for conn in &mut waiting {
        let reply = conn.reply().await;
        assert_eq!((reply.status, reply.content()), (200, oracle(8)));
    }
    new.serving().await;
    until("told", || new.logged("ended before it was relieved")).await;
    new.next(&DRAIN).await.answers().await;
}

#[tokio::test]
async fn one_at_a_time() {
    let sim = sim(0, 8).await;
    let old = Backstop::serve(&with_a_dead_service(&sim), &DRAIN).await;
    let first = old.start_next(&DRAIN);
    until("it has the sockets", || first.logged("taking over")).await;
    let mut second = old.start_next(&DRAIN);
    let (code, said) = ended(&mut second).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("process {} is just taking over", first.pid())), "{said}");
    until("handed over", || old.logged("handed over")).await;
}

#[tokio::test]
async fn what_a_killed_process_left_does_not_matter() {
    let sim = sim(0, 8).await;
    let mut backstop = Backstop::serve(&config(&[&sim]), &[]).await;
    for arguments in [&["--take-over"][..], &[]] {
        until("found", || backstop.socket().exists()).await;
        backstop.signal("KILL");
        backstop.exit().await;
        assert!(backstop.socket().exists());
        let mut next = Backstop::start(&backstop.directory, arguments, &[]);
        next.serving().await;
        next.ready().await;
        backstop = next;
    }
    let next = backstop.next(&[]).await;
    assert!(!next.logged("will not find this process"), "{}", next.text());
    next.answers().await;
}

#[tokio::test]
async fn two_that_share_a_directory() {
    let sim = sim(0, 8).await;
    let first = Backstop::serve(&config(&[&sim]), &[]).await;
    until("found", || first.socket().exists()).await;
    // Not a successor: it has addresses of its own.
    let mut second = Backstop::start(&first.directory, &[], &[]);
    second.serving().await;
    assert_ne!(first.addr, second.addr);
    until("told", || second.logged("another process has `./state`; hint: ")).await;
    // The first can be found all the same.
    first.next(&[]).await.ready().await;
}

#[tokio::test]
async fn a_new_address_is_bound_and_the_old_one_given_up() {
    let sim = sim(50, 64).await;
    let text = config(&[&sim]);
    let old = Backstop::serve(&text, &DRAIN).await;
    old.ready().await;
    let mut streaming = Conn::open(old.addr).await;
    streaming.send("POST", CHAT, "", &hi(true)).await;
    let mut reply = streaming.head().await.unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    old.write(&text.replacen("listen: 127.0.0.1:0\n", &format!("listen: {free}\n"), 1));
    let new = old.next(&DRAIN).await;
    assert_eq!((new.addr, new.admin), (free, old.admin));
    new.answers().await;
    let refused = async { while TcpStream::connect(old.addr).await.is_ok() {} };
    soon("given up", refused).await;
    streaming.body(&mut reply).await;
    assert_eq!((reply.content(), reply.is_done()), (oracle(64), true));
}

#[tokio::test]
async fn a_directory_that_cant_be_written_costs_only_the_hand_over() {
    let sim = sim(0, 8).await;
    let text = config(&[&sim]) + "state_dir: /proc/backstop\n";
    let backstop = Backstop::serve(&text, &["--take-over"]).await;
    backstop.ready().await;
    until("told", || backstop.logged("will not find this process")).await;
    let line = backstop.line("will not find this process");
    assert_eq!(line["level"], "WARN");
    assert!(
        line["message"].as_str().unwrap().contains("can't create `/proc/backstop/handover.sock`"),
        "{line}"
    );
    // SIGUSR2 would otherwise end a process.
    backstop.signal("USR2");
    until("told", || backstop.logged("SIGUSR2")).await;
    backstop.answers().await;
}

/// As somebody else; `None` if that can't be tried here.
fn as_nobody(directory: &Path) -> Option<Output> {
    let mut command = Command::new(BIN);
    command.args(["serve", "--take-over"]).current_dir(directory).uid(65534).gid(65534);
    command.output().ok()
}

#[tokio::test]
async fn another_user_cant_take_over() {
    let sim = sim(0, 8).await;
    let backstop = Backstop::serve(&config(&[&sim]), &[]).await;
    backstop.ready().await;
    until("found", || backstop.socket().exists()).await;
    let Some(output) = as_nobody(&backstop.directory.0) else {
        eprintln!("skipped: only root can try this");
        return;
    };
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ermission denied") && said.contains("hint: run it as the same user"), "{said}");
    // Even if somebody opens the door.
    let open = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    open(&backstop.socket());
    open(backstop.socket().parent().unwrap());
    let said = String::from_utf8(as_nobody(&backstop.directory.0).unwrap().stderr).unwrap();
    assert!(said.contains("it runs as the user") && said.contains("hint: run it as the same user"), "{said}");
    // Nor with a program that does not look whom it talks to.
    let script = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('state/handover.sock'); \
                  print(socket.recv_fds(s, 9999, 9))";
    let mut command = Command::new("python3");
    command.args(["-c", script]).current_dir(&backstop.directory.0).uid(65534).gid(65534);
    if let Ok(output) = command.output() {
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.starts_with("(b'{") && said.contains("refused") && said.contains("[], 0"), "{said}");
    }
    until("told", || backstop.logged("a process of another user wants to take over; refused")).await;
    backstop.answers().await;
}

#[tokio::test]
async fn whatever_is_said_on_the_socket_it_serves_on() {
    let sim = sim(0, 8).await;
    let old = Backstop::serve(&config(&[&sim]), &DRAIN).await;
    old.ready().await;
    until("found", || old.socket().exists()).await;
    let long = vec![b'x'; 100_000];
    let sayings: [&[u8]; 5] =
        [b"", b"garbage\n", &long, b"{\"say\":\"take_over\",\"protocol\":2}\n", b"{\"say\":\"serving\"}\n"];
    for said in sayings {
        let mut stream = UnixStream::connect(old.socket()).await.unwrap();
        let _ = stream.write_all(said).await;
        let _ = stream.shutdown().await;
        let mut heard = Vec::new();
        // A reset tells as much as the end.
        let _ = soon("the end", stream.read_to_end(&mut heard)).await;
        let heard = String::from_utf8(heard).unwrap();
        assert!(heard.is_empty() || heard.contains("refused"), "{heard}");
    }
    old.answers().await;
    // One who says after all the sockets something else than it should.
    let mut stream = UnixStream::connect(old.socket()).await.unwrap();
    stream.write_all(b"{\"say\":\"take_over\",\"protocol\":1}\n").await.unwrap();
    until("given", || old.logged("a new process is taking over")).await;
    stream.write_all(b"{\"say\":\"nothing\"}\n").await.unwrap();
    until("told", || old.logged("is not understood; serving on")).await;
    old.next(&DRAIN).await.answers().await;
}

#[tokio::test]
async fn a_process_that_does_not_answer_cant_be_taken_over() {
    let sim = sim(0, 8).await;
    let old = Backstop::serve(&config(&[&sim]), &DRAIN).await;
    until("found", || old.socket().exists()).await;
    old.signal("STOP");
    let mut new = old.start_next(&[]);
    let (code, said) = ended(&mut new).await;
    old.signal("CONT");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("it does not answer within 5s"), "{said}");
    old.answers().await;
    old.next(&DRAIN).await.answers().await;
}

/// What systemd would be told next.
async fn told(systemd: &UnixDatagram) -> String {
    let mut message = [0; 256];
    let mut length = None;
    until("systemd is told", || {
        length = systemd.recv(&mut message).ok();
        length.is_some()
    })
    .await;
    String::from_utf8(message[..length.unwrap()].to_vec()).unwrap()
}

#[tokio::test]
async fn systemd_is_told_who_serves() {
    let sim = sim(0, 8).await;
    let directory = Directory::with(&config(&[&sim]));
    let name = directory.0.join("notify");
    let systemd = UnixDatagram::bind(&name).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let env = [("NOTIFY_SOCKET", name.to_str().unwrap())];
    let mut old = Backstop::start(&directory, &["--drain", "60s"], &env);
    assert_eq!(told(&systemd).await, "READY=1");
    old.serving().await;
    old.ready().await;

    // A signal starts the program anew.
    old.signal("USR2");
    until("started", || old.logged("SIGUSR2: started a new process")).await;
    let pid = old.line("SIGUSR2: started a new process")["pid"].as_u64().unwrap();
    let _ended = Kill(pid);
    assert_eq!(told(&systemd).await, format!("MAINPID={pid}"));
    assert_eq!(told(&systemd).await, "READY=1");
    assert_eq!(old.exit().await.code(), Some(0));
    old.answers().await;

    // The new one can do it again, and tells when it stops.
    let kill = |name: &str, pid: u64| Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    kill("-USR2", pid);
    let main = told(&systemd).await;
    let third: u64 = main.strip_prefix("MAINPID=").unwrap().parse().unwrap();
    let _ended = Kill(third);
    assert_ne!(third, pid);
    assert_eq!(told(&systemd).await, "READY=1");
    old.answers().await;
    kill("-TERM", third);
    assert_eq!(told(&systemd).await, "STOPPING=1");
}

/// Ends a process that is not a child of the test.
struct Kill(u64);

impl Drop for Kill {
    fn drop(&mut self) {
        let program = std::fs::read_link(format!("/proc/{}/exe", self.0)).unwrap_or_default();
        if program == Path::new(BIN) {
            let _ = Command::new("kill").args(["-KILL", &self.0.to_string()]).status();
        }
    }
}
