//! Notifications to systemd.

use tracing::debug;

/// Notifies systemd if the unit has `Type=notify`.
pub fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(reason) = sd_notify::notify(state) {
        debug!(%reason, "cannot notify systemd");
    }
}
