//! The proxies under test and their configuration, as a list: a new peer is one more entry.
//!
//! All keep connections on both sides alive, write no access log and pass tokens on at once; what else
//! they do by default they do here too.

use super::{Launch, Limits, Peer, Site, Source};

/// Peers that ratios are taken to, if they are in the run. The first two are in every table.
pub(crate) const BASES: [&str; 5] = ["bare", "nginx", "vllm-router", NO_RESUME, "backstop"];

/// What carrying streams on elsewhere costs those that need not be.
pub(crate) const NO_RESUME: &str = "backstop-no-resume";

/// What a release under way costs the requests that it splits.
pub(crate) const RELEASING: &str = "backstop-releasing";

pub(crate) static PEERS: &[Peer] = &[
    Peer {
        name: "bare",
        about: "hyper server and hyper-util client with keep-alive, nothing else",
        source: Source::Own,
        readiness: None,
        limits: None,
        launch: bare,
    },
    Peer {
        name: "nginx",
        about: "nginx with `proxy_buffering off`, keep-alive to the upstream, no access log",
        source: Source::Debian { version_flag: "-v" },
        readiness: None,
        limits: None,
        launch: nginx,
    },
    Peer {
        name: "haproxy",
        about: "HAProxy with `http-reuse always` and `http-no-delay`, no log",
        source: Source::Debian { version_flag: "-v" },
        readiness: None,
        limits: None,
        launch: haproxy,
    },
    Peer {
        name: "backstop",
        about: "Backstop with routing, balancing, retries, event checks and health checks on, no access log",
        source: Source::Backstop,
        readiness: Some("/health/readiness"),
        limits: None,
        launch: backstop,
    },
    Peer {
        name: NO_RESUME,
        about: "the same without mid-stream failover (`resume: { attempts: 0 }`)",
        source: Source::Backstop,
        readiness: Some("/health/readiness"),
        limits: None,
        launch: backstop_without_resume,
    },
    Peer {
        name: RELEASING,
        about: "the same as the first with a release under way: each request is assigned to one of two versions, and is evidence",
        source: Source::Backstop,
        readiness: Some("/health/readiness"),
        limits: None,
        launch: backstop_releasing,
    },
    Peer {
        name: "vllm-router",
        about: "vllm-router with one static worker, round robin; retries, breaker, health checks and metrics on",
        source: Source::Python,
        readiness: None,
        limits: None,
        launch: vllm_router,
    },
    Peer {
        name: "sglang-router",
        about: "SGLang's router with one static worker, round robin; retries, breaker, health checks and metrics on",
        source: Source::Python,
        readiness: None,
        limits: None,
        launch: sglang_router,
    },
    Peer {
        name: "litellm",
        about: "LiteLLM proxy with one worker and one model; no key, no database, no outgoing network",
        source: Source::Python,
        readiness: None,
        limits: Some(Limits { connections: 4, seconds: 2, paced_streams: 40, idle_streams: 200 }),
        launch: litellm,
    },
];

/// Keeps a client's settings for outgoing traffic from sending loopback traffic elsewhere.
const NO_PROXY: (&str, &str) = ("NO_PROXY", "127.0.0.1");

fn bare(site: &Site) -> Launch {
    let args = [
        "proxy".to_owned(),
        format!("--listen=127.0.0.1:{}", site.port),
        format!("--upstream=127.0.0.1:{}", site.upstream),
        format!("--threads={}", site.threads),
    ];
    Launch { args: args.into(), ..Launch::default() }
}

fn nginx(site: &Site) -> Launch {
    let Site { port, upstream, threads, .. } = site;
    let directory = site.directory.display();
    // nginx begins to close waiting connections when less than a sixteenth of the slots is free.
    let slots = site.connections * 9 / 4 + 512;
    let config = format!(
        r#"daemon off;
worker_processes {threads};
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log warn;
events {{ worker_connections {slots}; }}
http {{
  access_log off;
  client_body_temp_path {directory}/nginx-body;
  proxy_temp_path {directory}/nginx-proxy;
  fastcgi_temp_path {directory}/nginx-fastcgi;
  uwsgi_temp_path {directory}/nginx-uwsgi;
  scgi_temp_path {directory}/nginx-scgi;
  keepalive_requests 1000000000;
  upstream bench {{
    server 127.0.0.1:{upstream};
    keepalive 64;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://bench;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 24h;
    }}
  }}
}}
"#
    );
    let log = format!("{directory}/nginx-start.log");
    let args = ["-e".to_owned(), log, "-c".to_owned(), format!("{directory}/nginx.conf")];
    Launch { args: args.into(), file: Some(("nginx.conf", config)), ..Launch::default() }
}

fn haproxy(site: &Site) -> Launch {
    let Site { port, upstream, threads, .. } = site;
    // HAProxy closes waiting connections to servers once a fifth of its descriptors is in use.
    let slots = site.connections + 512;
    let config = format!(
        "global
  nbthread {threads}
  maxconn {slots}
defaults
  mode http
  http-reuse always
  option http-no-delay
  timeout connect 5s
  timeout client 24h
  timeout server 24h
frontend clients
  bind 127.0.0.1:{port} backlog 4096
  default_backend bench
backend bench
  server upstream 127.0.0.1:{upstream}
"
    );
    let path = format!("{}/haproxy.cfg", site.directory.display());
    Launch { args: words("-db -f", [path]), file: Some(("haproxy.cfg", config)), ..Launch::default() }
}

