//! The control API's client.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{Method, Request, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body, Error};

/// How long an answer may take, except for a stream of events.
const TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer.
const MOST_BYTES: u64 = 256 << 20;

/// The control API of a running Backstop.
pub(crate) struct Admin {
    agent: Agent,
    url: String,
    token: Option<String>,
}

/// A request to it.
pub(crate) struct Call<'a> {
    method: Method,
    path: &'a str,
    query: Vec<(&'static str, String)>,
    body: Option<Value>,
    if_revision: Option<u64>,
    last_event: Option<String>,
}

impl<'a> Call<'a> {
    fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, query: Vec::new(), body: None, if_revision: None, last_event: None }
    }

    pub(crate) fn get(path: &'a str) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn post(path: &'a str) -> Self {
        Self::new(Method::POST, path)
    }

    pub(crate) fn delete(path: &'a str) -> Self {
        Self::new(Method::DELETE, path)
    }

    pub(crate) fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name, value.to_string())));
        self
    }

    pub(crate) fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    /// What `id` said of the last event that has come.
    pub(crate) fn last_event(mut self, id: Option<&str>) -> Self {
        self.last_event = id.map(str::to_owned);
        self
    }

    pub(crate) fn if_revision(mut self, revision: Option<u64>) -> Self {
        self.if_revision = revision;
        self
    }
}

/// The body of an answer that is not a success.
#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    code: String,
    message: String,
    hint: Option<String>,
    #[serde(default)]
    problems: Vec<Problem>,
    revision: Option<u64>,
}

/// A mistake in a configuration.
#[derive(Deserialize)]
struct Problem {
    /// Empty if its place is not to be told.
    file: String,
    line: usize,
    column: usize,
    path: String,
    message: String,
    expected: Option<String>,
    hint: Option<String>,
}

