//! Logs: `tracing` to standard error, for people or as one JSON object per line.
//!
//! Lines carry `deployment`, `partition` and `offset` as fields where they are known. Colours only on
//! a terminal, and never when `NO_COLOR` is set.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::node::{LogConfig, LogFormat};
use crate::config::problem::Problems;

/// Client libraries below this level say too much about too little.
const QUIET: &str =
    "librdkafka=warn,rdkafka=warn,h2=warn,hyper=warn,tower=warn,cranelift=warn,wasmtime=warn,rustls=warn";
/// Who changed what, and who was refused: logged whatever the level of the rest.
const ALWAYS: &str = "audit=info";

/// Starts logging for the process. A second call is refused, as a test may have started it already.
pub fn init(config: &LogConfig) -> Result<(), Problems> {
    let filter = filter(&config.filter)?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let base = tracing_subscriber::registry().with(filter);
    let started = match config.format {
        LogFormat::Human => {
            let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_target(false);
            base.with(layer).try_init()
        }
        LogFormat::Json => {
            let layer = fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false);
            base.with(layer.with_writer(std::io::stderr)).try_init()
        }
    };
    started.map_err(|error| Problems::one("log", format!("logging is already running: {error}")))
}

fn filter(text: &str) -> Result<EnvFilter, Problems> {
    let refuse = |error| {
        let message =
            format!("`{text}` is no filter: write a level such as info, or module=level pairs ({error})");
        Problems::one("log.filter", message)
    };
    // What the user says comes last, so that it wins over the quiet defaults.
    EnvFilter::builder().parse(format!("{QUIET},{ALWAYS},{text}")).map_err(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_checked_before_anything_runs() {
        assert!(filter("info").is_ok());
        assert!(filter("warn,tidemill::node=debug").is_ok());
        let problems = filter("tidemill=loud").expect_err("no such level");
        assert!(problems.to_string().starts_with("log.filter: `tidemill=loud`"), "{problems}");
    }
}