fn backstop(site: &Site) -> Launch {
    backstop_with(site, &["v1"], "")
}

fn backstop_without_resume(site: &Site) -> Launch {
    backstop_with(site, &["v1"], "    resume: { attempts: 0 }\n")
}

/// Both versions are the same upstream, so that nothing else differs.
fn backstop_releasing(site: &Site) -> Launch {
    let release = "    release: { steps: [{ weight: 50%, hold: 1h }, { weight: 100% }], alpha: 0.000001 }\n";
    Launch { releases: Some(site.second_port), ..backstop_with(site, &["v1", "v2"], release) }
}

/// `more`: lines of the service.
fn backstop_with(site: &Site, versions: &[&str], more: &str) -> Launch {
    let Site { port, second_port, upstream, .. } = site;
    let directory = site.directory.display();
    let version = |name| {
        format!(r#"{{ name: {name}, endpoints: [{{ url: "http://127.0.0.1:{upstream}", engine: vllm }}] }}"#)
    };
    let versions: Vec<String> = versions.iter().map(version).collect();
    let versions = versions.join(", ");
    let config = format!(
        r#"listen: 127.0.0.1:{port}
admin: {{ listen: 127.0.0.1:{second_port} }}
store: "memory:"
state_dir: "{directory}/state-{port}"
services:
  - name: bench
    models: [bench]
    versions: [{versions}]
    timeouts: {{ first_token: 60s, inter_token: 120s, total: 24h }}
{more}"#
    );
    let threads = site.threads.to_string();
    let path = format!("{}/backstop.yaml", site.directory.display());
    Launch {
        args: words(&format!("serve --access-log off --threads {threads} -c"), [path]),
        env: vec![("TOKIO_WORKER_THREADS", threads)],
        file: Some(("backstop.yaml", config)),
        releases: None,
    }
}

fn vllm_router(site: &Site) -> Launch {
    let Site { port, second_port, upstream, .. } = site;
    let flags = format!(
        "--host 127.0.0.1 --port {port} --worker-urls http://127.0.0.1:{upstream} --policy round_robin \
         --log-level warning --prometheus-port {second_port} --request-timeout-secs 86400"
    );
    Launch { args: words(&flags, []), env: tokio_env(site), ..Launch::default() }
}

fn sglang_router(site: &Site) -> Launch {
    let Site { port, second_port, upstream, .. } = site;
    let flags = format!(
        "launch --host 127.0.0.1 --port {port} --worker-urls http://127.0.0.1:{upstream} --policy round_robin \
         --log-level warn --prometheus-host 127.0.0.1 --prometheus-port {second_port} \
         --request-timeout-secs 86400 --shutdown-grace-period-secs 1"
    );
    Launch { args: words(&flags, []), env: tokio_env(site), ..Launch::default() }
}

/// The routers take no option for the number of their threads.
fn tokio_env(site: &Site) -> Vec<(&'static str, String)> {
    vec![("TOKIO_WORKER_THREADS", site.threads.to_string()), (NO_PROXY.0, NO_PROXY.1.to_owned())]
}

fn litellm(site: &Site) -> Launch {
    let config = format!(
        "model_list:
  - model_name: bench
    litellm_params:
      model: openai/bench
      api_base: http://127.0.0.1:{}/v1
      api_key: none
",
        site.upstream
    );
    let flags = format!("--host 127.0.0.1 --port {} --num_workers {} --config", site.port, site.threads);
    let path = format!("{}/litellm.yaml", site.directory.display());
    let env = [
        ("LITELLM_MODE", "PRODUCTION"),
        ("LITELLM_OFFLINE_MODE", "true"),
        ("LITELLM_LOG", "ERROR"),
        ("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true"),
        NO_PROXY,
    ];
    Launch {
        args: words(&flags, [path]),
        env: env.map(|(key, value)| (key, value.to_owned())).into(),
        file: Some(("litellm.yaml", config)),
        ..Launch::default()
    }
}

/// The words of `flags`, then `rest` as it is: a path may have spaces in it.
fn words<const N: usize>(flags: &str, rest: [String; N]) -> Vec<String> {
    flags.split(' ').map(str::to_owned).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setup_names_its_ports_and_no_path_of_this_machine() {
        let here = std::env::current_dir().unwrap();
        for peer in PEERS {
            let setup = peer.setup(1, 9_000);
            assert!(setup.contains(":8000") || setup.contains("--port 8000"), "{setup}");
            assert!(setup.contains("127.0.0.1:9000"), "{setup}");
            assert!(!setup.contains(here.to_str().unwrap()), "{setup}");
        }
    }

    #[test]
    fn names_are_unique_and_bases_exist() {
        for (index, peer) in PEERS.iter().enumerate() {
            assert!(PEERS[..index].iter().all(|other| other.name != peer.name), "{}", peer.name);
        }
        assert!(BASES.iter().all(|base| PEERS.iter().any(|peer| peer.name == *base)));
    }
}
