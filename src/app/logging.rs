//! The log of banmesh, on standard error.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

use crate::config::{LogConfig, LogFormat, LogLevel};

/// Changes the level of a running log.
#[derive(Clone, Debug)]
pub struct LogControl {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Starts the log. A log that is already running, as in tests, stays.
pub fn start(config: &LogConfig) -> LogControl {
    let (filter, handle) = reload::Layer::new(filter(config.level));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let layer = match config.format {
        LogFormat::Human => {
            layer.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_filter(filter).boxed()
        }
        LogFormat::Json => layer.json().flatten_event(true).with_filter(filter).boxed(),
    };
    // An error means that a log is already running.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    LogControl { filter: handle }
}

impl LogControl {
    /// Sets the level.
    pub fn set_level(&self, level: LogLevel) {
        // An error means that the log has ended.
        let _ = self.filter.reload(filter(level));
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
