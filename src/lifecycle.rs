//! From signals to a stop: the first asks for a drain, the second ends it.

use tokio_util::sync::CancellationToken;

/// What a process is told about its end. Passed to every loop; there is no global one.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Take nothing new, finish what is under way.
    pub drain: CancellationToken,
    /// Stop at once.
    pub now: CancellationToken,
}

impl Shutdown {
    /// A shutdown that SIGTERM and SIGINT trigger: the first the drain, the second the end.
    ///
    /// # Errors
    /// When the signals cannot be listened to.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::default();
        let told = shutdown.clone();
        tokio::spawn(async move {
            for step in [&told.drain, &told.now] {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if step.is_cancelled() {
                    told.now.cancel();
                }
                tracing::info!(signal = name, "told to stop");
                step.cancel();
            }
        });
        Ok(shutdown)
    }
}
