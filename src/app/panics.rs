//! Logs and counts every panic, so that even the failure of a single connection's task is noticed.

use std::panic::PanicHookInfo;
use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tracing::error;

static PANICS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Installs the panic hook.
pub fn watch() {
    std::panic::set_hook(Box::new(note));
}

/// Registers the counter of panics.
pub fn register(registry: &mut Registry) {
    registry.register("banmesh_panics", "Panics in any task or thread; each is a bug in banmesh", PANICS.clone());
}

/// The message of a panic.
pub fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

fn note(info: &PanicHookInfo<'_>) {
    PANICS.inc();
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let place = info.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let message = info.payload_as_str().unwrap_or("without a message");
    // Disabled unless RUST_BACKTRACE is set.
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        error!(thread, place, %backtrace, "panic, which is a bug in banmesh: {message}");
    } else {
        error!(thread, place, "panic, which is a bug in banmesh: {message}");
    }
}
