//! Commands on a running Backstop, through its control API.

pub(crate) mod config;
pub(crate) mod dependency;
pub(crate) mod drill;
pub(crate) mod endpoint;
pub(crate) mod events;
pub(crate) mod failback;
pub(crate) mod release;
pub(crate) mod reload;
pub(crate) mod snapshot;
pub(crate) mod version;

mod client;
mod definition;
mod table;
pub(crate) mod text;

use std::path::PathBuf;

use serde::Serialize;
use ureq::http::Uri;

use client::Admin;

/// Where the running Backstop is.
#[derive(clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Remote {
    /// Where its control API listens (`admin.listen`)
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:9090",
        env = "BACKSTOP_ADMIN",
        value_parser = admin_url
    )]
    admin: String,
    /// One of its `admin.tokens`; better given in the environment, where other users can't see it
    #[arg(long, value_name = "TOKEN", env = "BACKSTOP_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// PEM file of the authority to trust, for an `https` URL [default: the system's]
    #[arg(long, value_name = "FILE", env = "BACKSTOP_CA")]
    ca: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Remote {
    fn connect(&self) -> anyhow::Result<Admin> {
        Admin::new(&self.admin, self.token.as_deref().filter(|token| !token.is_empty()), self.ca.as_deref())
    }
}

/// Change it only if nobody else has.
#[derive(clap::Args)]
pub(crate) struct Guard {
    /// Only if this is still the revision: what `backstop config` said when you looked
    #[arg(long, value_name = "N")]
    if_revision: Option<u64>,
}

/// `http://host:port`, however much of it was written.
fn admin_url(text: &str) -> Result<String, String> {
    let expected = || format!("`{text}` is not the URL of a control API, such as `http://127.0.0.1:9090`");
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = url.trim_end_matches('/').parse().map_err(|_| expected())?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(expected)?;
    match (uri.scheme_str(), uri.path(), uri.query()) {
        (Some("http" | "https"), "/", None) if !host.contains(' ') => {}
        _ => return Err(expected()),
    }
    if uri.port_u16().is_none() {
        return Err(format!("`{text}` has no port; the usual one is 9090"));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (given, taken) in [
            ("http://127.0.0.1:9090", "http://127.0.0.1:9090"),
            ("127.0.0.1:9090/", "http://127.0.0.1:9090"),
            ("https://backstop.example:9090/", "https://backstop.example:9090"),
            ("[::1]:9090", "http://[::1]:9090"),
        ] {
            assert_eq!(admin_url(given).as_deref(), Ok(taken));
        }
        for bad in [
            "",
            "nonsense",
            "http://127.0.0.1",
            "ftp://h:1",
            "http://h:1/api",
            "http://h:1?x",
            "http://h:x",
            "http://:1",
        ] {
            assert!(admin_url(bad).is_err(), "{bad}");
        }
    }
}
