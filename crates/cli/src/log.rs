//! Where log lines go: to standard error, through a bounded buffer and a thread of its own, so that a slow
//! terminal or a full pipe never holds up a request.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The most that may wait to be written, in bytes; what comes beyond it is dropped and counted.
const MAX_WAITING: usize = 4 * 1024 * 1024;
/// Lines are written together at this interval.
const INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for people
    Human,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccessLog {
    /// One line for each request
    All,
    /// One line for each request that failed or was cut
    Errors,
    /// None
    Off,
}

/// Sets up logging for the process. Lines still waiting are written when the guard is dropped.
pub(crate) fn init(format: Format, level: &str, access: AccessLog) -> anyhow::Result<Guard> {
    let access = match access {
        AccessLog::All => "info",
        AccessLog::Errors => "warn",
        AccessLog::Off => "off",
    };
    let filter = EnvFilter::try_new(format!("{level},backstop::access={access}"))?;
    let lines = Lines::start()?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines.clone());
    match format {
        Format::Human => {
            builder.with_target(false).with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init()
        }
        Format::Json => builder.json().flatten_event(true).with_target(false).init(),
    }
    Ok(Guard(lines))
}

/// Writes what is left.
pub(crate) struct Guard(Lines);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.flush();
    }
}

#[derive(Clone)]
struct Lines(Arc<Waiting>);

struct Waiting {
    buffer: Mutex<Buffer>,
    filled: Condvar,
    /// Held while writing, so that lines keep their order.
    writing: Mutex<()>,
}

#[derive(Default)]
struct Buffer {
    text: Vec<u8>,
    dropped: u64,
}

impl Lines {
    fn start() -> io::Result<Self> {
        let lines = Self(Arc::new(Waiting {
            buffer: Mutex::default(),
            filled: Condvar::new(),
            writing: Mutex::default(),
        }));
        let writer = lines.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            loop {
                writer.wait();
                writer.flush();
                // Whatever comes meanwhile is written together.
                std::thread::sleep(INTERVAL);
            }
        })?;
        Ok(lines)
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.0.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        let waiting = self.0.filled.wait_while(self.lock(), |buffer| buffer.text.is_empty());
        drop(waiting);
    }

    fn flush(&self) {
        let _in_order = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Buffer { mut text, dropped } = std::mem::take(&mut *self.lock());
        if dropped > 0 {
            text.extend_from_slice(
                format!("{dropped} log lines dropped: the log is not read fast enough\n").as_bytes(),
            );
        }
        // There is nobody left to tell that the log can't be written.
        let _ = io::stderr().lock().write_all(&text);
    }
}

impl Write for &Lines {
    /// Takes the line, or drops it, but never waits.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut buffer = self.lock();
        if buffer.text.len() + line.len() > MAX_WAITING {
            buffer.dropped += 1;
        } else {
            let was_empty = buffer.text.is_empty();
            buffer.text.extend_from_slice(line);
            if was_empty {
                self.0.filled.notify_one();
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Lines;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}
