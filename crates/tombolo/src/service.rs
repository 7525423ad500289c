//! What a service manager is told: that the node is ready, that it is alive, that it stops. The protocol is systemd's `sd_notify`; without
//! a manager that asks for it nothing happens.

use client::Database;
use sd_notify::NotifyState;
use std::time::Duration;

/// How often it is looked whether the node takes part.
const LOOK: Duration = Duration::from_millis(50);

fn tell(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        eprintln!("tombolo: the service manager cannot be told: {e}");
    }
}

/// Says when the node takes part, and from then on, as often as the watchdog wants, that it still answers: the node itself is
/// asked, not only its process.
pub(crate) async fn watch(db: Database) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    loop {
        match db.status().await {
            Ok(status) if status.ready => break,
            _ => tokio::time::sleep(LOOK).await,
        }
    }
    tell(&[NotifyState::Ready]);
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    loop {
        if let Ok(Ok(status)) = tokio::time::timeout(period / 2, db.status()).await {
            tell(&[NotifyState::Watchdog, NotifyState::Status(&format!("{} ({})", status.state, status.why))]);
        }
        tokio::time::sleep(period / 3).await;
    }
}

/// It stops.
pub(crate) fn stopping() {
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        tell(&[NotifyState::Stopping]);
    }
}
