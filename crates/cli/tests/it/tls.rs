//! TLS of both listeners and towards model servers, as the configuration has it.

use std::net::SocketAddr;
use std::process::{Command, Output};

use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backstop::{BIN, Backstop, config, oracle, sim};
use crate::client::{CHAT, Conn, hi, soon, until};
use crate::secure::{Authority, Folder, client, connect, days_from_now};

const HTTP1: &[&str] = &["http/1.1"];

/// The listeners' part of a configuration whose files are in `folder`.
fn with_tls(settings: &str, folder: &Folder) -> String {
    let files = |cert: &str, key: &str| {
        format!("{{ cert: \"{}\", key: \"{}\" }}", folder.path(cert).display(), folder.path(key).display())
    };
    settings.replace(
        "admin: { listen: 127.0.0.1:0 }",
        &format!("admin: {{ listen: 127.0.0.1:0, tls: {} }}", files("admin.pem", "admin-key.pem")),
    ) + &format!("tls: {}\n", files("cert.pem", "key.pem"))
}

/// Head and body of the answer to one request.
async fn ask(addr: SocketAddr, ca: &str, request: &str, body: &[u8]) -> (String, String) {
    let mut stream = connect(addr, ca, HTTP1).await;
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut answer = String::new();
    soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn both_listeners_have_certificates_of_their_own() {
    let (engine, folder, authority) = (sim(0, 3).await, Folder::new(), Authority::new());
    folder.pair(&authority.issue());
    let admin = Authority::new();
    let pair = admin.issue_for(&["127.0.0.1"], days_from_now(5));
    folder.write("admin.pem", &pair.cert);
    folder.write("admin-key.pem", &pair.key);
    let backstop = Backstop::serve(&with_tls(&config(&[&engine]), &folder), &[]).await;
    let ready = async {
        while !ask(backstop.addr, &authority.pem, "GET /ready", b"").await.0.starts_with("HTTP/1.1 200") {}
    };
    soon("ready", ready).await;
    let (head, body) = ask(backstop.addr, &authority.pem, &format!("POST {CHAT}"), &hi(false)).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], oracle(3));

    let (head, page) = ask(backstop.admin, &admin.pem, "GET /metrics", b"").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    for listener in ["clients", "admin"] {
        let sample = format!("backstop_certificate_not_after_seconds{{listener=\"{listener}\"}}");
        assert!(page.contains(&sample), "{page}");
    }
    until("it is said", || backstop.logged("the certificate expires on ")).await;
    // Nothing is said without TLS that should be said with it.
    let mut conn = Conn::open(backstop.admin).await;
    conn.send("GET", "/metrics", "", b"").await;
    let (answer, _) = conn.rest().await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    // Whoever says nothing at all holds up nobody.
    let _silent = Conn::open(backstop.admin).await;
    ask(backstop.admin, &admin.pem, "GET /metrics", b"").await;
    // Nor does whoever does not trust us, or hangs up.
    let stream = TcpStream::connect(backstop.admin).await.unwrap();
    let stranger = client(&authority.pem, HTTP1, rustls::ALL_VERSIONS);
    stranger.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await.unwrap_err();
    let mut half = Conn::open(backstop.admin).await;
    half.write(b"\x16\x03\x01").await;
    half.stream.shutdown().await.unwrap();
    half.rest().await;
    ask(backstop.admin, &admin.pem, "GET /metrics", b"").await;
    assert!(!backstop.text().contains("panicked"), "{}", backstop.text());
}

fn run(command: &str, text: &str, folder: &Folder) -> Output {
    folder.write("backstop.yaml", text);
    Command::new(BIN).args([command, "-c"]).arg("backstop.yaml").current_dir(&folder.0).output().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn files_that_can_not_be_used_are_problems() {
    let (folder, authority) = (Folder::new(), Authority::new());
    folder.pair(&authority.issue());
    folder.write("admin.pem", &authority.issue_for(&["127.0.0.1"], days_from_now(-1)).cert);
    folder.write("admin-key.pem", &authority.issue().key);
    folder.write("ca.pem", "nothing");
    let settings = "\
listen: 127.0.0.1:0
tls: { cert: cert.pem, key: nowhere.pem }
admin:
  listen: 127.0.0.1:0
  tls:
    cert: admin.pem
    key: admin-key.pem
services:
  - name: chat
    versions:
      - name: v1
        endpoints:
          - url: http://127.0.0.1:1
          - { url: \"https://127.0.0.1:2\", tls: { ca: ca.pem } }
";
    folder.write("backstop.yaml", settings);
    let check = |arguments: &[&str]| {
        Command::new(BIN).arg("check").args(arguments).current_dir(&folder.0).output().unwrap()
    };
    let output = check(&[]);
    assert_eq!(output.status.code(), Some(1));
    let problems = text(output.stderr);
    for problem in [
        "backstop.yaml:2:29: tls.key: `nowhere.pem`: no such file\n  hint: ",
        "backstop.yaml:7:10: admin.tls.key: `admin-key.pem`: the private key does not belong to the certificate in `admin.pem`\n  hint: ",
        "backstop.yaml:14:54: services[0].versions[0].endpoints[1].tls.ca: `ca.pem`: there is no certificate in the file\n  hint: ",
    ] {
        assert!(problems.contains(problem), "{problem} is not in\n{problems}");
    }
    assert!(problems.ends_with("\n3 problems in backstop.yaml\n"), "{problems}");
    let output = check(&["--json"]);
    let problems: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(problems.as_array().map(Vec::len), Some(3));
    assert_eq!((&problems[0]["path"], &problems[0]["line"]), (&"tls.key".into(), &2.into()));

    // It is refused by `serve` as well, for the first of them.
    let output = run("serve", settings, &folder);
    assert_eq!(output.status.code(), Some(1));
    let error = text(output.stderr);
    assert!(error.contains("error: `nowhere.pem`: no such file\nhint: "), "{error}");

    // What has only grown old can be served, with a word about it.
    let old = authority.issue_for(&["127.0.0.1"], days_from_now(-1));
    folder.pair(&old);
    let mended = settings
        .replace("nowhere.pem", "key.pem")
        .replace("    cert: admin.pem\n    key: admin-key.pem\n", "    cert: cert.pem\n    key: key.pem\n")
        .replace(", tls: { ca: ca.pem }", "");
    folder.write("backstop.yaml", &mended);
    let output = check(&[]);
    assert!(output.status.success());
    assert!(text(output.stdout).contains("ok, 1 service, 2 endpoints"));
    let warnings = text(output.stderr);
    assert!(warnings.contains("warning: backstop.yaml: tls.cert: the certificate expired on "), "{warnings}");
}

#[tokio::test]
async fn a_reload_whose_authorities_are_unreadable_is_refused() {
    let engine = sim(0, 3).await;
    let settings = config(&[&engine]);
    let backstop = Backstop::serve(&settings, &[]).await;
    backstop.ready().await;
    let more = "        endpoints:\n          - { url: \"https://127.0.0.1:1\", tls: { ca: nowhere.pem } }\n";
    backstop.write(&settings.replace("        endpoints:\n", more));
    until("refused", || backstop.logged("reload refused")).await;
    assert!(backstop.logged("`nowhere.pem`: no such file"), "{}", backstop.text());
    assert_eq!(backstop.readiness().await.0, 200, "the old one serves");
}
