//! The log: text for people, JSON for machines, on stderr.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::settings::{LogFormat, Settings};

/// Says from now on what is logged.
pub(crate) type SetFilter = Box<dyn Fn(&Settings) -> anyhow::Result<()> + Send>;

/// Begins to log as the settings say.
pub(crate) fn init(settings: &Settings) -> anyhow::Result<SetFilter> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(settings)?).with_writer(std::io::stderr);
    Ok(match settings.general.log_format {
        LogFormat::Text => {
            let builder = builder.with_ansi(is_colourful()).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |settings| Ok(handle.reload(filter(settings)?)?))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |settings| Ok(handle.reload(filter(settings)?)?))
        }
    })
}

fn filter(settings: &Settings) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(&settings.general.log)
        .with_context(|| format!("log is {:?}: use error, warn, info, debug or directives", settings.general.log))
}

/// Colours are for terminals that show them, and for people who want them
/// (<https://no-color.org>).
fn is_colourful() -> bool {
    let wants_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let shows_none = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    std::io::stderr().is_terminal() && !wants_none && !shows_none
}
