//! What Prometheus reads after requests of every kind.

use backstop_core::health::State;
use backstop_engine_sim::{Fault, SimConfig};

use crate::client::{CHAT, call, chat, hi, until};
use crate::world::{World, ms};

#[tokio::test]
async fn every_request_is_counted_once_where_it_belongs() {
    let world = World::of(vec![SimConfig { tokens: 7, ..SimConfig::default() }], |_| {}).await;
    assert_eq!(chat(world.addr, true).await.status, 200);
    assert_eq!(chat(world.addr, false).await.status, 200);
    world.sims[0].set_fault(Fault::Cut { after: 3, how: backstop_engine_sim::Cut::Fin, mid_event: false });
    assert_eq!(chat(world.addr, true).await.status, 200);
    world.sims[0].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    assert_eq!(chat(world.addr, false).await.status, 500);
    let unknown = String::from_utf8(hi(false)).unwrap().replace("\"chat\"", "\"nobody\"");
    assert_eq!(call(world.addr, "POST", CHAT, "", unknown.as_bytes()).await.status, 404);

    until("all are counted", || world.gateway.metrics().contains("outcome=\"cut\"} 1\n")).await;
    let page = world.gateway.metrics();
    let version = "service=\"chat\",version=\"v1\"";
    for line in [
        format!("backstop_requests_total{{{version},outcome=\"answered\"}} 2"),
        format!("backstop_requests_total{{{version},outcome=\"failed\"}} 1"),
        format!("backstop_requests_total{{{version},outcome=\"cancelled\"}} 0"),
        format!("backstop_errors_total{{{version},code=\"upstream_disconnected\"}} 1"),
        format!("backstop_errors_total{{{version},code=\"upstream_status\"}} 1"),
        "backstop_refused_total{code=\"model_not_found\"} 1".to_owned(),
        format!("backstop_retries_total{{{version}}} 2"),
        // The cut one had begun as well; only whole answers count for tokens and durations.
        format!("backstop_first_token_seconds_count{{{version}}} 2"),
        format!("backstop_time_per_output_token_seconds_count{{{version}}} 1"),
        format!("backstop_request_duration_seconds_bucket{{{version},le=\"+Inf\"}} 2"),
        format!("backstop_tokens_total{{{version},direction=\"output\"}} 14"),
        "# TYPE backstop_request_duration_seconds histogram".to_owned(),
    ] {
        assert!(page.lines().any(|other| other == line), "no line `{line}` in:\n{page}");
    }
    let endpoint = format!("{version},endpoint=\"{}\"", world.sims[0].url());
    for line in [
        format!("backstop_attempts_total{{{endpoint},outcome=\"success\"}} 2"),
        format!("backstop_attempts_total{{{endpoint},outcome=\"failure\"}} 4"),
        format!("backstop_in_flight{{{endpoint}}} 0"),
        format!("backstop_endpoint_state{{{endpoint},state=\"healthy\"}} 1"),
        format!("backstop_endpoint_state{{{endpoint},state=\"unhealthy\"}} 0"),
    ] {
        assert!(page.lines().any(|other| other == line), "no line `{line}` in:\n{page}");
    }
    assert!(!page.contains("nobody"), "what a client sends must not become a label");
}

#[tokio::test]
async fn a_request_that_nobody_could_take_is_counted() {
    let world = World::start(1, |service| {
        service.health.interval = ms(20);
        service.health.down = 1;
    })
    .await;
    world.sims[0].kill().await;
    until("the engine is out", || world.state(0) == State::Unhealthy).await;
    assert_eq!(chat(world.addr, false).await.error_code(), "no_healthy_endpoint");
    let line = "backstop_errors_total{service=\"chat\",version=\"v1\",code=\"no_healthy_endpoint\"} 1";
    assert!(world.gateway.metrics().lines().any(|other| other == line), "{}", world.gateway.metrics());
}
