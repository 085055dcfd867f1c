use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backstop_config::{Config, Store};
use backstop_controller::Control;
use backstop_gateway::{Gateway, Leave, Listener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::handover::{Handover, Predecessor, notify};
use crate::listeners::Listeners;
use crate::log::{self, AccessLog, Format};
use crate::plane::Plane;
use crate::tls::{self, AdminListener};
use crate::{duration, releases, tiers, watch};

/// Serve: stand between clients and model servers
///
/// The configuration is reloaded when its file changes and on SIGHUP; a bad one is refused and the old one keeps
/// serving. SIGTERM and SIGINT stop gracefully: no new connections, requests in flight may end for the drain time,
/// and what is left then ends with a proper error. SIGUSR2 starts the program anew and hands over to it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "backstop.yaml")]
    config: PathBuf,
    /// How long requests in flight may take to end when stopping
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    drain: Duration,
    /// Take over from the process that serves with the same `state_dir`, if there is one
    ///
    /// No connection is refused or lost: both accept from the same sockets. The old process serves on until this one
    /// does, or fails; then it drains for its own `--drain` and ends.
    #[arg(long)]
    take_over: bool,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Form of the log on standard error
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    log_format: Format,
    /// Least severe lines to log: error, warn, info, debug or trace, or a filter such as `info,hyper=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "BACKSTOP_LOG")]
    log_level: String,
    /// Which requests get a line in the log
    #[arg(long, value_name = "WHICH", default_value = "all")]
    access_log: AccessLog,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    // Before the file is understood, so that a change in between is noticed as one.
    let content = std::fs::read(&args.config).unwrap_or_default();
    let config = match backstop_config::load(&args.config) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{problems}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let _guard = log::init(args.log_format, &args.log_level, args.access_log)?;
    raise_descriptor_limit();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = args.threads {
        runtime.worker_threads(threads.into());
    }
    runtime.enable_all().build()?.block_on(serve(args, content, config))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: Args, content: Vec<u8>, config: Config) -> anyhow::Result<()> {
    let mut predecessor = None;
    let mut hint = "if it is a backstop that this one is to replace, add `--take-over`";
    if args.take_over {
        predecessor = Predecessor::find(config.state_dir()).await?;
        hint = "a process that can be taken over has the same `state_dir`, seen from the same directory";
    }
    let handed = predecessor.as_mut().map(Predecessor::take_sockets).unwrap_or_default();
    let listeners = Listeners::open(&config, handed, hint)?;
    let copies = listeners.copies(&config)?;
    let state_dir = config.state_dir().to_owned();
    let store = config.store().clone();
    let gateway = Arc::new(Gateway::new());
    tiers::restore(&gateway, &state_dir);
    let certificate = tls::certificate(&gateway, Listener::Clients, config.tls())?;
    let admin_certificate = tls::certificate(&gateway, Listener::Admin, config.admin_tls())?;
    let plane = Arc::new(Plane(Arc::clone(&gateway)));
    let keeping = tokio::spawn(tiers::keep(Arc::clone(&gateway), state_dir.clone()));
    let control = Arc::new(Control::start(&args.config, config, plane)?);
    let handover = Handover::new(&state_dir, copies, predecessor, Arc::clone(&control))?;
    handover.prepared(&gateway).await;
    let Listeners { gateway: listener, admin } = listeners;
    info!(listen = %listener.local_addr()?, admin = %admin.local_addr()?, "serving");
    let admin = AdminListener::new(admin, admin_certificate.as_ref());

    let (stop, hurry) = signals()?;
    let closing = Arc::clone(&gateway);
    let hurrying = tokio::spawn(async move {
        hurry.await;
        closing.close();
    });
    // Kept until the end: the control API is there while requests end.
    let (admin_ends, admin_end) = oneshot::channel();
    let mut admin_ends = Some(admin_ends);
    let mut refused = Ok(());
    let leave = async {
        tokio::select! {
            () = stop => {
                notify("STOPPING=1");
                Leave::Stop
            }
            led = lead(handover, control, content, store, admin, (&mut admin_ends, admin_end)) => match led {
                Ok(()) => {
                    // From now on the new process knows better.
                    keeping.abort();
                    Leave::HandOver
                }
                Err(error) => {
                    refused = Err(error);
                    Leave::Stop
                }
            }
        }
    };
    gateway.serve(listener, certificate.as_ref(), leave, args.drain).await;
    hurrying.abort();
    keeping.abort();
    info!("stopped");
    refused
}

/// What only one process of a hand-over may do, from when this one may to when another one does: be found by the next,
/// take changes, and keep them.
async fn lead(
    mut handover: Handover,
    control: Arc<Control>,
    content: Vec<u8>,
    store: Store,
    admin: AdminListener,
    (admin_ends, admin_end): (&mut Option<oneshot::Sender<()>>, oneshot::Receiver<()>),
) -> anyhow::Result<()> {
    handover.relieve().await?;
    let reloading = tokio::spawn(watch::reload(Arc::clone(&control), content));
    let ended = async { drop(admin_end.await) };
    let releases = Arc::new(OnceLock::new());
    let releasing = tokio::spawn(releases::look_after(store, Arc::clone(&control), Arc::clone(&releases)));
    drop(tokio::spawn(backstop_controller::serve(admin, Arc::clone(&control), releases, ended)));
    handover.until_handed_over().await;
    // The store is the other process's from now on.
    releasing.abort();
    // The next call of the API is for the other process.
    *admin_ends = None;
    reloading.abort();
    drop(tokio::spawn(watch::follow(control)));
    Ok(())
}

/// Each stream takes two descriptors, and the usual soft limit of 1,024 is soft for the sake of programs that use
/// `select`; this one does not.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "the limit of open descriptors could not be raised");
    }
}

/// Two futures: the first resolves when the process is told to stop, the second when it is told again.
fn signals() -> anyhow::Result<(impl Future<Output = ()>, impl Future<Output = ()>)> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A limit on the size of files (`ulimit -f`) makes a write fail, as a full disk does, and must not end the process.
    drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
    let (stop, stopped) = oneshot::channel();
    let hurry = async move {
        let mut stop = Some(stop);
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            let Some(stop) = stop.take() else {
                warn!("{name} again: closing what is left");
                return;
            };
            info!("{name}: stopping");
            // The other side is gone only if the gateway has stopped already.
            let _ = stop.send(());
        }
    };
    Ok((async move { drop(stopped.await) }, hurry))
}
