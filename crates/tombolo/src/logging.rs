//! The log: to standard error, and its latest lines kept for whoever looks at them through procfs. What is logged can be changed while
//! the program runs.

use crate::cli::LogFormat;
use base::WallMs;
use node::{EventMark, Grade, Happened};
use runtime::Latest;
use std::fmt::Write;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// So many lines are kept.
const LINES_MAX: usize = 2000;

/// The latest lines. A process has one log.
static LATEST: Mutex<Latest> = Mutex::new(Latest::new(0, LINES_MAX));
static FILTER: OnceLock<Filter> = OnceLock::new();

struct Filter {
    handle: reload::Handle<EnvFilter, Registry>,
    text: Mutex<String>,
}

/// The lines after that one, by number, at most so many: the latest.
pub(crate) fn since(after: u64, most: u32) -> Vec<Happened> {
    let after = EventMark { incarnation: 0, number: after };
    LATEST.lock().unwrap_or_else(PoisonError::into_inner).since(after, most)
}

/// What is logged, as `TOMBOLO_LOG` says it.
pub(crate) fn filter() -> String {
    FILTER.get().map(|f| f.text.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
}

/// Logs this from now on, said as `TOMBOLO_LOG` says it.
pub(crate) fn set_filter(text: &str) -> Result<(), String> {
    let parsed =
        EnvFilter::try_new(of_level(text)).map_err(|e| format!("it is what TOMBOLO_LOG may be, like debug: {e}"))?;
    let filter = FILTER.get().ok_or("there is no log")?;
    filter.handle.reload(parsed).map_err(|e| e.to_string())?;
    *filter.text.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    Ok(())
}

/// Keeps lines.
struct Keeper;

/// A line as it is put together: the message, then `name=value` of each field.
struct Line(String);

/// What is logged at a level that is all that was said: of libraries not every word.
pub(crate) fn of_level(level: &str) -> &str {
    match level {
        "info" => "warn,fuser=error,runtime=info,transport=info,tombolo=info,vfs=info,procfs=info",
        "debug" => "debug,fjall=warn,lsm_tree=warn,fuser=info",
        other => other,
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            // Where a library's own log says that it is from.
            name if name.starts_with("log.") => Ok(()),
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl<S: Subscriber> Layer<S> for Keeper {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let grade = match *event.metadata().level() {
            Level::ERROR => Grade::Error,
            Level::WARN => Grade::Warn,
            _ => Grade::Info,
        };
        let mut line = Line(String::new());
        event.record(&mut line);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let mut latest = LATEST.lock().unwrap_or_else(PoisonError::into_inner);
        latest.keep(WallMs(now), (grade, event.metadata().target(), line.0));
    }
}

/// Begins to log what `TOMBOLO_LOG` says, or else this.
pub(crate) fn begin(usual: &str, format: LogFormat) {
    let text = std::env::var("TOMBOLO_LOG").ok().filter(|text| EnvFilter::try_new(text).is_ok());
    let text = text.unwrap_or_else(|| usual.into());
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&text));
    let _ = FILTER.set(Filter { handle, text: Mutex::new(text) });
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colour);
    let lines = match format {
        LogFormat::Text => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(filter).with(Keeper).with(lines).init();
}
