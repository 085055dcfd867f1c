//! `backstop key`: API keys of clients. Only their hashes are kept.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use rand::RngExt;
use rand::distr::Alphanumeric;
use serde_json::json;

/// Of 62 characters each: 238 bits.
const LENGTH: usize = 40;

/// Make API keys for clients
///
/// Backstop keeps only the hash of a key, in `keys` of the configuration file. Clients send the key itself, as OpenAI's
/// SDKs do with theirs.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(CreateArgs),
    Hash(HashArgs),
}

/// Make a new key, and show it this once
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  backstop key create --name team-a
  backstop key create --name batch --tenant research --services chat,embed")]
struct CreateArgs {
    /// What logs and metrics call the client
    #[arg(long, value_name = "NAME", default_value = "client", value_parser = name)]
    name: String,
    /// Whom its requests count for [default: the key itself]
    #[arg(long, value_name = "TENANT", value_parser = name)]
    tenant: Option<String>,
    /// The services that it may use, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = name)]
    services: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Print the hash of a key that is read from standard input
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  backstop key hash < key.txt")]
struct HashArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn name(text: &str) -> Result<String, String> {
    backstop_config::check_name(text).map(|()| text.to_owned())
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Create(args) => create(args)?,
        Command::Hash(args) => hash(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn create(args: &CreateArgs) -> anyhow::Result<()> {
    let random = rand::rng().sample_iter(Alphanumeric).take(LENGTH).map(char::from);
    let key: String = "sk-bs-".chars().chain(random).collect();
    let hash = hash_of(&key)?;
    if args.json {
        let CreateArgs { name, tenant, services, .. } = args;
        let services = Some(services).filter(|services| !services.is_empty());
        let all = json!({ "name": name, "key": key, "hash": hash, "tenant": tenant, "services": services });
        println!("{all:#}");
        return Ok(());
    }
    println!("key   {key}\nhash  {hash}\n");
    println!("The key is for the client and is shown only this once. Under `keys:` in backstop.yaml goes:\n");
    println!("  - {}", yaml(args, &hash)?);
    Ok(())
}

/// The entry of the configuration file. JSON's quotes are YAML's too.
fn yaml(args: &CreateArgs, hash: &str) -> anyhow::Result<String> {
    let quoted = serde_json::to_string::<str>;
    let mut line = format!("{{ name: {}, hash: {}", quoted(&args.name)?, quoted(hash)?);
    if let Some(tenant) = &args.tenant {
        line += &format!(", tenant: {}", quoted(tenant)?);
    }
    if !args.services.is_empty() {
        let names = args.services.iter().map(|service| quoted(service)).collect::<Result<Vec<_>, _>>()?;
        line += &format!(", services: [{}]", names.join(", "));
    }
    Ok(line + " }")
}

fn hash(args: &HashArgs) -> anyhow::Result<()> {
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("type or paste the key, then Enter:");
    }
    let mut key = String::new();
    if stdin.is_terminal() {
        stdin.read_line(&mut key)?;
    } else {
        // One more than a key ever has is enough to know.
        stdin.by_ref().take(64 * 1024).read_to_string(&mut key).context("standard input is not text")?;
    }
    let hash = hash_of(key.trim_end_matches(['\r', '\n']))?;
    if args.json {
        println!("{:#}", json!({ "hash": hash }));
    } else {
        println!("{hash}");
    }
    Ok(())
}

fn hash_of(key: &str) -> anyhow::Result<String> {
    match backstop_config::key_hash(key) {
        Ok(hash) => Ok(hash),
        Err(what) => bail!(
            "the key {what}\nhint: give just the key, such as `sk-bs-…`, on standard input; `backstop key create` makes one"
        ),
    }
}
