//! `backstop endpoint`: the model servers behind a running Backstop.

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;

use anyhow::{Context, bail};
use backstop_core::health::State;
use clap::Subcommand;
use serde::Deserialize;

use crate::client;

/// Look at the endpoints of a running Backstop
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List all endpoints with their state and load
    List(ListArgs),
}

#[derive(clap::Args)]
struct ListArgs {
    /// Where the control API of the running Backstop listens (`admin.listen`)
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090", env = "BACKSTOP_ADMIN")]
    admin: String,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Row {
    service: String,
    version: String,
    url: String,
    state: State,
    reason: String,
    in_flight: u32,
    requests: u64,
    breaker_open: bool,
    ejected: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Command::List(args) = &args.command;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let body = runtime.block_on(fetch(&args.admin))?;
    if args.json {
        println!("{}", String::from_utf8_lossy(&body));
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Row> = serde_json::from_slice(&body).context("the answer is not a list of endpoints")?;
    print!("{}", table(&rows));
    Ok(ExitCode::SUCCESS)
}

async fn fetch(admin: &str) -> anyhow::Result<bytes::Bytes> {
    let addr = address(admin)?;
    let (status, body) = client::get(addr, "/api/v1/endpoints").await.with_context(|| {
        format!(
            "can't ask `{admin}`\nhint: is Backstop running there? Name its `admin.listen` with `--admin`"
        )
    })?;
    if status != 200 {
        bail!("`{admin}` answered {status}\nhint: is that the control API, and not the port of clients?");
    }
    Ok(body)
}

fn address(admin: &str) -> anyhow::Result<SocketAddr> {
    let authority = admin.strip_prefix("http://").unwrap_or(admin).trim_end_matches('/');
    let mut found =
        authority.to_socket_addrs().with_context(|| format!("`{admin}` is not a URL with a port"))?;
    found.next().with_context(|| format!("`{admin}` has no address"))
}

/// Columns as wide as their content; numbers to the right.
fn table(rows: &[Row]) -> String {
    let header =
        ["SERVICE", "VERSION", "ENDPOINT", "STATE", "IN FLIGHT", "ATTEMPTS", "WHY"].map(str::to_owned);
    let lines = std::iter::once(header).chain(rows.iter().map(cells)).collect::<Vec<_>>();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut out = String::new();
    for line in &lines {
        let padded = line.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
            4 | 5 => format!("{cell:>width$}"),
            _ => format!("{cell:<width$}"),
        });
        out += padded.collect::<Vec<_>>().join("  ").trim_end();
        out.push('\n');
    }
    out
}

fn cells(row: &Row) -> [String; 7] {
    let mut why = Vec::new();
    if row.state != State::Healthy {
        why.push(row.reason.as_str());
    }
    if row.breaker_open {
        why.push("breaker open");
    }
    if row.ejected {
        why.push("ejected");
    }
    [
        row.service.clone(),
        row.version.clone(),
        row.url.clone(),
        row.state.to_string(),
        row.in_flight.to_string(),
        row.requests.to_string(),
        why.join("; "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_for_people() {
        let row = |url: &str, state, breaker_open| Row {
            service: "chat".to_owned(),
            version: "v1".to_owned(),
            url: url.to_owned(),
            state,
            reason: "process: connection refused".to_owned(),
            in_flight: 3,
            requests: 1200,
            breaker_open,
            ejected: false,
        };
        let rows =
            [row("http://a:1", State::Healthy, false), row("http://long:8000", State::Unhealthy, true)];
        let expected = "\
SERVICE  VERSION  ENDPOINT          STATE      IN FLIGHT  ATTEMPTS  WHY
chat     v1       http://a:1        healthy            3      1200
chat     v1       http://long:8000  unhealthy          3      1200  process: connection refused; breaker open
";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn addresses() {
        for good in ["http://127.0.0.1:9090", "127.0.0.1:9090/", "http://localhost:9090/"] {
            assert!(address(good).is_ok(), "{good}");
        }
        assert!(address("http://127.0.0.1").is_err());
    }
}
