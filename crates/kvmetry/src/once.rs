//! `kvmetry once`: one cycle of every hypervisor to stdout.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use crate::cli::Format;
use crate::clock::{Clock, SystemClock};
use crate::collect::{Host, Settings};
use crate::config::Config;

pub(crate) async fn once(config: &Config, _format: Format) -> ExitCode {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    for h in &config.hypervisors {
        let mut host = Host::new(Settings::of(config, h).unwrap(), Arc::clone(&clock));
        let mut out = Vec::new();
        let report = host.cycle(clock.wall_ns(), &mut out).await;
        tracing::info!(?report);
        std::io::stdout().write_all(&out).unwrap();
        host.close().await;
    }
    ExitCode::SUCCESS
}