impl Admin {
    pub(crate) fn new(url: &str, token: Option<&str>, ca: Option<&Path>) -> anyhow::Result<Self> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .user_agent(concat!("backstop/", env!("CARGO_PKG_VERSION")));
        if url.starts_with("https:") {
            let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
            let tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
            config = config.tls_config(tls.root_certs(authorities(ca)?).build());
        } else if ca.is_some() {
            bail!(
                "`--ca` is for an `https` URL, and `{url}` is not one\nhint: name `https://…` with `--admin`"
            );
        }
        Ok(Self { agent: config.build().into(), url: url.to_owned(), token: token.map(str::to_owned) })
    }

    /// The answer, read whole.
    pub(crate) fn json<T: DeserializeOwned>(&self, call: Call<'_>) -> anyhow::Result<T> {
        let mut response = self.send(call, Some(TIMEOUT))?;
        let body = response.body_mut().with_config().limit(MOST_BYTES).read_to_vec();
        let body = body.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&body).with_context(|| {
            format!("the answer of `{}` can't be read\nhint: is this `backstop` older?", self.url)
        })
    }

    /// An answer that is no JSON.
    pub(crate) fn text(&self, call: Call<'_>) -> anyhow::Result<String> {
        let mut response = self.send(call, Some(TIMEOUT))?;
        let text = response.body_mut().with_config().limit(MOST_BYTES).read_to_string();
        text.map_err(|error| self.unreachable(&error))
    }

    /// The lines of an answer that may go on for ever.
    pub(crate) fn lines(&self, call: Call<'_>) -> anyhow::Result<impl BufRead + use<>> {
        let response = self.send(call, None)?;
        Ok(BufReader::new(response.into_body().into_reader()))
    }

    fn send(&self, call: Call<'_>, timeout: Option<Duration>) -> anyhow::Result<Response<Body>> {
        let mut uri = format!("{}{}", self.url, call.path);
        for (index, (name, value)) in call.query.iter().enumerate() {
            uri += if index == 0 { "?" } else { "&" };
            uri += &format!("{name}={}", encode(value));
        }
        let mut request = Request::builder().method(call.method).uri(uri);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(revision) = call.if_revision {
            request = request.header("if-match", format!("\"{revision}\""));
        }
        if let Some(id) = call.last_event {
            request = request.header("last-event-id", id);
        }
        let agent = &self.agent;
        let answered = match call.body {
            Some(body) => {
                let request = request.header("content-type", "application/json").body(body.to_string());
                let request = request.map_err(|error| self.not_sent(&error))?;
                agent.run(agent.configure_request(request).timeout_recv_response(timeout).build())
            }
            None => {
                let request = request.body(()).map_err(|error| self.not_sent(&error))?;
                agent.run(agent.configure_request(request).timeout_recv_response(timeout).build())
            }
        };
        let response = answered.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response)) }
    }

    /// The token, the only free text that goes into a header, can't be sent.
    fn not_sent(&self, error: &ureq::http::Error) -> anyhow::Error {
        anyhow!("can't ask `{}`: {error}\nhint: is the token whole, without spaces and line ends?", self.url)
    }

    /// What the answer says, as an error.
    fn refusal(&self, mut response: Response<Body>) -> anyhow::Error {
        let status = response.status().as_u16();
        let mut body = Vec::new();
        // What can't be read is no answer of ours either.
        let _ = response.body_mut().as_reader().take(1 << 20).read_to_end(&mut body);
        let Ok(ErrorBody { error }) = serde_json::from_slice(&body) else {
            return anyhow!(
                "`{}` answered {status}, but not as Backstop does\nhint: is that the control API (`admin.listen`), and \
                 not the port of clients?",
                self.url
            );
        };
        let hint = match status {
            401 if self.token.is_none() => Some("set BACKSTOP_TOKEN to one of its `admin.tokens`".to_owned()),
            401 => {
                Some("look at BACKSTOP_TOKEN or `--token`: it must be one of its `admin.tokens`".to_owned())
            }
            412 => error.revision.map(|revision| {
                format!(
                    "look at what changed (`backstop config`), then repeat with `--if-revision {revision}`"
                )
            }),
            _ => error.hint,
        };
        let mut told = error.message;
        for mut problem in error.problems {
            // A place in the text that we have sent tells nobody anything.
            if error.code == "invalid_endpoint" || problem.file.is_empty() {
                problem.file.clear();
            }
            told += &format!("\n{problem}");
        }
        if let Some(hint) = hint {
            told += &format!("\nhint: {hint}");
        }
        anyhow!(told)
    }

    /// Why there is no answer.
    fn unreachable(&self, error: &Error) -> anyhow::Error {
        let url = &self.url;
        let nobody = "is Backstop running there? Name its `admin.listen` with `--admin` or BACKSTOP_ADMIN";
        let tls = |error: &rustls::Error| match error {
            rustls::Error::InvalidCertificate(reason) => anyhow!(
                "the certificate of `{url}` is not to be trusted: {reason}\nhint: name the authority that signed it with \
                 `--ca FILE`, and use the name that it is for in the URL"
            ),
            rustls::Error::InvalidMessage(_) => {
                anyhow!("`{url}` does not speak TLS\nhint: is it `http://`?")
            }
            other => anyhow!("no TLS connection with `{url}`: {other}"),
        };
        match error {
            Error::Rustls(error) => tls(error),
            Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(error) => tls(error),
                None => anyhow!("can't reach `{url}`: {error}\nhint: {nobody}"),
            },
            Error::HostNotFound => anyhow!("there is no host of the name in `{url}`\nhint: {nobody}"),
            Error::Timeout(_) => anyhow!("`{url}` does not answer\nhint: {nobody}"),
            Error::Protocol(_) => anyhow!(
                "`{url}` does not answer as a web server does\nhint: is it `https://`, with TLS? If not: {nobody}"
            ),
            other => anyhow!("can't ask `{url}`: {other}\nhint: {nobody}"),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("  ")?;
        if !self.file.is_empty() {
            f.write_str(&self.file)?;
            if self.line > 0 {
                write!(f, ":{}:{}", self.line, self.column)?;
            }
            f.write_str(": ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        for (what, text) in [("expected", &self.expected), ("hint", &self.hint)] {
            if let Some(text) = text {
                write!(f, "\n    {what}: {text}")?;
            }
        }
        Ok(())
    }
}

/// The authorities in `ca`, or the system's.
fn authorities(ca: Option<&Path>) -> anyhow::Result<RootCerts> {
    let Some(path) = ca else {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            bail!("this system has no list of authorities to trust\nhint: name one with `--ca FILE`");
        }
        let owned = |der: &rustls::pki_types::CertificateDer<'_>| Certificate::from_der(der).to_owned();
        return Ok(found.certs.iter().map(owned).collect::<Vec<_>>().into());
    };
    let pem = std::fs::read(path).with_context(|| format!("can't read `{}`", path.display()))?;
    let mut certificates = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        if let Ok(PemItem::Certificate(certificate)) = item {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        bail!(
            "there is no certificate in `{}`\nhint: it must be a PEM file, with `-----BEGIN CERTIFICATE-----`",
            path.display()
        );
    }
    Ok(certificates.into())
}

/// A value in a query or in a path.
pub(crate) fn encode(value: &str) -> String {
    let mut out = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}
