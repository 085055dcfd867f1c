use std::path::PathBuf;
use std::process::ExitCode;

use backstop_config::Problems;

use crate::tls;

/// Check a configuration file and list everything that is wrong with it
///
/// Exits with 0 if the file can be served, with 1 if not. Every problem is reported with file, line and column,
/// the key, the value, what is expected and, for a name, the nearest valid one.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The configuration file
    #[arg(value_name = "FILE", default_value = "backstop.yaml")]
    file: PathBuf,
    /// Print the JSON schema of the configuration instead
    #[arg(long)]
    schema: bool,
    /// Print the problems as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.schema {
        println!("{}", serde_json::to_string_pretty(&backstop_config::schema())?);
        return Ok(ExitCode::SUCCESS);
    }
    let problems = match backstop_config::load(&args.file) {
        Ok(config) => {
            let table = backstop_config::compile(&config, &backstop_config::Intent::default(), 1);
            let (problems, warnings) = tls::check_files(&args.file, &config, &table);
            for warning in warnings {
                eprintln!("warning: {}: {warning}", args.file.display());
            }
            if !problems.is_empty() {
                return report(args, problems.into());
            }
            if args.json {
                println!("[]");
            } else {
                let endpoints =
                    table.services.iter().flat_map(|s| &s.versions).map(|v| v.endpoints.len()).sum();
                println!(
                    "{}: ok, {}, {}",
                    args.file.display(),
                    count(table.services.len(), "service"),
                    count(endpoints, "endpoint")
                );
            }
            return Ok(ExitCode::SUCCESS);
        }
        Err(problems) => problems,
    };
    report(args, problems)
}

fn report(args: &Args, problems: Problems) -> anyhow::Result<ExitCode> {
    if args.json {
        println!("{}", serde_json::to_string_pretty(&problems)?);
    } else {
        eprintln!("{problems}\n\n{} in {}", count(problems.len(), "problem"), args.file.display());
    }
    Ok(ExitCode::FAILURE)
}

fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
