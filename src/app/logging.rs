//! The log of banmesh, on standard error.

mod limit;

use tracing::level_filters::LevelFilter;
use tracing::{Level, debug, error, info, warn};
use tracing_subscriber::filter::FilterExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

use self::limit::{HeldBack, LineLimit};
use crate::config::{LogConfig, LogFormat, LogLevel};

/// Changes the level of a running log, and reports the lines that it held back.
#[derive(Clone, Debug)]
pub struct LogControl {
    filter: reload::Handle<EnvFilter, Registry>,
    limit: LineLimit,
}

/// The message of a summary.
const TOO_MANY: &str = "too many log lines of one kind: these were not written";

/// Starts the log. A log that is already running, as in tests, stays.
pub fn start(config: &LogConfig) -> LogControl {
    let (filter, handle) = reload::Layer::new(filter(config.level));
    let limit = LineLimit::default();
    let filter = filter.and(limit.clone());
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let layer = match config.format {
        LogFormat::Human => {
            layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_filter(filter).boxed()
        }
        LogFormat::Json => layer.json().flatten_event(true).with_filter(filter).boxed(),
    };
    // An error means that a log is already running.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    LogControl { filter: handle, limit }
}

impl LogControl {
    /// Sets the level.
    pub fn set_level(&self, level: LogLevel) {
        // An error means that the log has ended.
        let _ = self.filter.reload(filter(level));
    }

    /// Logs how many lines were held back since the last call, for each place in the code that logs too much. Call it once a second.
    pub fn summarise(&self) {
        for HeldBack { level, message, lines } in self.limit.take() {
            match level {
                Level::ERROR => error!(lines, like = message, "{TOO_MANY}"),
                Level::WARN => warn!(lines, like = message, "{TOO_MANY}"),
                Level::INFO => info!(lines, like = message, "{TOO_MANY}"),
                _ => debug!(lines, like = message, "{TOO_MANY}"),
            }
        }
    }

    /// Registers the counter of the lines that were held back.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        let help = "Log lines that were not written because there were too many of one kind";
        registry.register("banmesh_log_lines_held_back", help, self.limit.held_back());
    }
}

/// Lines of banmesh at `level`, audit lines at every level, and lines of libraries only if they are errors (at `trace`: up to debug).
fn filter(level: LogLevel) -> EnvFilter {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let others = if level == LevelFilter::TRACE { LevelFilter::DEBUG } else { LevelFilter::ERROR.min(level) };
    EnvFilter::new(format!("{others},banmesh={level},audit=info"))
}
