//! Every panic, wherever it happens, is logged and counted: a task for one connection may fail alone, but not unnoticed.

use std::panic::PanicHookInfo;
use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tracing::error;

static PANICS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// From now on panics go to the log and are counted.
pub fn watch() {
    std::panic::set_hook(Box::new(note));
}

/// Makes the counter known under its name.
pub fn register(registry: &mut Registry) {
    registry.register("banmesh_panics", "Panics in any task or thread: faults of banmesh", PANICS.clone());
}

/// What a task or thread panicked with.
pub fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

fn note(info: &PanicHookInfo<'_>) {
    PANICS.inc();
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let place = info.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let message = info.payload_as_str().unwrap_or("without a message");
    // Empty unless RUST_BACKTRACE asks for it.
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        error!(thread, place, %backtrace, "a panic, which is a fault of banmesh: {message}");
    } else {
        error!(thread, place, "a panic, which is a fault of banmesh: {message}");
    }
}
