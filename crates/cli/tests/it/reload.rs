use serde_json::Value;

use crate::backstop::{Backstop, config, oracle, sim};
use crate::check::TEN_MISTAKES;
use crate::client::{CHAT, Conn, call, chat, hi, soon, until};

#[tokio::test]
async fn a_new_configuration_is_applied_without_a_word_lost() {
    let (old, new) = (sim(20, 64).await, sim(0, 64).await);
    let backstop = Backstop::serve(&config(&[&old]), &[]).await;
    backstop.ready().await;
    let mut streaming = Conn::open(backstop.addr).await;
    streaming.send("POST", CHAT, "", &hi(true)).await;
    let mut reply = streaming.head().await.unwrap();
    reply.body = streaming.contents(2).await;
    // The engine that the stream runs on leaves.
    let text = config(&[&new]);
    backstop.write(&text.replace("name: chat", "name: chat\n    models: [chat, by-file]"));
    let applied = async { while !backstop.models().await.contains(&"by-file".to_owned()) {} };
    soon("the file is noticed", applied).await;
    assert!(new.request_log().iter().all(|it| it.method == "GET"));
    backstop.ready().await;
    assert_eq!(chat(backstop.addr, true).await.content(), oracle(64));
    assert_eq!(new.request_log().iter().filter(|it| it.method == "POST").count(), 1);
    backstop.write(&text.replace("name: chat", "name: chat\n    models: [chat, by-signal]"));
    backstop.signal("HUP");
    let applied = async { while !backstop.models().await.contains(&"by-signal".to_owned()) {} };
    soon("the signal is heard", applied).await;
    until("said so", || backstop.logged("configuration reloaded")).await;
    streaming.body(&mut reply).await;
    assert_eq!((reply.content(), reply.is_done()), (oracle(64), true));
}

#[tokio::test]
async fn a_bad_configuration_is_refused_with_every_reason() {
    let sim = sim(0, 64).await;
    let backstop = Backstop::serve(&config(&[&sim]), &[]).await;
    backstop.ready().await;
    backstop.write(TEN_MISTAKES);
    backstop.signal("HUP");
    until("the last reason is logged", || backstop.logged("services[0].retry.attempts")).await;
    let log = backstop.log();
    let refused: Vec<_> = log.iter().filter(|line| line["level"] == "ERROR").collect();
    assert!(refused[0]["message"].as_str().unwrap().contains("10 problems"), "{}", refused[0]);
    assert_eq!(refused[0]["revision"], 1);
    let reasons = refused.iter().filter(|it| it["message"].as_str().unwrap().starts_with("backstop.yaml:"));
    assert!(reasons.count() >= 10, "{refused:?}");
    assert_eq!(backstop.models().await, ["chat"]);
    assert_eq!(chat(backstop.addr, true).await.content(), oracle(64));
    // A good one is taken again.
    backstop.write(&config(&[&sim]).replace("name: chat", "name: chat\n    models: [again]"));
    soon("recovered", async { while backstop.models().await != ["again"] {} }).await;
}

#[tokio::test]
async fn logs_tell_what_happened_but_no_secrets() {
    let sim = sim(0, 8).await;
    let text = config(&[&sim]).replace("engine: sim", "engine: sim, api_key: \"${UPSTREAM_KEY}\"");
    let backstop = Backstop::serve(&text, &["--log-level", "trace"]).await;
    backstop.ready().await;
    let prompt = "PROMPT-MARKER";
    let body = |model: &str, rest: &str| {
        format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"{prompt}"}}]{rest}}}"#)
    };
    let keys = "authorization: Bearer KEY-OF-THE-CLIENT\r\nx-api-key: KEY-OF-THE-CLIENT\r\ncookie: KEY-OF-THE-CLIENT\r\n";
    let long_ago = std::time::Instant::now();
    let requests = [
        ("r-plain", body("chat", ""), "", "answered"),
        ("r-stream", body("chat", r#","stream":true"#), "", "answered"),
        ("r-refused", body("PROMPT", r#","stream":"#), "", "refused"),
        ("r-failed", body("chat", ""), "x-sim-fault: status=500\r\n", "failed"),
        (
            "r-cut",
            // Else it would be carried on.
            body("chat", r#","stream":true,"response_format":{"type":"json_object"}"#),
            "x-sim-fault: slow_first_token=1ms, error_event=8\r\n",
            "cut",
        ),
    ];
    for (id, body, headers, _) in &requests {
        let headers = format!("x-request-id: {id}\r\n{keys}{headers}");
        call(backstop.addr, "POST", &format!("{CHAT}?q=KEY-OF-THE-CLIENT"), &headers, body.as_bytes()).await;
    }
    let of = |id: &str| {
        let is_account = |line: &Value| line["request_id"] == id && line["message"] == "request";
        backstop.log().into_iter().find(is_account)
    };
    for (id, _, _, outcome) in &requests {
        until(id, || of(id).is_some()).await;
        let line = of(id).unwrap();
        // Eight tokens may arrive together with the fault, before anything was sent.
        if *id == "r-cut" {
            assert!(["cut", "failed"].contains(&line["outcome"].as_str().unwrap()), "{line}");
        } else {
            assert_eq!(line["outcome"], *outcome, "{line}");
        }
        assert_eq!(line["path"], CHAT);
        assert!(line["duration_ms"].as_f64().is_some_and(|it| it <= long_ago.elapsed().as_secs_f64() * 1e3));
        if *outcome != "refused" {
            assert_eq!(
                (&line["service"], &line["version"], &line["env"]),
                (&"chat".into(), &"v1".into(), &"stable".into())
            );
        }
    }
    // The engine got its own key and not the client's.
    let log = sim.request_log();
    let asked = log.iter().rfind(|it| it.method == "POST").unwrap();
    assert_eq!(asked.header("authorization"), Some("Bearer KEY-OF-THE-UPSTREAM"));
    let text = backstop.text();
    for secret in [prompt, "KEY-OF-THE-CLIENT", "KEY-OF-THE-UPSTREAM"] {
        let line = text.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is logged");
    }
}
